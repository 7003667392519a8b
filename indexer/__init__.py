"""Image files in, stored vectors out. torch and transformers live here.

the job    index.py runs it in this process; index_run.py tells new images from known ones; report.py counts;
           progress.py logs; quarantine.py remembers unreadable images; shard_inbox.py takes in workers' shards
stages     pipeline.py overlaps listing, decoding, encoding and writing, with a channel.py between each stage.py;
           batch_encoder.py halves batches where memory runs out
queries    embedding.py embeds images that need not be stored; add_vectors.py adds a second encoder's vectors;
           encoder_spec.py says which encoder to load
packages   sources/ (where images are), decoding/ (bytes to pixels), encoders/ (pixels to vectors),
           distributed/ (several processes or machines)
"""
