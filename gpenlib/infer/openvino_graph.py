"""Graph changes that hold for one batch size only, made when OpenVINO loads a file.

The files keep an open batch; OpenVINO is given a graph of fixed shape anyway (static shapes run faster).
"""

from __future__ import annotations

from typing import Any

from gpenlib.images import RGB_CHANNELS


def scale_rgb_weights(model: Any) -> int:
    """Let the style scale the weights of ToRGB layers instead of their input, in place.

    ``conv(style * x, w) = conv(x, style * w)`` for one image: the style then multiplies 3 C numbers and not
    C H W, which saves reading and writing the largest maps once more. With several images each would need
    weights of its own. Layers with more outputs are left alone: OpenVINO prepares their weights once, when it
    compiles, and can do so for constants only.

    Parameters
    ----------
    model : openvino.Model
        Of fixed shape.

    Returns
    -------
    int
        Number of convolutions changed; none unless the batch size is 1.
    """
    from openvino import opset13

    changed = 0
    for node in model.get_ordered_ops():
        found = _scaled_rgb_input(node)
        if found is None:
            continue
        data, style = found
        weights = opset13.multiply(node.input_value(1), style)
        node.input(0).replace_source_output(data)
        node.input(1).replace_source_output(weights.output(0))
        changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _scaled_rgb_input(node: Any) -> tuple[Any, Any] | None:
    """Return map and style of a ToRGB convolution on a scaled map of one image."""
    if node.get_type_name() != "Convolution" or node.input_value(1).get_shape()[0] != RGB_CHANNELS:
        return None
    scale = node.input_value(0).get_node()
    if scale.get_type_name() != "Multiply":
        return None
    shape = list(node.input_value(0).get_shape())
    inputs = [scale.input_value(0), scale.input_value(1)]
    for data, style in (inputs, inputs[::-1]):
        if list(data.get_shape()) == shape and list(style.get_shape()) == [1, shape[1], 1, 1]:
            return data, style
    return None
