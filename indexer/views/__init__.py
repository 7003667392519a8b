"""Views: further vectors of each image that the store's own encoder computes in the pass of the main vector.

kinds      kinds.py lists the views and their embedding spaces
model      block_outputs.py pools the outputs of a model's blocks; view_model.py computes them beside the features;
           whitening.py reduces them to a few hundred dimensions
encoders   view_encoder.py puts the main vector and the views side by side, crops.py cuts at native resolution;
           head_encoder.py joins the vectors that a head reads
store      create.py makes the views of a store, and fits what they need
"""
