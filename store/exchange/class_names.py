"""Names of the classes that stand behind the numbers of a Hugging Face data set's label column.

`imagefolder` numbers classes by the alphabet, so that fake is 0 and real is 1. The names are in the metadata of a
parquet file, in dataset_info.json, or in the front matter of the data set's README.md. Where they cannot be read, or
contradict each other, a number means nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.reading import open_stream

ClassNames = Mapping[str, tuple[str, ...]]  # column in lower case -> names by number; () if they are not known

CARDS = ("dataset_info.json", "dataset_infos.json", "README.md")
MAX_CARD = 1 << 22  # bytes of a card that are read
LABEL_COLUMNS = ("label", "target")  # columns whose numbers mean nothing if a card cannot be read
NO_NAMES: ClassNames = dict.fromkeys(LABEL_COLUMNS, ())  # of a card that cannot be read
# Names of columns in which 1 means real.
MEANS_REAL = re.compile(r"(is[_ ]?)?(real|authentic|genuine|natural|original|human)", re.IGNORECASE)


def class_names_in_schema(metadata: Mapping[bytes, bytes] | None) -> ClassNames:
    """Class names in the metadata of a parquet schema."""
    return _from_json((metadata or {}).get(b"huggingface", b""))


def class_names_in_cards(contents: Sequence[bytes | None]) -> ClassNames:
    """Class names in the contents of a folder's `CARDS`, b"" for one that is missing, None for an unreadable one."""
    names: dict[str, tuple[str, ...]] = {}
    for card, content in zip(CARDS, contents, strict=True):
        if content is None:
            names = merged(names, NO_NAMES)
        else:
            names = merged(names, _from_front_matter(content) if card.endswith(".md") else _from_json(content))
    return names


def class_names_in_folder(folder: Path) -> ClassNames:
    """Class names in the data set cards of a folder on this machine."""
    return class_names_in_cards([_read_card(folder / card) for card in CARDS])


def _read_card(path: Path) -> bytes | None:
    """Content of a card, b"" if there is none, None if it cannot be read."""
    try:
        with open_stream(path) as file:
            return file.read(MAX_CARD)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return b""
    except OSError:
        return None


def merged(names: ClassNames, others: ClassNames) -> dict[str, tuple[str, ...]]:
    """Class names of two places; of a column on which they contradict each other, none."""
    return {
        column: names.get(column, others.get(column, ())) if _agree(names, others, column) else ()
        for column in {**names, **others}
    }


def _agree(names: ClassNames, others: ClassNames, column: str) -> bool:
    return column not in names or column not in others or names[column] == others[column]


def named_class(value: Any, names: tuple[str, ...]) -> Any:
    """Return the name of a class by its number; any other value is returned as it is.

    >>> named_class(1, ("fake", "real")), named_class("0", ("fake", "real")), named_class("real", ("fake", "real"))
    ('real', 'fake', 'real')
    >>> named_class(1, ())
    '1 (a class whose name is not known)'
    """
    number = str(value).strip().removesuffix(".0")
    if isinstance(value, bool) or not (number.isascii() and number.isdigit()):
        return value
    position = int(number[:9])
    return names[position] if position < len(names) else f"{number} (a class whose name is not known)"


def _from_json(content: bytes) -> ClassNames:
    if not content:
        return {}
    try:
        return _collected(_named_features(json.loads(content)))
    except (ValueError, RecursionError):
        return NO_NAMES


def _from_front_matter(content: bytes) -> ClassNames:
    """Class names in the YAML between two lines of dashes at the top of a README.md."""
    text = content.decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n")
    _, opening, rest = text.partition("---\n")
    front, closing, _ = rest.partition("\n---")
    if not opening or not closing or "class_label" not in front:
        return {}
    import yaml  # of transformers

    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(front)):
            return NO_NAMES  # aliases of aliases can stand for billions of nodes
        return _collected(_named_features(yaml.safe_load(front)))
    except (yaml.YAMLError, ValueError, RecursionError):
        return NO_NAMES


def _collected(features: Iterator[tuple[str, tuple[str, ...]]]) -> ClassNames:
    names: dict[str, tuple[str, ...]] = {}
    for column, of_column in features:
        names = merged(names, {column: of_column})
    return names


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
            pairs = [(item.get("name"), item) for item in features if isinstance(item, dict)]
        else:
            for value in node.values():
                yield from _named_features(value)
            return
        for name, feature in pairs:
            if (names := _names_of(feature)) is not None:
                yield str(name).casefold(), names


def _names_of(feature: Any) -> tuple[str, ...] | None:
    """Names of the classes of a feature, () if it holds several or invalid ones, None if it has no classes."""
    if isinstance(feature, dict):
        dtype = feature.get("dtype")
        content: Any = dtype if isinstance(dtype, dict) else feature
        content = content.get("class_label", content)
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):  # number -> name
            names = [names.get(number, names.get(str(number))) for number in range(len(names))]
        if isinstance(names, list) and None not in names:
            return tuple(map(str, names))
    has_classes = re.search("class_label|ClassLabel", repr(feature))  # for example a sequence of them
    return () if has_classes else None
