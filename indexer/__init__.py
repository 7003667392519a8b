"""Image files to stored vectors. Encoders run here, with torch and transformers.

runs       index.py indexes in this process; index_run.py separates new images from known ones; report.py counts;
           sample.py draws the images of a limited run; progress.py logs; quarantine.py lists unreadable images;
           shard_inbox.py adopts the shards of workers
stages     pipeline.py overlaps listing, decoding, encoding and writing, with a channel.py between each stage.py;
           batch_encoder.py halves batches when memory runs out
queries    embedding.py embeds images without storing them, and degraded copies that degradations.py makes;
           add_vectors.py adds named vectors to stored rows; encoder_spec.py specifies the encoder to load
packages   sources/ (location of images), decoding/ (bytes to pixels), encoders/ (pixels to vectors), views/ (further
           vectors of each image), distributed/ (several processes or machines)
"""
