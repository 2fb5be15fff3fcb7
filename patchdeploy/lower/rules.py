"""Which rule lowers which operator of the exported network.

`RULES` is keyed by the ATen operator's name without overload and without the in-place
underscore; a rule takes the builder and the call and returns what the call computes.
"""

from __future__ import annotations

from patchdeploy.lower.builder import Rule
from patchdeploy.lower.elementwise import (
    activation,
    add,
    clamp,
    divide,
    multiply,
    pointwise,
    silu,
    subtract,
    subtract_reversed,
)
from patchdeploy.lower.layers import (
    adaptive_average_pool,
    average_pool,
    batch_norm,
    concatenate,
    convolve,
    linear,
    max_pool,
    mean,
    pad,
)
from patchdeploy.lower.views import (
    keep,
    permute,
    reshape,
    select_channel,
    slice_channels,
    split,
    take_item,
)

RULES: dict[str, Rule] = {
    "conv2d": convolve,
    "convolution": convolve,
    "linear": linear,
    "batch_norm": batch_norm,
    "pad": pad,
    "constant_pad_nd": pad,
    "relu": activation("relu"),
    "relu6": activation("relu6"),
    "hardtanh": clamp,
    "clamp": clamp,
    "clamp_min": clamp,
    "hardsigmoid": activation("hard_sigmoid"),
    "hardswish": pointwise("hard_swish"),
    "sigmoid": pointwise("sigmoid"),
    "silu": silu,
    "add": add,
    "sub": subtract,
    "rsub": subtract_reversed,
    "mul": multiply,
    "div": divide,
    "cat": concatenate,
    "max_pool2d": max_pool,
    "avg_pool2d": average_pool,
    "adaptive_avg_pool2d": adaptive_average_pool,
    "mean": mean,
    "flatten": reshape,
    "view": reshape,
    "reshape": reshape,
    "squeeze": reshape,
    "unsqueeze": reshape,
    "transpose": permute,
    "permute": permute,
    "slice": slice_channels,
    "select": select_channel,
    "chunk": split,
    "split": split,
    "split_with_sizes": split,
    "getitem": take_item,
    "dropout": keep,
    "feature_dropout": keep,
    "alpha_dropout": keep,
    "clone": keep,
    "contiguous": keep,
    "detach": keep,
    "alias": keep,
}

VIEWS = frozenset(
    name
    for name, rule in RULES.items()
    if rule in (reshape, permute, slice_channels, select_channel, split, take_item, keep)
    and name != "clone"
)
"""Operators whose result shares memory with their input."""

NEAREST = {
    "softmax": "a network that ends with its logits (the runtime applies softmax)",
    "log_softmax": "a network that ends with its logits (the runtime applies softmax)",
    "gelu": "hardswish",
    "elu": "relu",
    "leaky_relu": "relu",
    "prelu": "relu",
    "mish": "hardswish",
    "tanh": "sigmoid",
    "layer_norm": "batch_norm",
    "group_norm": "batch_norm",
    "instance_norm": "batch_norm",
    "adaptive_max_pool2d": "adaptive_avg_pool2d(1) or max_pool2d",
    "conv_transpose2d": "conv2d",
    "conv1d": "conv2d",
    "conv3d": "conv2d",
    "matmul": "linear",
    "addmm": "linear",
    "scaled_dot_product_attention": "squeeze-excitation (a global mean, two convolutions, mul)",
    "expand": "mul without it: [N, C, 1, 1] spreads over a map by itself",
    "expand_as": "mul without it: [N, C, 1, 1] spreads over a map by itself",
    "upsample_bilinear2d": "an input that is resized before the network",
    "upsample_nearest2d": "an input that is resized before the network",
}
"""What to use instead, for operators that networks are known to have and that have no rule."""

SUPPORTED = (
    "one of convolution, linear, batch norm, relu, relu6, hardswish, hardsigmoid, sigmoid, silu, "
    "add, mul, cat, pooling, and reshapes of channels"
)
"""The nearest form for every other operator."""
