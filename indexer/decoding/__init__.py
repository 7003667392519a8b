"""Bytes to pixels.

image.py decodes one image, reader.py several. gpu_decoder.py chooses the images for the GPU, which nvimagecodec.py
decodes.
"""
