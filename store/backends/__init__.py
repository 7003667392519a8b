"""Search back ends beyond this process: a Qdrant server, or Qdrant Edge in a folder.

interface   base.py is what a back end implements; backend_manifest.py is what it records about its contents
filling     push.py copies a snapshot; recall.py measures the result; search_plan.py chooses the width for a recall
searching   remote_search.py
Qdrant      qdrant.py opens edge_process.py, which runs qdrant_edge.py in a child process, or qdrant_server.py;
            qdrant_base.py is the common base class of the two
"""
