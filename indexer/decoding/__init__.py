"""Bytes to pixels.

image.py decodes one image, reader.py several. rgb.py converts pixels of any kind to RGB, metadata.py reads the
orientation and removes what a reader stumbles over, tiff_layout.py refuses TIFFs that Pillow misreads, quiet.py
silences Pillow. gpu_decoder.py chooses the images for the GPU, which nvimagecodec.py decodes.
"""
