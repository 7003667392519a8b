"""The HTTP face: handed `encode` and a Detector, imports no encoder."""
