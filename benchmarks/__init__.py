"""What clipfake measures of itself: throughput, latency, training time, as tables and JSON, beside a peer.

Each runs by itself: `python -m clipfake.benchmarks.NAME --help`.

    indexing   targets.py has every target in one run; throughput.py each stage, decoding.py, encoder_sweep.py,
               feeding.py and indexing.py one of them closely; parity.py and int8.py compare embeddings
    service    service.py, and start.py for the command line
    peers      clip_retrieval.py
    packages   store/, detector/, and common/ for what they share
"""
