"""Names of the classes that stand behind the numbers of a Hugging Face data set's label column.

`imagefolder` numbers classes by the alphabet, so that fake is 0 and real is 1. The names are in the metadata of a
parquet file, in dataset_info.json, or in the front matter of the data set's README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ClassNames = Mapping[str, tuple[str, ...]]  # column -> names of its classes, in the order of their numbers

CARDS = ("dataset_info.json", "dataset_infos.json", "README.md")
MAX_CARD = 1 << 22  # bytes of a card that are read


def class_names_in_schema(metadata: Mapping[bytes, bytes] | None) -> ClassNames:
    """Class names in the metadata of a parquet schema."""
    return _from_json((metadata or {}).get(b"huggingface", b"{}"))


def class_names_in_cards(contents: Sequence[bytes]) -> ClassNames:
    """Class names in the contents of a folder's `CARDS`, b"" for one that is missing."""
    names: dict[str, tuple[str, ...]] = {}
    for card, content in zip(CARDS, contents, strict=True):
        in_card = _from_front_matter(content) if card.endswith(".md") else _from_json(content)
        names = {**in_card, **names}
    return names


def named_class(value: Any, names: tuple[str, ...]) -> Any:
    """Return the name of a class by its number; any other value is returned as it is.

    >>> named_class(1, ("fake", "real")), named_class("0", ("fake", "real")), named_class("real", ("fake", "real"))
    ('real', 'fake', 'real')
    """
    text = str(value).strip()
    number = text.removesuffix(".0")
    return names[int(number)] if number.isascii() and number.isdigit() and int(number[:9]) < len(names) else value


def _from_json(content: bytes) -> ClassNames:
    try:
        return dict(_named_features(json.loads(content or b"{}")))
    except (ValueError, RecursionError):
        return {}


def _from_front_matter(content: bytes) -> ClassNames:
    """Class names in the YAML between two lines of dashes at the top of a README.md."""
    _, opening, rest = content.decode("utf-8", "replace").lstrip("\ufeff").partition("---\n")
    front, closing, _ = rest.partition("\n---")
    if not opening or not closing or "class_label" not in front:
        return {}
    import yaml  # of transformers

    try:
        return dict(_named_features(yaml.safe_load(front)))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}


def _named_features(node: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Iterate over the columns with class names of every `features` in a tree of dicts and lists."""
    if isinstance(node, list):
        for item in node:
            yield from _named_features(item)
    elif isinstance(node, dict):
        features = node.get("features")
        if isinstance(features, dict):
            pairs = list(features.items())
        elif isinstance(features, list):
            pairs = [(item.get("name"), item.get("dtype")) for item in features if isinstance(item, dict)]
        else:
            for value in node.values():
                yield from _named_features(value)
            return
        for name, feature in pairs:
            feature = feature.get("class_label", feature) if isinstance(feature, dict) else {}
            names = feature.get("names") if isinstance(feature, dict) else None
            if isinstance(names, dict):  # number -> name
                names = [names.get(key, names.get(str(key))) for key in range(len(names))]
            if isinstance(names, list) and names:
                yield str(name), tuple(map(str, names))
