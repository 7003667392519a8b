"""Metadata files beside the images of a tar (WebDataset: one name, several suffixes)."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ....store.exchange.class_names import ClassNames, named_class
from ..labels import INVALID, WEAK, is_class_word
from ..tables.columns import FIELDS, JsonPairs

SIDECARS = (".json", ".cls", ".txt")
AMBIGUOUS = "several images and metadata files share the first part of their name, and none is this image's own"

KNOWN = {*FIELDS, INVALID, WEAK}  # fields that are kept

Fields = dict[str, Any]


def sample_of(name: str) -> str:
    """Key of a WebDataset sample: the path up to the first dot of its last part."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def stem_of(name: str) -> str:
    """Path without its last suffix."""
    return posixpath.splitext(name)[0]


def stems_above(stem: str) -> Iterator[str]:
    """Iterate over a stem and what remains of it without its last parts, the longest first.

    >>> list(stems_above("x.y/sd_v1.5_0.img"))
    ['x.y/sd_v1.5_0.img', 'x.y/sd_v1.5_0', 'x.y/sd_v1']
    """
    folder, base = posixpath.split(stem)
    parts = base.split(".")
    for count in range(len(parts), 0, -1):
        yield posixpath.join(folder, ".".join(parts[:count]))


def own_fields(images: Sequence[str], sidecars: Mapping[str, Fields]) -> dict[str, Fields | None]:
    """Fields of each image of a WebDataset sample; None where they cannot be told from those of another image.

    A sidecar belongs to the images whose name, up to a dot, is its own: sd_v1.5_0.json to sd_v1.5_0.jpg, 7.json to
    7.img.jpg and 7.mask.png, and 7.meta.json to 7.jpg. One that belongs to none is that of the only image.

    Parameters
    ----------
    images : names of the images
    sidecars : stem of each sidecar -> fields
    """
    fields: dict[str, Fields] = {}
    used: set[str] = set()
    for image in images:
        above = [stem for stem in stems_above(stem_of(image)) if stem in sidecars]
        below = [stem for stem in sidecars if stem.startswith(f"{stem_of(image)}.")]
        mine = [*below, *reversed(above)]  # the nearest last, so that it decides
        used.update(mine)
        fields[image] = {key: value for stem in mine for key, value in sidecars[stem].items()}
    loose = [stem for stem in sidecars if stem not in used]
    if loose and len(images) == 1:
        return {images[0]: {key: value for stem in loose for key, value in sidecars[stem].items()} | fields[images[0]]}
    return {image: None if loose and not own else own for image, own in fields.items()}


def parse_sidecar(suffix: str, content: bytes) -> Fields:
    """Parse a sidecar: the known fields of a JSON object, a class code (0 is real), or a class word.

    A text file is mostly a caption, so that its word counts only where it is the name of a class and nothing says
    otherwise.

    >>> parse_sidecar(".cls", b"1"), parse_sidecar(".txt", b"nature"), parse_sidecar(".txt", b"a cat on a mat")
    ({'target': '1', 'weak': True}, {}, {})
    """
    text = _decoded(content).strip().lstrip("\ufeff")
    if suffix == ".cls":
        return {"target": text, WEAK: True}
    if suffix == ".json":
        try:
            pairs = json.loads(text, object_pairs_hook=JsonPairs)
        except (ValueError, RecursionError) as e:
            return {INVALID: f"the metadata file beside it is not valid JSON ({e})"}
        return known_fields((key.casefold(), value) for key, value in pairs) if isinstance(pairs, JsonPairs) else {}
    return {"label": text, WEAK: True} if is_class_word(text) else {}


def known_fields(pairs: Iterable[tuple[str, Any]]) -> Fields:
    """Known fields of a sample; of one that stands twice with different values both, which is no label.

    >>> known_fields([("label", "real"), ("caption", "a cat"), ("label", "fake")])
    {'label': 'real and fake'}
    """
    fields: Fields = {}
    for key, value in pairs:
        if key in KNOWN:
            same = key not in fields or str(fields[key]) == str(value)
            fields[key] = value if same else f"{fields[key]} and {value}"
    return fields


def _decoded(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return content.decode(encoding, "replace")


def with_class_names(fields: Fields, class_names: ClassNames) -> Fields:
    """Replace class numbers by the names of a data set card; a .cls file has those of the column cls or label."""
    names = {"label": class_names.get("label"), "target": class_names.get("cls", class_names.get("label"))}
    return {
        field: named_class(value, of_field) if (of_field := names.get(field)) is not None else value
        for field, value in fields.items()
    }
