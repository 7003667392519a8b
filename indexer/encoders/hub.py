"""Locate a model's files: in a local directory or, by hub id, in the Hugging Face cache, downloaded if missing.

Cached files are used without contacting the hub, so that a machine without network does not wait for a timeout. Only
what the user names is downloaded; everything is loaded offline.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...core.reading import read_text
from ...errors import EncoderError, MissingExtra
from .encoder_name import INT8, PLAIN, code_of, load_error, model_id_of, require_trusted
from .external.library import hub_weights_of, is_library_model

CONFIG = "config.json"
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "vocab.json")  # one of them is enough
SMALL_FILES = (CONFIG, *PREPROCESSING, *TOKENIZER, "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def ensure_available(name: str, *, trusted: bool = True) -> None:
    """Download an encoder's files unless they are on this machine; progress is shown on stderr.

    Parameters
    ----------
    trusted
        False if a file names the encoder and not the user: who made a store must not choose what is downloaded or run.

    Raises
    ------
    EncoderError
        The files are not on this machine, and cannot be downloaded or must not be. Or the encoder is code that must not
        be run.
    MissingExtra
        The encoder is a model of timm or open_clip, which is not installed.
    """
    if name == PLAIN:
        return
    if code_of(name.removeprefix(INT8)):
        if not trusted:
            require_trusted(name.removeprefix(INT8))
        return
    model_id, weights = model_id_of(name)
    try:
        missing = _missing(model_id, weights=weights)
        if missing is None:
            return
        repository, download = missing
        if not trusted:
            raise EncoderError(
                f"the encoder {name} is not on this machine. The store names it, and what a store names is not "
                f"downloaded unasked; if you trust it, give --encoder {name} (in Python, encoder={name!r}), or "
                f"download it with `hf download {repository}`"
            )
        download()
    except (EncoderError, MissingExtra):
        raise
    except Exception as e:  # a hub that answers badly makes its client raise anything
        raise load_error(f"the encoder {name}", e) from e


def _missing(model_id: str, *, weights: bool) -> tuple[str, Callable[[], object]] | None:
    """Return the repository that has a model's files and a function that downloads them, or None if they are here."""
    if is_library_model(model_id):
        files = hub_weights_of(model_id) if weights else None
        return None if files is None or files.cached() else (files.repository, files.download)
    if local_folder(model_id, weights=weights) is not None:
        return None
    return model_id, partial(_download, model_id, weights=weights)


def local_folder(model_id: str, *, weights: bool = True) -> Path | None:
    """The directory with the files of a directory or hub id, None if a hub id is not in the cache.

    Raises
    ------
    OSError, ValueError
        The directory does not exist, or the name is no hub id.
    """
    if Path(model_id).is_dir():
        return Path(model_id).resolve()
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:  # not a hub id
        raise FileNotFoundError(f"directory {model_id} does not exist")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model_id, CONFIG)
    if isinstance(cached, str):
        folder = Path(cached).parent
        if any((folder / file).is_file() for file in PREPROCESSING) and (not weights or has_weights(folder)):
            return folder
    return None


def folder_of(model_id: str, *, weights: bool = True) -> Path:
    """The directory with the files of a directory or hub id that `ensure_available` has found.

    Raises
    ------
    OSError, ValueError
        The files are not on this machine.
    """
    if folder := local_folder(model_id, weights=weights):
        return folder
    raise FileNotFoundError(f"{model_id} is not in the Hugging Face cache")


@contextmanager
def offline() -> Iterator[None]:
    """Refuse every request to the hub, such as for a model that the configuration of another one names."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _download(model_id: str, *, weights: bool) -> None:
    from huggingface_hub import snapshot_download

    with _no_progress_bars():
        folder = Path(snapshot_download(model_id, allow_patterns=[*SMALL_FILES, SAFETENSORS[1], PICKLED[1]]))
    if weights and not has_weights(folder):
        _fetch_weights(model_id, folder)


def has_weights(folder: Path) -> bool:
    """True if all weight files exist."""
    return any(all(file.is_file() for file in weight_files(folder, kind)) for kind in (SAFETENSORS, PICKLED))


def weight_files(folder: Path, kind: Sequence[str]) -> list[Path]:
    """Return the paths of the weight files of a kind (SAFETENSORS or PICKLED), whether they exist or not.

    A single file goes before the parts of an index.
    """
    single, index = kind
    # as transformers does: an index next to a single file may be left over from parts that were joined
    if (folder / single).is_file() or not (folder / index).is_file():
        return [folder / single]
    try:
        parts = sorted(set(json.loads(read_text(folder / index))["weight_map"].values()))
        return [folder / Path(part).name for part in parts]  # the name alone: a path must not leave the folder
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as e:
        raise ValueError(f"{folder / index} has no valid weight_map ({e}); download it again") from e


def _fetch_weights(model_id: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for kind in (SAFETENSORS, PICKLED):
        single = [folder / kind[0]]
        parts = weight_files(folder, kind)
        for files in (single,) if parts == single else (single, parts):
            try:
                for file in files:
                    hf_hub_download(model_id, file.name)
                return
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:  # the repository has no such files
                continue


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of small downloads."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]
