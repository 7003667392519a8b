"""Quantise an OpenVINO graph to int8: static weights, dynamic activations, no calibration set.

The weights of each output channel are stored as 8-bit integers with a scale and a zero point. OpenVINO then quantises
the activations of each row, in groups with one scale each, so that an image's vector does not depend on the other
images in its batch. Only matrix products are quantised: 1 x 1 convolutions are converted to them, other convolutions
stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 128  # activations that share a scale; 64 is 7 % slower and raises the centred cosine by 0.002
SCHEME = f"int8: weights u8 by output channel, activations in groups of {GROUP}"  # part of the space's fingerprint
OPTIONS: Mapping[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP}
ACCURACY_NOTE = (
    "int8 vectors are slightly less accurate than float32 vectors and form a separate space. To measure the effect on "
    "a head, run: clipfake bench --only int8 --folders FOLDER --encoder NAME"
)


def quantise_graph(model: Any) -> int:
    """Quantise the constant weights of the graph's matrix products in place; return the number of products."""
    count = 0
    for node in model.get_ordered_ops():
        if _is_pointwise(node):
            node = _as_product(node)
        if node.get_type_name() == "MatMul" and _has_weights(node) and node.get_attributes()["transpose_b"]:
            node.input(1).replace_source_output(_dequantised_constant(node.input_value(1).get_node().data).output(0))
            count += 1
    return count


def quantise_weights(weights: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Quantise (out, in) float32 weights to uint8 values, with uint8 zero points (out, 1) and float32 scales (out, 1).

    >>> values, zero, scale = quantise_weights(np.array([[-1.0, 0.0, 4.0]], np.float32))
    >>> ((values.astype(np.float32) - zero) * scale).round(1).tolist()
    [[-1.0, 0.0, 4.0]]
    """
    low = np.minimum(weights.min(1, keepdims=True), 0)  # so that 0 is represented exactly
    high = np.maximum(weights.max(1, keepdims=True), 0)
    scale = np.where(high > low, (high - low) / 254, 1).astype(np.float32)  # 254, not 255: both ends may round outwards
    zero = np.round(-low / scale)
    values = np.clip(np.round(weights / scale) + zero, 0, 255)
    return values.astype(np.uint8), zero.astype(np.uint8), scale


def _dequantised_constant(weights: npt.NDArray[np.float32]) -> Any:
    """Build the subgraph that OpenVINO recognises as 8-bit weights: (values - zero point) * scale."""
    from openvino import opset13 as op

    values, zero, scale = quantise_weights(weights)
    centred = op.subtract(op.convert(op.constant(values), np.float32), op.convert(op.constant(zero), np.float32))
    return op.multiply(centred, op.constant(scale))


def _has_weights(node: Any) -> bool:
    return bool(node.input_value(1).get_node().get_type_name() == "Constant")


def _is_pointwise(node: Any) -> bool:
    """True for a 1 x 1 convolution without padding or stride: a matrix product over the channels."""
    if node.get_type_name() != "Convolution" or not _has_weights(node):
        return False
    attributes, shape = node.get_attributes(), list(node.input_value(1).get_shape())
    unpadded = not any([*attributes["pads_begin"], *attributes["pads_end"]])
    return len(shape) == 4 and shape[2:] == [1, 1] and unpadded and set(attributes["strides"]) == {1}


def _as_product(convolution: Any) -> Any:
    """Replace a 1 x 1 convolution by a matrix product over the channels; return the product."""
    from openvino import opset13 as op

    weights = convolution.input_value(1).get_node().data[:, :, 0, 0]
    channels_last = op.transpose(convolution.input_value(0), np.array([0, 2, 3, 1]))
    product = op.matmul(channels_last, op.constant(weights), False, True)
    channels_first = op.transpose(product, np.array([0, 3, 1, 2]))
    for consumer in convolution.output(0).get_target_inputs():
        consumer.replace_source_output(channels_first.output(0))
    return product
