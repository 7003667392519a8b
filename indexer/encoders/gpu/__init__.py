"""Prepare batches on a CUDA device.

batch_input.py packs a batch, uploads it with pinned_upload.py and resizes it with the Triton kernels in kernels.py.
"""
