"""Views: further vectors of each image that the store's own encoder computes in the pass of the main vector.

- `kinds`: which views exist, and their embedding spaces
- `block_outputs`: the outputs of a model's blocks, pooled or as patch tokens
- `view_model`: a vision model that returns its features and what views need of its blocks
- `whitening`: reduction of pooled outputs to a few hundred dimensions
- `crops`: crops of an image at its native resolution
- `view_encoder`: an encoder of the main vector and views side by side
- `head_encoder`: an encoder of the vectors that a head uses, joined into one
- `create`: makes the views of a store, fitting what they need
"""
