"""Indexing with several processes or machines.

worker_pool.py drives a run; process_pool.py starts processes here, ray_pool.py on a Ray cluster; each worker.py
receives a task.py and seals shards
"""
