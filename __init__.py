"""clipfake: index millions of images once; ask for ever after "is this one fake, and which known images say so?"."""

__version__ = "0.1.0"
