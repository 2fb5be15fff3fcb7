"""Rules from neutral operators to quantised ONNX operators, all channels-last.

In: an operator and the pool of tensors. Out: onnx-graphsurgeon nodes on uint8 [N, H, W, C]
(uint8 = int8 + 128). Convolution, pooling, addition and multiplication come from
``com.microsoft`` (ONNX Runtime's own domain, in its mobile packages too), because the standard
ones know no channels-last layout; the rest is standard ONNX.

Activations cost no operator: requantisation saturates to [0, 255], which IS the activation,
because quantisation puts ReLU's zero point at the lowest integer, ends ReLU6's range at 6 at
most, and gives a hard sigmoid (already scaled by 1/6 and moved by 1/2) the range [0, 1]. Only a
value that is tied to one with a wider range gets a clamp (see clamps.py).
"""

from __future__ import annotations

from math import isinf
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from patchdeploy.errors import UnsupportedOperatorError
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    MaxPool,
    Mul,
    Operator,
    Pointwise,
    SizedPadding,
)
from patchdeploy_onnx.clamps import Interval
from patchdeploy_onnx.model_file import MICROSOFT
from patchdeploy_onnx.tensors import TensorPool

Nodes = list[Any]


def write_operator(operator: Operator, pool: TensorPool) -> Nodes:
    """The nodes that compute ``operator``.

    Raises:
        UnsupportedOperatorError: an operator or a kind that has no quantised ONNX form.
    """
    match operator:
        case Conv2d():
            return _clamped(operator, _conv(operator, pool), pool)
        case Add():
            return _clamped(operator, _binary("QLinearAdd", operator, pool), pool)
        case Mul():
            return [_binary("QLinearMul", operator, pool)]
        case Concat():
            return [_concat(operator, pool)]
        case MaxPool():
            return [_max_pool(operator, pool)]
        case GlobalAvgPool():
            return [_global_pool(operator, pool)]
        case ChannelSelect():
            return [_channel_select(operator, pool)]
        case Pointwise(kind="sigmoid"):
            return [_sigmoid(operator, pool)]
        case Pointwise(kind="hard_swish"):
            return _hard_swish(operator, pool)
    raise unsupported(operator)


def unsupported(operator: object) -> UnsupportedOperatorError:
    """The error for an operator without a rule."""
    name = getattr(operator, "name", "?")
    kind = getattr(operator, "kind", type(operator).__name__)
    return UnsupportedOperatorError(
        f"operator {name!r} of kind {kind!r} has no ONNX form here; the writer knows Conv2d, "
        "Add, Mul, Concat, MaxPool, GlobalAvgPool, ChannelSelect, hard_swish and sigmoid; "
        "express the layer with these or leave this runtime out of the export"
    )


def pad_attributes(padding: SizedPadding) -> dict[str, Any]:
    """ONNX's pads are [top, left, bottom, right]; SAME_UPPER puts the odd zero behind."""
    if padding == "same":
        return {"auto_pad": "SAME_UPPER"}
    top, bottom, left, right = padding
    return {"pads": [top, left, bottom, right]}


def conv_attributes(conv: Conv2d) -> dict[str, Any]:
    """Attributes that Conv and QLinearConv share."""
    return {
        "kernel_shape": list(conv.kernel),
        "strides": list(conv.stride),
        **pad_attributes(conv.padding),
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }


def pool_attributes(pool: MaxPool) -> dict[str, Any]:
    """Attributes that MaxPool and NhwcMaxPool share."""
    return {
        "kernel_shape": list(pool.kernel),
        "strides": list(pool.stride),
        **pad_attributes(pool.padding),
        "ceil_mode": int(pool.ceil_mode),
    }


def _conv(conv: Conv2d, pool: TensorPool) -> Any:
    """QLinearConv: round half to even(acc * (x_scale * w_scale[c] / y_scale)) + y_zero_point."""
    weight_zero_point = pool.constant("weight_zero_point", np.array(0, np.int8))
    inputs = [
        pool.value(conv.input),
        *pool.params(conv.input),
        pool.kernel(conv.name),
        pool.weight_scale(conv.name),
        weight_zero_point,
        *pool.params(conv.output),
        pool.bias(conv.name),
    ]
    attributes = {**conv_attributes(conv), "channels_last": 1}
    return _node("QLinearConv", conv.name, inputs, pool.value(conv.output), attributes, MICROSOFT)


def _binary(op: str, operator: Add | Mul, pool: TensorPool) -> Any:
    """QLinearAdd or QLinearMul: each input and the output has its own scale and zero point."""
    first, second = operator.inputs
    inputs = [
        pool.value(first),
        *pool.params(first),
        pool.value(second),
        *pool.params(second),
        *pool.params(operator.output),
    ]
    return _node(op, operator.name, inputs, pool.value(operator.output), {}, MICROSOFT)


def _clamped(operator: Conv2d | Add, node: Any, pool: TensorPool) -> Nodes:
    """``node``, and where saturation is not the activation, the clamp after it."""
    interval = pool.clamped.get(operator.output)
    if interval is None:
        return [node]
    loose = pool.value(operator.output, "/loose")
    node.outputs = [loose]
    return [node, *_clamp(operator, loose, interval, pool)]


def _clamp(operator: Conv2d | Add, loose: Any, interval: Interval, pool: TensorPool) -> Nodes:
    """ReLU: integers not below the zero point. With an upper end, a clip of real numbers,
    which gives the integer clamp to [q(low), q(high)]: a code that is not clipped comes back as
    itself, because scale * k / scale is within 2 units in the last place of the integer k."""
    output, params = pool.value(operator.output), pool.params(operator.output)
    low, high = interval
    if isinf(high):
        return [_node("Clip", f"{operator.name}/clamp", [loose, params[1]], output, {})]
    real, clipped = (
        pool.value(operator.output, f"/{step}", np.float32) for step in ("real", "clipped")
    )
    ends = [pool.constant(f"real.{end:g}", np.array(end, np.float32)) for end in (low, high)]
    name = f"{operator.name}/clamp"
    return [
        _node("DequantizeLinear", f"{name}/dequantize", [loose, *params], real, {}),
        _node("Clip", name, [real, *ends], clipped, {}),
        _node("QuantizeLinear", f"{name}/quantize", [clipped, *params], output, {}),
    ]


def _concat(concat: Concat, pool: TensorPool) -> Any:
    """Plain Concat of integers: inputs and output are one activation site."""
    inputs = [pool.value(value) for value in concat.inputs]
    return _node("Concat", concat.name, inputs, pool.value(concat.output), {"axis": 3})


def _max_pool(window: MaxPool, pool: TensorPool) -> Any:
    """Maximum of integers; padding is the lowest integer, which never wins."""
    inputs, output = [pool.value(window.input)], pool.value(window.output)
    return _node("NhwcMaxPool", window.name, inputs, output, pool_attributes(window), MICROSOFT)


def _global_pool(mean: GlobalAvgPool, pool: TensorPool) -> Any:
    inputs = [pool.value(mean.input), *pool.params(mean.input), *pool.params(mean.output)]
    output, attributes = pool.value(mean.output), {"channels_last": 1}
    op = "QLinearGlobalAveragePool"
    return _node(op, mean.name, inputs, output, attributes, MICROSOFT)


def _channel_select(select: ChannelSelect, pool: TensorPool) -> Any:
    """Slice where the channels are neighbours, else Gather."""
    source, output = pool.value(select.input), pool.value(select.output)
    if not select.is_contiguous:
        indices = pool.constant(f"{select.name}.indices", np.array(select.indices, np.int64))
        return _node("Gather", select.name, [source, indices], output, {"axis": 3})
    bounds = {"starts": select.indices[0], "ends": select.indices[-1] + 1, "axes": 3}
    inputs = [
        pool.constant(f"{select.name}.{key}", np.array([bound], np.int64))
        for key, bound in bounds.items()
    ]
    return _node("Slice", select.name, [source, *inputs], output, {})


def _sigmoid(sigmoid: Pointwise, pool: TensorPool) -> Any:
    inputs = [pool.value(sigmoid.input), *pool.params(sigmoid.input), *pool.params(sigmoid.output)]
    output = pool.value(sigmoid.output)
    return _node("QLinearSigmoid", sigmoid.name, inputs, output, {}, MICROSOFT)


def _hard_swish(swish: Pointwise, pool: TensorPool) -> Nodes:
    """x * clip(x / 6 + 1/2, 0, 1) in float32 between DequantizeLinear and QuantizeLinear.

    HardSwish itself is an operator of opset 14 that ORT's mobile packages lack; HardSigmoid
    and Mul are in all of them.
    """
    steps = [
        pool.value(swish.output, f"/{step}", np.float32) for step in ("real", "gate", "product")
    ]
    real, gate, product = steps
    dequantize = [pool.value(swish.input), *pool.params(swish.input)]
    quantize = [product, *pool.params(swish.output)]
    return [
        _node("DequantizeLinear", f"{swish.name}/dequantize", dequantize, real, {}),
        _node("HardSigmoid", f"{swish.name}/gate", [real], gate, {"alpha": 1 / 6, "beta": 0.5}),
        _node("Mul", f"{swish.name}/product", [real, gate], product, {}),
        _node("QuantizeLinear", swish.name, quantize, pool.value(swish.output), {}),
    ]


def _node(
    op: str,
    name: str,
    inputs: list[Any],
    output: Any,
    attributes: dict[str, Any],
    domain: str | None = None,
) -> Any:
    return gs.Node(op, name, attributes, inputs, [output], domain)
