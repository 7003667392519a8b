"""Pixels and text to unit vectors.

interface  base.py; encoder_name.py parses an encoder's name; load.py makes the encoder
files      hub.py finds a model's files; checkpoint.py opens them
models     torch_encoder.py runs clip_vision.py or vision_backbone.py; depth.py; text_encoder.py for text;
           preprocess.py prepares the input, with the numbers of resize.py
speed      onednn_linear.py and openvino.py (int8.py) on a CPU; gpu/ on a GPU
"""
