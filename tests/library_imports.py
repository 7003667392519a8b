"""timm, open_clip and torchvision, which are installed apart and are on the path of one run of `make test` only.

They are apart because `transformers` uses a torchvision that is installed, and PyPI's finds none of its compiled
operators beside a torch without CUDA.
"""

from typing import Any

import torch

_OPERATORS: list[Any] = []  # the operators of a library end with its object


def import_libraries() -> str:
    """Import the libraries; returns why that is impossible, or ""."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return "timm, open_clip and torchvision are installed apart; `make test` runs these tests with them"
    except RuntimeError:  # operator torchvision::nms does not exist
        # its transforms need no operator, two of them only have to be declared before the import
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(  # type: ignore[no-untyped-call]
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        _OPERATORS.append(library)
    try:
        import open_clip  # noqa: F401
        import timm  # noqa: F401
    except ImportError as e:
        return f"timm and open_clip cannot be imported: {e}"
    return ""
