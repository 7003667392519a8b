"""Search back ends beyond this process: Qdrant, as a server or in a folder.

interface   base.py is what a back end does; backend_manifest.py is what it records about itself
filling     push.py copies a snapshot; recall.py measures it; search_plan.py keeps the search width for a recall
searching   remote_search.py
Qdrant      qdrant.py chooses qdrant_edge.py or qdrant_server.py; both use qdrant_protocol.py
"""
