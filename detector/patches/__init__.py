"""Where in an image: patches of an encoder, scored one by one. Never opens an image file.

patch_map.py is the map of one image; patch_head.py holds the network that scores patches, and whether its maps may be
shown; planted.py swaps halves of images in stored patches and measures whether they are found, planted_images.py does
so with pictures; patch_training.py fits the network to the stored patches.
"""
