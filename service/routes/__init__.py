"""The HTTP operations, one file each.

judging    query.py judges images
search     search.py finds stored rows; knn.py does so in clip-retrieval's protocol; embed.py returns vectors
store      bank.py adds and removes labelled images; stored.py describes the store and serves thumbnails
service    health.py has health checks and metrics; page.py serves the page
"""
