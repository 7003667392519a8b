"""Indexing with several processes or machines.

worker_pool.py drives a run. process_pool.py starts workers on this machine, ray_pool.py on a Ray cluster. Each
worker.py receives tasks (task.py) and writes shards.
"""
