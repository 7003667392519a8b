"""Encoders: images and texts to unit vectors.

interface  base.py; encoder_name.py parses an encoder's name; load.py loads the encoder
files      hub.py finds or downloads a model's files; checkpoint.py reads them; checkpoint_rules/ checks them
models     torch_encoder.py runs clip_vision.py or vision_backbone.py; depth.py for depth maps;
           text_encoder.py for texts; preprocess.py prepares the images with the weights of resize.py
others     external/ for models of timm and open_clip, and encoders of the user
speed      onednn_linear.py, openvino.py and int8.py on a CPU; gpu/ on a GPU
"""
