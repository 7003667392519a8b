"""Encoders that other packages and the user bring.

libraries  library.py chooses timm_models.py or open_clip_models.py by the encoder's name; both give a library_model.py,
           with weights that hub_weights.py finds or downloads
own        own_encoder.py checks the vectors of an object with `encode` and a `space`, and runs a function that makes it
"""
