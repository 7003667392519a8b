"""8-bit products in an OpenVINO graph: weights rounded once, activations as they come. No calibration set is needed.

Each output channel's weights are stored as 8-bit numbers with a scale and a zero point. OpenVINO then rounds the
activations of each row too, in groups with a scale of their own, so that an image's vector does not depend on what it
shared a batch with. It does so for matrix products; 1 x 1 convolutions are made ones, others stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 128  # activations that share a scale; 64 costs 7 % of speed and gives 0.002 of centred cosine
SCHEME = f"int8: weights u8 by output channel, activations in groups of {GROUP}"  # part of the space's fingerprint
OPTIONS: Mapping[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP}
CHECK = (
    "int8 was your choice: its vectors are a space of their own and a little less exact. What that costs a head is "
    "told by: clipfake bench --only int8 --folders FOLDER --encoder NAME"
)


def quantise(model: Any) -> int:
    """Round the constant weights of the graph's products, in place; returns how many products there are."""
    found = 0
    for node in model.get_ordered_ops():
        if _is_pointwise(node):
            node = _as_product(node)
        if node.get_type_name() == "MatMul" and _has_weights(node) and node.get_attributes()["transpose_b"]:
            node.input(1).replace_source_output(_rounded(node.input_value(1).get_node().data).output(0))
            found += 1
    return found


def rounded(weights: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """(out, in) float32 as uint8 of the same shape, with a zero point (out, 1) and a float32 scale (out, 1).

    >>> values, zero, scale = rounded(np.array([[-1.0, 0.0, 4.0]], np.float32))
    >>> ((values.astype(np.float32) - zero) * scale).round(1).tolist()
    [[-1.0, 0.0, 4.0]]
    """
    low = np.minimum(weights.min(1, keepdims=True), 0)  # 0 stays 0
    high = np.maximum(weights.max(1, keepdims=True), 0)
    scale = np.where(high > low, (high - low) / 254, 1).astype(np.float32)  # 254: both ends may round outwards
    zero = np.round(-low / scale)
    values = np.clip(np.round(weights / scale) + zero, 0, 255)
    return values.astype(np.uint8), zero.astype(np.uint8), scale


def _rounded(weights: npt.NDArray[np.float32]) -> Any:
    """The constant as the pattern that OpenVINO takes for 8-bit weights: (values - zero point) * scale."""
    from openvino import opset13 as op

    values, zero, scale = rounded(weights)
    whole = op.subtract(op.convert(op.constant(values), np.float32), op.convert(op.constant(zero), np.float32))
    return op.multiply(whole, op.constant(scale))


def _has_weights(node: Any) -> bool:
    return bool(node.input_value(1).get_node().get_type_name() == "Constant")


def _is_pointwise(node: Any) -> bool:
    """True for a convolution of single pixels: a product of (pixels, channels) with its weights."""
    if node.get_type_name() != "Convolution" or not _has_weights(node):
        return False
    attributes, shape = node.get_attributes(), list(node.input_value(1).get_shape())
    still = not any([*attributes["pads_begin"], *attributes["pads_end"]]) and set(attributes["strides"]) == {1}
    return len(shape) == 4 and shape[2:] == [1, 1] and still


def _as_product(convolution: Any) -> Any:
    """Put a product of the channels in the convolution's place; returns it."""
    from openvino import opset13 as op

    weights = convolution.input_value(1).get_node().data[:, :, 0, 0]
    channels_last = op.transpose(convolution.input_value(0), np.array([0, 2, 3, 1]))
    product = op.matmul(channels_last, op.constant(weights), False, True)
    back = op.transpose(product, np.array([0, 3, 1, 2]))
    for reader in convolution.output(0).get_target_inputs():
        reader.replace_source_output(back.output(0))
    return product
