"""Read the named arrays of a file that a stranger made: PyTorch's, safetensors, npz or JSON. Runs no code in it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.reading import read_bounded
from ...errors import HeadError

Arrays = dict[str, npt.NDArray[np.float64]]
LIMIT = 1 << 26  # bytes of a file, and of its arrays as float64: published heads have kilobytes
SAFE_TORCH = (2, 6)  # before, a file could run code even with weights_only=True (CVE-2025-32434)


def read_arrays(path: Path) -> Arrays:
    """Read all arrays of numbers in a file, by name; those of nested objects have names such as `model.fc.weight`.

    Parameters
    ----------
    path : a .pth, .pt, .ckpt or .bin file that torch.save wrote, or a .safetensors, .npz or .json file

    Raises
    ------
    HeadError
        There is no such file, its kind is unknown, it is damaged or too large, it would run code when it is read, or
        it holds no array or one that is not finite.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise HeadError(f"{path} has an unknown ending; a head is a {', '.join(READERS)} file")
    try:
        content = read_bounded(path, LIMIT)
    except OSError as e:
        raise HeadError(f"the head {path} cannot be read ({e.strerror or e}); name a file with a head") from e
    try:
        arrays = read(content)
    except HeadError:
        raise
    except Exception as e:
        reason = str(e).strip().partition("\n")[0].rstrip(".") or type(e).__name__
        raise HeadError(f"{path} is no readable {path.suffix} file of arrays ({reason[:300]}); get it again") from e
    if not arrays:
        raise HeadError(f"{path} holds no array of numbers; name a file with the weights of a head")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise HeadError(f"{path}: {name} holds NaN or infinity, so that every score would be wrong; get it again")
    return arrays


def _read_torch(content: bytes) -> Arrays:
    """Read what torch.save wrote in its zip format, by the restricted unpickler that makes tensors only."""
    import torch

    installed = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    if installed < SAFE_TORCH:
        raise HeadError(
            f"torch {torch.__version__} can run code of a file that it only reads weights from (CVE-2025-32434); "
            f"install torch 2.6 or later, or convert the head to safetensors"
        )
    _require_small(content)  # also refuses torch's format before 1.6, which is a pickle
    return dict(_tensors(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), ""))


def _tensors(value: Any, name: str) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Yield the dense tensors of floats in nested mappings, with their dotted names."""
    import torch

    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise ValueError(f"{name} is no dense tensor of real numbers")
        _require_few(value.numel(), name)  # an expanded tensor may claim more numbers than the file has
        yield name, value.detach().to(torch.float64).numpy()


def _read_safetensors(content: bytes) -> Arrays:
    from safetensors.torch import load  # numpy's has no bfloat16

    return dict(_tensors(load(content), ""))


def _read_npz(content: bytes) -> Arrays:
    _require_small(content)
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: _numbers(file[name], name) for name in file.files}


def _read_json(content: bytes) -> Arrays:
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("expected an object with the fields weight and bias")
    return {name: _numbers(values, name) for name, values in fields.items() if isinstance(values, list | int | float)}


def _numbers(values: Any, name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {array.dtype} instead of numbers")
    _require_few(array.size, name)
    return array.astype(np.float64)


def _require_small(content: bytes) -> None:
    """Raise ValueError unless the bytes are a zip archive whose members are small when they are decompressed."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("it is no zip archive, as torch.save and np.savez write")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > LIMIT:
            raise ValueError(f"it has {size:,} bytes when it is decompressed, more than {LIMIT:,}")


def _require_few(numbers: int, name: str) -> None:
    if 8 * numbers > LIMIT:
        raise ValueError(f"{name} has {numbers:,} numbers, more than {LIMIT // 8:,}")


READERS: dict[str, Callable[[bytes], Arrays]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".ckpt": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".json": _read_json,
}
