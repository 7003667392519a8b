"""What clipfake measures of itself: throughput, latency, training time, as tables and JSON, beside a peer.

Each runs by itself: `python -m clipfake.benchmarks.NAME --help`.

    indexing   targets.py has every target in one run; throughput.py each stage, decoding.py, encoder_sweep.py,
               feeding.py and indexing.py one of them closely; parity.py and int8.py what comes out; arithmetic.py
               what there is to do
    asking     query.py, start.py and service.py
    learning   training.py, atlas.py and fewshot.py
    the store  store_format.py, store_search.py and store_engine.py, over the rows of store_synthetic.py
    peers      naive.py, the script most people write, and clip_retrieval.py; architecture.py makes a CLIP to be timed
    shared     command.py
"""
