"""Triton kernels for a batch of images of any sizes: resize and normalise in one pass, and reduce for thumbnails.

Both use Pillow's integer arithmetic and give exactly Pillow's pixels. Triton is installed with torch for CUDA; this
module is imported only if it is present. `batch_input.py` packs the batches and documents the fields of `meta`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 512  # pixels or values per program
BITS = tl.constexpr(22)  # fractional bits of the weights, as in ../resize.py
HALF = tl.constexpr(2**21)
WHOLE = tl.constexpr(2**24)
ALIGN = tl.constexpr(16)  # bytes, as in batch_input.py


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator]
def _resize(  # type: ignore[no-untyped-def]  # Triton takes annotations for globals and fails
    bytes_ptr,
    meta_ptr,
    tables_ptr,
    scale_ptr,
    out_ptr,
    height,
    width,
    BLOCK: tl.constexpr,
) -> None:
    image = tl.program_id(0)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < height * width
    y, x = index // width, index % width
    row = meta_ptr + image * 8
    source = bytes_ptr + tl.load(row).to(tl.int64) * ALIGN
    old_height, old_width = tl.load(row + 1), tl.load(row + 2)
    x_table, x_taps = tl.load(row + 3), tl.load(row + 4)
    y_table, y_taps = tl.load(row + 5), tl.load(row + 6)
    height_first = tl.load(row + 7) != 0
    # as in Pillow, the inner axis is resampled first and rounded to 8 bits before the outer one
    inner, outer = tl.where(height_first, y, x), tl.where(height_first, x, y)
    inner_new, outer_new = tl.where(height_first, height, width), tl.where(height_first, width, height)
    inner_table, outer_table = tl.where(height_first, y_table, x_table), tl.where(height_first, x_table, y_table)
    inner_taps, outer_taps = tl.where(height_first, y_taps, x_taps), tl.where(height_first, x_taps, y_taps)
    inner_last = tl.where(height_first, old_height, old_width) - 1
    outer_last = tl.where(height_first, old_width, old_height) - 1
    inner_stride = tl.where(height_first, old_width * 3, 3)
    outer_stride = tl.where(height_first, 3, old_width * 3)
    inner_first = tl.load(tables_ptr + inner_table + inner, mask=inside, other=0)
    outer_first = tl.load(tables_ptr + outer_table + outer, mask=inside, other=0)
    inner_weights = tables_ptr + inner_table + inner_new + inner * inner_taps
    outer_weights = tables_ptr + outer_table + outer_new + outer * outer_taps
    half = tl.full((BLOCK,), HALF, tl.int32)
    red, green, blue = half, half, half
    for j in range(outer_taps):
        outer_weight = tl.load(outer_weights + j, mask=inside, other=0)
        line = source + tl.minimum(outer_first + j, outer_last) * outer_stride
        red_in, green_in, blue_in = half, half, half
        for i in range(inner_taps):
            weight = tl.load(inner_weights + i, mask=inside, other=0)
            pixel = line + tl.minimum(inner_first + i, inner_last) * inner_stride
            red_in += tl.load(pixel, mask=inside, other=0).to(tl.int32) * weight
            green_in += tl.load(pixel + 1, mask=inside, other=0).to(tl.int32) * weight
            blue_in += tl.load(pixel + 2, mask=inside, other=0).to(tl.int32) * weight
        red += tl.minimum(tl.maximum(red_in >> BITS, 0), 255) * outer_weight
        green += tl.minimum(tl.maximum(green_in >> BITS, 0), 255) * outer_weight
        blue += tl.minimum(tl.maximum(blue_in >> BITS, 0), 255) * outer_weight
    plane = out_ptr + image.to(tl.int64) * 3 * height * width + index
    kind = out_ptr.dtype.element_ty
    red = tl.minimum(tl.maximum(red >> BITS, 0), 255).to(tl.float32)
    green = tl.minimum(tl.maximum(green >> BITS, 0), 255).to(tl.float32)
    blue = tl.minimum(tl.maximum(blue >> BITS, 0), 255).to(tl.float32)
    red = red * tl.load(scale_ptr) + tl.load(scale_ptr + 3)
    green = green * tl.load(scale_ptr + 1) + tl.load(scale_ptr + 4)
    blue = blue * tl.load(scale_ptr + 2) + tl.load(scale_ptr + 5)
    tl.store(plane, red.to(kind), mask=inside)
    tl.store(plane + height * width, green.to(kind), mask=inside)
    tl.store(plane + 2 * height * width, blue.to(kind), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _reduce(bytes_ptr, meta_ptr, out_ptr, BLOCK: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    image = tl.program_id(0)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = meta_ptr + image * 8
    source = bytes_ptr + tl.load(row).to(tl.int64) * ALIGN
    old_height, old_width, factor = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    target = out_ptr + tl.load(row + 4).to(tl.int64) * ALIGN
    height, width = (old_height + factor - 1) // factor, (old_width + factor - 1) // factor
    inside = index < height * width * 3
    channel, x, y = index % 3, index // 3 % width, index // 3 // width
    total = tl.zeros((BLOCK,), tl.int32)
    count = tl.zeros((BLOCK,), tl.int32)
    for j in range(factor):
        for i in range(factor):
            old_y, old_x = y * factor + j, x * factor + i
            there = inside & (old_y < old_height) & (old_x < old_width)
            pixel = source + (old_y * old_width + old_x) * 3 + channel
            total += tl.load(pixel, mask=there, other=0).to(tl.int32)
            count += there.to(tl.int32)
    count = tl.maximum(count, 1)
    mean = ((total + count // 2).to(tl.int64) * (tl.full((BLOCK,), WHOLE, tl.int32) // count).to(tl.int64)) >> 24
    tl.store(target + index, mean.to(tl.uint8), mask=inside)


def resize(
    buffer: torch.Tensor, meta: torch.Tensor, tables: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
) -> None:
    """Fill `out` (n, 3, height, width) with the resized and normalised images of a packed batch."""
    n, _, height, width = out.shape
    _resize[(n, triton.cdiv(height * width, BLOCK))](buffer, meta, tables, scale, out, height, width, BLOCK)


def reduce(buffer: torch.Tensor, meta: torch.Tensor, out: torch.Tensor, largest: int) -> None:
    """Fill `out` (bytes,) uint8 with the reduced images of a packed batch, of at most `largest` values each."""
    _reduce[(len(meta), triton.cdiv(largest, BLOCK))](buffer, meta, out, BLOCK)
