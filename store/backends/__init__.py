"""Search back ends beyond this process: a Qdrant server, or Qdrant Edge in a folder.

interface   base.py is what a back end implements; backend_manifest.py is what it records about its contents
filling     push.py copies a snapshot; recall.py measures the result; search_plan.py chooses the width for a recall
searching   remote_search.py
Qdrant      qdrant.py opens qdrant_edge.py or qdrant_server.py; qdrant_base.py is their common base class
"""
