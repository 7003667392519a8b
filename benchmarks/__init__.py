"""Benchmarks of throughput, latency and training time, beside a reference: tables and JSON.

Each is a program: `python -m clipfake.benchmarks.NAME --help`.

    indexing   targets.py measures every target in one run; throughput.py measures each stage, and decoding.py,
               encoder_sweep.py, feeding.py and indexing.py one of them in detail; parity.py and int8.py compare
               embeddings; gpu.py measures a GPU in minutes
    service    service.py; soak.py sends 20,000 mixed requests; start.py for the command line
    verdicts   unseen.py leaves sources out of everything and compares the verdicts on them with plain classifiers
    peers      clip_retrieval.py
    source     house.py checks the structure of the source tree
    packages   store/, detector/, and common/ for shared helpers
"""
