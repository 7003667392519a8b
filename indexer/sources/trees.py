"""Listing of sources that have folders: by the metadata tables inside, or by the names of the folders."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from ...errors import SourceError
from .base import NOT_NAMED, ListableTree, Listed, PassedOverFiles, image_from_path, is_listed
from .file_names import FileKind, is_foreign, is_image_name
from .hash_set import HashSet
from .table_images import images_from_table
from .tables.reading import count_rows, is_metadata, metadata_tables


def tree_images(tree: ListableTree) -> Iterator[Listed]:
    """Images of a tree: by the metadata tables of their folder or a folder above, otherwise by folder names."""
    passed_over = PassedOverFiles()
    waiting: list[tuple[str, HashSet | None]] = [("", None)]  # folder, and the images named by the tables above
    while waiting:
        folder, named = waiting.pop()
        folders, files, not_followed = tree.list(folder)
        prefix = f"{folder}/" if folder else ""
        for reason, name in not_followed:
            _check_table(tree, prefix + name)
            passed_over.add(reason, f"{tree.path}/{prefix}{name}")
        for table in metadata_tables(files) if tree.labels else ():
            named = HashSet() if named is None else named
            yield from images_from_table(tree, folder, prefix + table, named)
        for name in files:
            inside = prefix + name
            if (named is not None and inside in named) or is_metadata(name):
                continue
            if is_listed(tree, inside, name, passed_over):
                if named is None:
                    yield image_from_path(tree, inside, *tree.locate(inside))
                else:
                    passed_over.add(NOT_NAMED, f"{tree.path}/{inside}")
        for name in reversed(folders):
            if is_foreign(name):
                passed_over.add(FileKind.foreign, f"{tree.path}/{prefix}{name}")
            else:
                waiting.append((prefix + name, named))
    yield from passed_over


def _check_table(tree: ListableTree, inside: str) -> None:
    """Raise SourceError for a metadata table that is not read: without it, the images would be labelled wrongly."""
    if tree.labels and is_metadata(posixpath.basename(inside)):
        raise SourceError(
            f"{tree.path}/{inside} is a link that leads out of its folder, and describes the images there; follow it "
            f"with --follow-links, or put a copy of the table there"
        )


def tree_count(tree: ListableTree) -> int:
    """Estimate the number of images in a tree from the lines of tables and the names of files."""
    count = 0
    waiting = [("", False)]  # folder, and whether a folder above has a table
    while waiting:
        folder, described = waiting.pop()
        folders, files, _ = tree.list(folder)
        for table in metadata_tables(files):
            described = True
            name = posixpath.join(folder, table)
            with tree.open(name) as file:
                count += count_rows(f"{tree.path}/{name}", file)
        if not described:
            count += sum(map(is_image_name, files))
        waiting += [(posixpath.join(folder, name), described) for name in folders if not is_foreign(name)]
    return count
