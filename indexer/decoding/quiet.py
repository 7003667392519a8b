"""Keep the messages of image libraries about single files off the terminal: what matters is in the image's error."""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from contextlib import suppress
from functools import cache

from PIL import _imaging

PILLOW_MODULES = re.compile(r"PIL\.")


def silence_pillow() -> None:
    """Ignore Pillow's warnings, its logged errors without a handler, and what its libtiff prints.

    To be called before each use, since `warnings.catch_warnings` elsewhere, as in tests, restores older filters. It is
    not used here, because it is not safe with threads.
    """
    if not any(entry[3] == PILLOW_MODULES for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=PILLOW_MODULES.pattern)
    _silence_once()


@cache
def _silence_once() -> None:
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any, Python prints errors
    with suppress(OSError, AttributeError):  # a Pillow without libtiff, or with one that is linked into it
        libraries = ctypes.CDLL(_imaging.__file__)  # looks symbols up in the libraries that Pillow loaded too
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(libraries, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
