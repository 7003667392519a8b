"""When images are decoded and encoded: requests take turns, and the memory of the images under way is bounded.

fair_queue.py orders the images of all requests; decode_lanes.py decodes them, small ones beside large ones; batcher.py
encodes them in batches; memory.py returns freed memory to the system
"""
