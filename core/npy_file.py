"""Arrays in .npy files: written with every error noticed, read without mapping them. Never unpickles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import ClipfakeError
from .reading import open_stream
from .row_file import RowFile

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_npy(path: Path, error: Callable[[str], ClipfakeError]) -> RowFile | npt.NDArray[Any]:
    """Open an array, whose rows are read when it is indexed; one in Fortran's order is read as a whole.

    Parameters
    ----------
    error : makes the error for a file that is cut short while it is read; see `RowFile`

    Raises
    ------
    OSError, ValueError
        The file cannot be opened, or is no array of numbers, or has fewer bytes than its header says.
    """
    with open_stream(path) as file:
        shape, fortran, dtype = _read_header(file)
        offset, size = file.tell(), file.seek(0, 2)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which could run any code")
    if not shape:
        raise ValueError("expected rows, found one value")
    if size - offset < (expected := math.prod(shape) * dtype.itemsize):
        raise ValueError(f"truncated: {size - offset} bytes for an array of {expected} bytes")
    if not fortran:
        return RowFile(path, dtype, shape, offset=offset, error=error)
    return RowFile(path, dtype, shape[::-1], offset=offset, error=error)[:].T


def read_npy(path: Path, error: Callable[[str], ClipfakeError]) -> npt.NDArray[Any]:
    """Read a whole array; raises what `open_npy` raises, and `error`."""
    return np.asarray(open_npy(path, error))


def write_npy(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array. numpy's own `save` writes by C, which does not notice that the disk is full; raises OSError."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes("F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"))


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        if min(shape, default=0) < 0:
            raise ValueError(f"an invalid shape, {shape}")
        return shape, fortran, dtype
    except (OSError, ValueError):
        raise
    except Exception as e:  # numpy parses the header as Python, which can raise anything
        raise ValueError(str(e) or type(e).__name__) from e
