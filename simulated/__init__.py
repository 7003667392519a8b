"""What a first run needs: images and an encoder that can be made offline.

images.py draws a small data set; standin_encoder.py builds a small CLIP from a seed;
    notice.py says what its verdicts are worth
"""
