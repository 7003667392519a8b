"""A model's files by its name: a directory, or those of a hub id in the Hugging Face cache, brought there if need be.

What is in the cache is taken from there without asking the hub again: a machine without network waits for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .encoder_name import PLAIN, cannot_load, place_of

CONFIG = "config.json"
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "vocab.json")  # either is enough
SMALL = (CONFIG, *PREPROCESSING, *TOKENIZER, "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def bring(name: str) -> None:
    """Download an encoder's files if they are not here yet; a download shows its progress on stderr.

    Raises
    ------
    EncoderError
        They are not here and cannot be fetched.
    """
    if name == PLAIN:
        return
    place, weights = place_of(name)
    try:
        folder_of(place, weights=weights)
    except (OSError, ValueError) as e:
        raise cannot_load(f"the encoder {name}", e) from e


def folder_of(place: str, *, weights: bool = True) -> Path:
    """The directory that holds the files of a directory or hub id; raises OSError or ValueError."""
    if Path(place).is_dir():
        return Path(place).resolve()
    if place.startswith((".", "/", "~")) or place.count("/") > 1:  # no hub id
        raise FileNotFoundError(f"there is no directory {place}")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(place, CONFIG)
    if isinstance(cached, str):
        folder = Path(cached).parent
        if any((folder / file).is_file() for file in PREPROCESSING) and (not weights or has_weights(folder)):
            return folder
    with _no_bars():
        folder = Path(snapshot_download(place, allow_patterns=[*SMALL, SAFE[1], PICKLED[1]]))
    if weights and not has_weights(folder):
        _fetch_weights(place, folder)
    return folder


def has_weights(folder: Path) -> bool:
    """True if every weight is there."""
    return any(all(file.is_file() for file in weight_files(folder, kind)) for kind in (SAFE, PICKLED))


def weight_files(folder: Path, kind: Sequence[str]) -> list[Path]:
    """The files of a kind that together hold every weight, whether they are there or not."""
    whole, index = kind
    if not (folder / index).is_file():
        return [folder / whole]
    try:
        parts = sorted(set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / Path(part).name for part in parts]  # a path out of the folder leads nowhere
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as e:
        raise ValueError(f"{folder / index} does not say which files hold the weights ({e})") from e


def _fetch_weights(place: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for kind in (SAFE, PICKLED):
        try:
            for file in weight_files(folder, kind):
                hf_hub_download(place, file.name)
            return
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:  # the hub has none of this kind
            continue


@contextmanager
def _no_bars() -> Iterator[None]:
    """Small files come and go without a word."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]
