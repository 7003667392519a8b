"""The HTTP service: handed an encoder and a store, it answers queries and shows a page. It imports no encoder.

serving    server.py listens; app.py puts the app together
requests   middleware.py checks hosts, tokens, sizes and times, by limits.py; problems.py makes error responses;
           dependencies.py, uploads.py and json_body.py parse requests
answers    schemas.py are the JSON models; routes/ has one file an operation
shared     state.py; image_decoder.py decodes uploads; batcher.py encodes them together; search_backend.py searches
           elsewhere; bank_map.py projects the bank to a plane; metrics.py counts
"""
