"""Small hand-made quantised graphs with random numbers: what both writers are tested on.

In: a case name and a seed. Out: a Graph, its QuantizedBase and QuantizedVariants whose scales
are chosen so that every output spreads over the int8 range (no executor is needed for that).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchdeploy.data import Preprocessing
from patchdeploy.graph import (
    Activation,
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    MaxPool,
    Mul,
    Operator,
    Pointwise,
    tied_values,
)
from patchdeploy.quantize.model import (
    SIGMOID_SCALE,
    ActivationParams,
    QuantizedBase,
    QuantizedVariant,
)

CLASSES = 7
CAPACITY = 10
INPUT_ZERO_POINT = -5  # zero padding stands for pixel value 123


@dataclass
class GraphBuilder:
    """Collects operators; every method returns the name of the value that it wrote."""

    operators: list[Operator] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=lambda: {"image": 3})

    def add_operator(self, operator: Operator, channels: int) -> str:
        self.operators.append(operator)
        self.channels[operator.output] = channels
        return operator.output

    def conv(
        self,
        value: str,
        name: str,
        out: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
        dilation: int = 1,
        activation: Activation = "none",
    ) -> str:
        size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        operator = Conv2d(
            name=name,
            input=value,
            output=f"{name}:out",
            weight=f"{name}.weight",
            bias=f"{name}.bias",
            in_channels=self.channels[value],
            out_channels=out,
            kernel=size,
            groups=groups,
            stride=(stride, stride),
            padding=padding,
            dilation=(dilation, dilation),
            activation=activation,
        )
        return self.add_operator(operator, out)

    def depthwise(self, value: str, name: str, multiplier: int = 1, **options: Any) -> str:
        channels = self.channels[value]
        return self.conv(value, name, channels * multiplier, groups=channels, **options)

    def pointwise(self, value: str, name: str, kind: Any) -> str:
        operator = Pointwise(name, value, f"{name}:out", kind)
        return self.add_operator(operator, self.channels[value])

    def add(self, first: str, second: str, name: str, activation: Activation = "none") -> str:
        operator = Add(name, (first, second), f"{name}:out", activation)
        return self.add_operator(operator, self.channels[first])

    def mul(self, first: str, second: str, name: str) -> str:
        operator = Mul(name, (first, second), f"{name}:out")
        return self.add_operator(operator, self.channels[first])

    def concat(self, values: Sequence[str], name: str) -> str:
        operator = Concat(name, tuple(values), f"{name}:out")
        return self.add_operator(operator, sum(self.channels[value] for value in values))

    def max_pool(
        self,
        value: str,
        name: str,
        kernel: int,
        stride: int,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        ceil_mode: bool = False,
    ) -> str:
        operator = MaxPool(
            name, value, f"{name}:out", (kernel, kernel), (stride, stride), padding, ceil_mode
        )
        return self.add_operator(operator, self.channels[value])

    def global_pool(self, value: str, name: str) -> str:
        return self.add_operator(GlobalAvgPool(name, value, f"{name}:out"), self.channels[value])

    def select(self, value: str, name: str, indices: Sequence[int]) -> str:
        operator = ChannelSelect(name, value, f"{name}:out", tuple(indices))
        return self.add_operator(operator, len(indices))

    def finish(self, value: str, name: str, classes: int = CLASSES) -> Graph:
        """A global pool and a head of ``classes`` rows after ``value``."""
        pooled = self.global_pool(value, "pool")
        output = self.conv(pooled, "head", classes)
        rng = np.random.default_rng(len(self.operators))
        parameters: dict[str, Any] = {}
        for operator in self.operators:
            if isinstance(operator, Conv2d):
                inner = operator.in_channels // operator.groups
                shape = (operator.out_channels, inner, *operator.kernel)
                fan = math.sqrt(math.prod(shape[1:]))
                parameters[operator.weight] = (rng.standard_normal(shape) / fan).astype(np.float32)
                parameters[operator.bias] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
        return Graph(
            name=name,
            base_sha256=f"{len(self.operators):064x}",
            preprocessing=Preprocessing(),
            input="image",
            output=output,
            head="head",
            operators=tuple(self.operators),
            channels=dict(self.channels),
            parameters=parameters,
        )


def conv_stack() -> Graph:
    """MobileNetV2's pieces: stride 2 with PyTorch's padding, depthwise, pointwise."""
    g = GraphBuilder()
    x = g.conv("image", "stem", 8, 3, 2, (1, 1, 1, 1), activation="relu6")
    x = g.depthwise(x, "dw1", kernel=3, padding=(1, 1, 1, 1), activation="relu6")
    x = g.conv(x, "project", 12)
    x = g.conv(x, "expand", 24, activation="relu")
    x = g.depthwise(x, "dw2", kernel=3, stride=2, padding=(1, 1, 1, 1), activation="relu6")
    x = g.conv(x, "last", 16, activation="relu6")
    return g.finish(x, "conv_stack")


def residual() -> Graph:
    g = GraphBuilder()
    x = g.conv("image", "stem", 8, 3, 2, (1, 1, 1, 1), activation="relu")
    y = g.conv(x, "branch", 8, 3, 1, (1, 1, 1, 1))
    x = g.add(x, y, "add_relu", "relu")
    y = g.conv(x, "branch2", 8)
    x = g.add(y, x, "add_relu6", "relu6")
    y = g.conv(x, "branch3", 8)
    x = g.add(y, x, "add_plain")
    return g.finish(x, "residual")


def squeeze_excitation() -> Graph:
    g = GraphBuilder()
    x = g.conv("image", "stem", 8, 3, 2, (1, 1, 1, 1))
    x = g.pointwise(x, "swish", "hard_swish")
    s = g.global_pool(x, "squeeze")
    s = g.conv(s, "fc1", 4, activation="relu")
    s = g.conv(s, "fc2", 8, activation="hard_sigmoid")
    x = g.mul(x, s, "scale")
    y = g.conv(x, "gate", 8)
    s = g.pointwise(y, "sigmoid", "sigmoid")
    x = g.mul(y, s, "silu")
    return g.finish(x, "squeeze_excitation")


def branches() -> Graph:
    """Concatenation, channel split and shuffle, max pooling with padding and ceil mode."""
    g = GraphBuilder()
    x = g.conv("image", "stem", 8, 3, 1, (1, 1, 1, 1), activation="relu")
    x = g.max_pool(x, "pool1", 3, 2, (1, 1, 1, 1))
    left = g.select(x, "left", range(4))
    right = g.select(x, "right", range(4, 8))
    right = g.conv(right, "mix", 4, 3, 1, (1, 1, 1, 1))
    x = g.concat((left, right), "concat")
    x = g.select(x, "shuffle", [0, 4, 1, 5, 2, 6, 3, 7])
    x = g.max_pool(x, "pool2", 3, 2, (1, 1, 1, 1), ceil_mode=True)
    y = g.conv(x, "after", 8, activation="relu")
    y = g.max_pool(y, "pool3", 2, 2)
    return g.finish(y, "branches")


def grouped_dilated() -> Graph:
    g = GraphBuilder()
    x = g.conv("image", "stem", 8, 3, 2, (1, 1, 1, 1), activation="relu")
    x = g.conv(x, "grouped", 12, 3, 1, (1, 1, 1, 1), groups=4, activation="relu6")
    x = g.conv(x, "dilated", 8, 3, 1, (2, 2, 2, 2), dilation=2, activation="relu")
    x = g.depthwise(x, "multiplied", multiplier=2, kernel=3, padding=(1, 1, 1, 1))
    x = g.depthwise(x, "dilated_dw", kernel=3, padding=(2, 2, 2, 2), dilation=2)
    return g.finish(x, "grouped_dilated")


def asymmetric_padding() -> Graph:
    """TensorFlow's bottom/right padding, odd kernels, padding that no SAME expresses."""
    g = GraphBuilder()
    x = g.conv("image", "stem", 8, 3, 2, (0, 1, 0, 1), activation="relu6")
    x = g.depthwise(x, "dw", kernel=5, stride=2, padding=(1, 2, 1, 2), activation="relu")
    x = g.conv(x, "wide", 8, (1, 5), 1, (0, 0, 2, 2))
    x = g.conv(x, "one_sided", 8, 3, 1, (2, 0, 0, 2))
    x = g.conv(x, "excess", 6, 1, 1, (1, 1, 1, 1))
    return g.finish(x, "asymmetric_padding")


GRAPH_CASES: dict[str, Callable[[], Graph]] = {
    "conv_stack": conv_stack,
    "residual": residual,
    "squeeze_excitation": squeeze_excitation,
    "branches": branches,
    "grouped_dilated": grouped_dilated,
    "asymmetric_padding": asymmetric_padding,
}
CONV_ONLY_CASES = ("conv_stack", "grouped_dilated", "asymmetric_padding")
"""Cases whose only other operator is the global pool before the head."""


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""expansion, channels, repeats, stride: MobileNetV2 1.0 (arXiv 1801.04381, table 2)."""


def mobilenet_v2(classes: int = 1000) -> Graph:
    """MobileNetV2 1.0's structure as torchvision pads it; 17,056 channels before the head."""
    g = GraphBuilder()
    ones = (1, 1, 1, 1)
    x = g.conv("image", "stem", 32, 3, 2, ones, activation="relu6")
    for stage, (expansion, channels, repeats, first_stride) in enumerate(MOBILENET_V2):
        for block in range(repeats):
            name, before = f"features.{stage}.{block}", x
            stride = first_stride if block == 0 else 1
            if expansion > 1:
                wide = g.channels[x] * expansion
                x = g.conv(x, f"{name}.expand", wide, activation="relu6")
            x = g.depthwise(
                x, f"{name}.dw", kernel=3, stride=stride, padding=ones, activation="relu6"
            )
            x = g.conv(x, f"{name}.project", channels)
            if stride == 1 and g.channels[before] == channels:
                x = g.add(before, x, f"{name}.add")
    x = g.conv(x, "last", 1280, activation="relu6")
    return g.finish(x, "mobilenet_v2", classes)


def make_base(
    graph: Graph, seed: int = 0, patch_owned: Sequence[str] = (), capacity: int = CAPACITY
) -> QuantizedBase:
    """Random int8 kernels in [-127, 127] and positive scales; the head padded to ``capacity``."""
    rng = np.random.default_rng(seed)
    weights, scales = {}, {}
    owned = frozenset((*patch_owned, graph.head))
    for conv in graph.convolutions():
        rows = capacity if conv.name == graph.head else conv.out_channels
        shape = (rows, *conv.kernel, conv.in_channels // conv.groups)
        kernel = rng.integers(-127, 128, shape, np.int8)
        weights[conv.name] = np.zeros_like(kernel) if conv.name in owned else kernel
        scales[conv.name] = rng.uniform(0.002, 0.02, rows).astype(np.float32)
    return QuantizedBase(graph, weights, scales, owned, capacity, INPUT_ZERO_POINT)


def make_variant(
    base: QuantizedBase, resolution: int, seed: int, classes: int = CLASSES
) -> QuantizedVariant:
    """Random slot values: multipliers that spread outputs over int8, the head's spare rows masked.

    An activation has about 60 LSB of spread, a kernel element 73; a channel of K taps then sums
    to about 60 * 73 * sqrt(K), and its multiplier brings that to 20 to 60 LSB.
    """
    rng = np.random.default_rng((seed, resolution))
    activations = _activations(base, rng)
    ties = tied_values(base.graph)
    weight_scale, bias, weights = {}, {}, {}
    for conv in base.graph.convolutions():
        x, y = activations[ties[conv.input]], activations[ties[conv.output]]
        shape = base.weights[conv.name].shape
        spread = 60 * 73 * math.sqrt(math.prod(shape[1:]))
        multiplier = rng.uniform(20, 60, shape[0]) / spread
        scale = (multiplier * float(y.scale) / float(x.scale)).astype(np.float32)
        shift = np.rint(rng.uniform(-60, 60, shape[0]) / multiplier).astype(np.int32)
        if conv.name in base.patch_owned:
            kernel = rng.integers(-127, 128, shape, np.int8)
            if conv.name == base.graph.head:
                kernel[classes:] = 0
                scale[classes:] = np.float32(y.scale / x.scale / np.float32(256))
                shift[classes:] = -131072
            weights[conv.name] = kernel
        weight_scale[conv.name], bias[conv.name] = scale, shift
    return QuantizedVariant(f"task{seed}", resolution, activations, weight_scale, bias, weights)


def _activations(base: QuantizedBase, rng: np.random.Generator) -> dict[str, ActivationParams]:
    graph = base.graph
    ties = tied_values(graph)
    params = {
        site: ActivationParams(np.float32(rng.uniform(0.02, 0.05)), int(rng.integers(-20, 21)))
        for site in base.activation_sites()
    }
    for value in graph.channels:
        operator = graph.producer(value)
        site = ties[value]
        drawn = np.float32(rng.uniform(0.018, 6 / 255))
        before = params[ties[operator.inputs[0]]] if operator else None
        if operator is None:
            params[site] = ActivationParams(np.float32(1.0), base.input_zero_point)
        elif isinstance(operator, Pointwise) and operator.kind == "sigmoid":
            params[site] = ActivationParams(SIGMOID_SCALE, -128)
        elif isinstance(operator, Pointwise) and before is not None:
            lowest = round(0.375 / float(before.scale))
            params[site] = ActivationParams(before.scale, -128 + lowest)
        elif isinstance(operator, Mul) and before is not None:
            params[site] = ActivationParams(np.float32(before.scale * 0.7), before.zero_point)
        elif isinstance(operator, GlobalAvgPool) and before is not None:
            params[site] = ActivationParams(np.float32(before.scale * 0.5), before.zero_point)
        elif isinstance(operator, Conv2d | Add) and operator.activation == "hard_sigmoid":
            params[site] = ActivationParams(np.float32(1 / 255), -128)
        elif isinstance(operator, Conv2d | Add) and operator.activation == "relu6":
            params[site] = ActivationParams(drawn, -128)
        elif isinstance(operator, Conv2d | Add) and operator.activation == "relu":
            alone = [v for v, root in ties.items() if root == site] == [value]
            zero_point = -128 if alone or _never_negative(graph, ties, site) else 0
            params[site] = ActivationParams(params[site].scale, zero_point)
    return params


def _never_negative(graph: Graph, ties: dict[str, str], site: str) -> bool:
    """Every value of the site that an arithmetic operator writes ends in a ReLU."""
    writers = [graph.producer(value) for value, root in ties.items() if root == site]
    return all(
        isinstance(writer, Concat | MaxPool | ChannelSelect)
        or (isinstance(writer, Conv2d | Add) and writer.activation != "none")
        for writer in writers
    )


def make_case(
    name: str,
    resolutions: Sequence[int] = (16,),
    seed: int = 0,
    patch_owned: Sequence[str] = (),
    share_head: bool = True,
) -> tuple[QuantizedBase, dict[int, QuantizedVariant]]:
    """The base of case ``name`` and one variant a resolution, on the same head kernel if asked."""
    base = make_base(GRAPH_CASES[name](), 0, patch_owned)
    variants = {px: make_variant(base, px, seed) for px in resolutions}
    if share_head:
        head = next(iter(variants.values())).weights[base.graph.head]
        for variant in variants.values():
            variant.weights[base.graph.head][...] = head  # type: ignore[index]
    return base, variants


def random_images(count: int, px: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [count, px, px, 3], all 256 values."""
    return np.random.default_rng(seed).integers(0, 256, (count, px, px, 3), np.uint8)
