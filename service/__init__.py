"""The HTTP service: answers queries and serves a page. The encoder is passed in; this package imports none.

serving    server.py listens; app.py assembles the application; http/ has connections and access
requests   middleware.py checks access, sizes and times, by limits.py; problems.py makes error responses;
           dependencies.py, uploads.py and json_body.py parse requests
answers    schemas.py has the JSON models; routes/ has one file per operation
shared     state.py; image_decoder.py decodes uploads; scheduling/ decides when each is decoded and encoded;
           search_backend.py guards an external search; bank_map.py projects the bank onto a plane; metrics.py defines
           the metrics
"""
