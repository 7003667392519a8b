"""Random samples of a listing: with images of every source and both classes, or uniform."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence

from .sources.image_ref import ImageRef

Drawn = tuple[int, int, ImageRef]  # negative random number of the key, position in the listing, image


def sampled(images: Iterable[ImageRef], limit: int, seed: int) -> Iterator[ImageRef]:
    """Draw `limit` images, as evenly from all sources and labels as their numbers allow, in the order of the listing.

    Whether an image is drawn depends on its key and the seed, so that a run that is repeated draws the same images.
    About twice `limit` references are held.
    """
    groups: dict[tuple[str, int], list[Drawn]] = {}  # (source, label) -> heap of the images with the smallest numbers
    held, keep = 0, limit + 1
    for position, ref in enumerate(images):
        group = groups.setdefault((ref.source, ref.label), [])
        drawn = (-_random_number(ref.key, seed), position, ref)
        if len(group) >= keep:
            heapq.heapreplace(group, drawn) if drawn > group[0] else None
            continue
        heapq.heappush(group, drawn)
        held += 1
        if held >= 2 * (limit + len(groups)):
            keep = share([len(group) for group in groups.values()], limit) + 1  # it can only become smaller
            for name, group in groups.items():
                groups[name] = heapq.nlargest(keep, group)[::-1]  # sorted, which is a heap
            held = sum(map(len, groups.values()))
    most = share([len(group) for group in groups.values()], limit)
    by_number = [sorted(group, reverse=True) for group in groups.values()]
    chosen = [drawn for group in by_number for drawn in group[:most]]
    extra = sorted((group[most] for group in by_number if len(group) > most), reverse=True)
    chosen += extra[: limit - len(chosen)]
    yield from (ref for _, _, ref in sorted(chosen, key=lambda drawn: drawn[1]))


def drawn_uniformly(images: Iterable[ImageRef], number: int, seed: int) -> list[ImageRef]:
    """Draw `number` images, each with the same chance, in the order of the listing.

    Whether an image is drawn depends on its key, the other keys and the seed.
    """
    numbered = ((_random_number(ref.key, seed), position, ref) for position, ref in enumerate(images))
    smallest = heapq.nsmallest(number, numbered, key=lambda drawn: drawn[:2])
    return [ref for _, _, ref in sorted(smallest, key=lambda drawn: drawn[1])]


def share(sizes: Sequence[int], limit: int) -> int:
    """Largest number of images that every group may give, of those it has, so that there are at most `limit`.

    >>> share([2, 100, 100], 10), share([1, 1], 10), share([5, 5, 5], 2)
    (4, 10, 0)
    """
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(size, middle) for size in sizes) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def _random_number(key: str, seed: int) -> int:
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=seed.to_bytes(16, "little", signed=True)).digest()
    return int.from_bytes(digest, "little")
