"""Bytes to pixels.

image.py decodes one image; reader.py several; gpu_decoder.py decides which go to the GPU, where nvimagecodec.py
decodes them
"""
