"""The integer executor's arithmetic in torch, with gradients: what an exported patch will compute.

In: a `QuantizedBase`, a patch's tensors, activation parameters, pixels. Out: logits, and every
value's codes for an observer. A value is carried as steps, code - zero_point, whole numbers in a
float32 tensor [N, C, H, W]; rounding passes gradients straight through, and clipping stops them
(but for the scores).

The forward pass equals `quantize.executor.run_integer` with reference arithmetic bit for bit:

- kernels, scales and biases: `int8_rows` does the NumPy code's float64 operations in its order;
- a convolution sums whole numbers in float32, exact in any order while sum|q| * max|x - zp| +
  |bias| < 2^24. Where a row may go beyond that, the layer sums in float64 if gradients are off
  (as in validation). With gradients on it stays in float32, and such a row may be off by half a
  unit in the last place of its partial sums before it is scaled to at most 8 bits;
- sums, products, means and tables are taken in float64, as the executor takes them.

What can differ at all is a float64 rounding of another library: NumPy and torch agree on + - * /
and square roots, which IEEE 754 fixes. Tables come from NumPy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchdeploy.data import Preprocessing
from patchdeploy.graph import (
    Activation,
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    MaxPool,
    Mul,
    Operator,
    Padding,
    Pointwise,
    fix_size,
    window_output,
)
from patchdeploy.quantize.arithmetic import INT8_MAX, INT8_MIN, activation_bounds
from patchdeploy.quantize.convolution import FLOAT32_EXACT
from patchdeploy.quantize.model import ActivationParams, QuantizedBase
from patchdeploy.quantize.pointwise import exact_table
from patchdeploy.training.int8_rounding import look_up, requantize_through, round_clip
from patchdeploy.training.int8_rows import ConvRows, build_rows, compute_rows

Observer = Callable[[str, Tensor], None]
"""Called with a value's name and its codes, float32 [N, C, H, W], whole numbers."""
CODES = torch.arange(INT8_MIN, INT8_MAX + 1)


@dataclass(frozen=True)
class _Step:
    """What every operator of one forward pass needs."""

    params: Mapping[str, ActivationParams]
    rows: Mapping[str, ConvRows]
    wide: frozenset[str]
    tables: Mapping[str, tuple[Tensor, Tensor]]
    head: str


class Int8Network:
    """A quantised base laid out for torch, and the activation parameters in use.

    Args:
        base: made from a graph that holds its float parameters.
        classes: of the task; rows of its head.
        device: where it runs.

    Attributes:
        scales, zero_points: float32 [activation sites], in `QuantizedBase.activation_sites`
            order: what `set_activations` sets. Writing into them in place sets them too, so a
            checkpoint can hold them.
    """

    def __init__(self, base: QuantizedBase, classes: int, device: torch.device) -> None:
        self.base = base
        self.sites = base.activation_sites()
        self.scales = torch.ones(len(self.sites), device=device)
        self.zero_points = torch.zeros(len(self.sites), device=device)
        self._index = base.layout().activation_index
        self._structure = build_rows(base, classes, device)
        self._read_at = (-1, -1)
        self._params: dict[str, ActivationParams] = {}
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def set_activations(self, activations: Mapping[str, ActivationParams]) -> None:
        """Use ``activations``, by site, as of a `QuantizedVariant`."""
        found = [activations[site] for site in self.sites]
        self.scales.copy_(torch.tensor(np.array([one.scale for one in found], np.float32)))
        self.zero_points.copy_(torch.tensor([float(one.zero_point) for one in found]))

    def __call__(
        self, tensors: Mapping[str, Tensor], pixels: Tensor, observe: Observer | None = None
    ) -> Tensor:
        """Logits float32 [N, classes] of ``pixels``, float32 [N, 3, H, W], whole, RGB, 0..255.

        Args:
            tensors: a patch's, by state-dict name; gradients reach gamma, beta, explicit scales
                and biases, the head and the depthwise kernels that the task owns.
        """
        with torch.autocast(pixels.device.type, enabled=False):
            self._read_activations(pixels.device)
            rows = compute_rows(self._structure, tensors, self.scales, self.zero_points)
            wide = self._wide(rows)
            step = _Step(self._params, rows, wide, self._tables, self.base.graph.head)
            return self._run(step, pixels, observe)

    def _run(self, step: _Step, pixels: Tensor, observe: Observer | None) -> Tensor:
        graph = fix_size(self.base.graph, pixels.shape[2], pixels.shape[3])
        last_use = {value: k for k, op in enumerate(graph.operators) for value in op.inputs}
        offset = float(self.base.input_zero_point + 128)
        values = {graph.input: (pixels - offset).contiguous(memory_format=torch.channels_last)}
        for k, operator in enumerate((None, *graph.operators)):
            if operator is not None:
                inputs = [values[value] for value in operator.inputs]
                values[operator.output] = _run_operator(step, operator, inputs)
                for value in set(operator.inputs):
                    if last_use[value] == k - 1 and value != graph.output:
                        del values[value]
            if observe is not None:
                name = operator.output if operator is not None else graph.input
                observe(name, values[name].detach() + step.params[name].zero_point)
        scale = self.scales[self._index[graph.output]]
        return values[graph.output].flatten(1) * scale

    def _read_activations(self, device: torch.device) -> None:
        """Parameters as numbers; read again only after something wrote into the tensors."""
        version = (self.scales._version, self.zero_points._version)
        if version == self._read_at:
            return
        scales = self.scales.cpu().numpy()
        zero_points = [round(one) for one in self.zero_points.tolist()]
        self._params = {
            value: ActivationParams(scales[k], zero_points[k]) for value, k in self._index.items()
        }
        self._tables = {
            op.name: _make_tables(op, self._params[op.input], self._params[op.output], device)
            for op in self.base.graph.operators
            if isinstance(op, Pointwise)
        }
        self._read_at = version

    def _wide(self, rows: Mapping[str, ConvRows]) -> frozenset[str]:
        """Convolutions to sum in float64: `convolution.accumulator_dtype`; none with gradients."""
        if torch.is_grad_enabled():
            return frozenset()
        convs = tuple(self.base.graph.convolutions())
        reach = [
            max(127 - zp, zp + 128) for zp in (self._params[c.input].zero_point for c in convs)
        ]
        most = torch.stack(
            [
                (rows[conv.name].sum * far + rows[conv.name].bias.abs()).amax()
                for conv, far in zip(convs, reach, strict=True)
            ]
        )
        return frozenset(
            conv.name
            for conv, one in zip(convs, most.tolist(), strict=True)
            if one >= FLOAT32_EXACT
        )


def restore_pixels(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The pixels behind a normalised batch: round((x * std + mean) * 255), RGB, in 0..255.

    Exact for whole pixels: normalising and going back are 6 float32 roundings of values up to
    1 + |mean|, so the error is below 255 * 6 * 2^-24 * (1 + |mean|), 0.0002 for |mean| <= 1.
    Mixed images (mixup) are rounded, as a camera's are.

    Args:
        inputs: float32 [N, 3, H, W], from `samples.normalize`.
    """
    mean = torch.tensor(preprocessing.mean, device=inputs.device).reshape(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=inputs.device).reshape(1, 3, 1, 1)
    pixels = ((inputs.float() * std + mean) * 255.0).round().clamp(0.0, 255.0)
    return pixels if preprocessing.channel_order == "RGB" else pixels.flip(1)


def _make_tables(
    operator: Pointwise, x: ActivationParams, y: ActivationParams, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Output steps of every input code, and d(output steps) / d(input steps); float32 [256]."""
    codes = exact_table(operator.kind, x, y).astype(np.float32)
    with torch.enable_grad():
        real = ((CODES - x.zero_point) * float(x.scale)).double().requires_grad_()
        sigmoid = operator.kind == "sigmoid"
        steps = (real.sigmoid() if sigmoid else functional.hardswish(real)) / float(y.scale)
        (slope,) = torch.autograd.grad(steps.sum(), real)
    inside = (steps > INT8_MIN - y.zero_point) & (steps < INT8_MAX - y.zero_point)
    slope = (slope * float(x.scale) * inside).float()
    return torch.tensor(codes - y.zero_point, device=device), slope.to(device)


def _run_operator(step: _Step, operator: Operator, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if isinstance(operator, Conv2d):
        return _run_conv(step, operator, x)
    params = [step.params[value] for value in operator.inputs]
    if isinstance(operator, MaxPool):
        return _max_pool(operator, x, float(INT8_MIN - params[0].zero_point))
    if isinstance(operator, Concat):
        return torch.cat(inputs, 1)
    if isinstance(operator, ChannelSelect):
        return x[:, list(operator.indices)]
    y = step.params[operator.output]
    if isinstance(operator, Pointwise):
        table, slope = step.tables[operator.name]
        return look_up(x, float(INT8_MIN - params[0].zero_point), table, slope)
    scales = [float(one.scale) for one in params]
    if isinstance(operator, Add):
        real = x.double() * scales[0] + inputs[1].double() * scales[1]
        return round_clip(real / float(y.scale), *_bounds(operator.activation, y))
    if isinstance(operator, Mul):
        product = (x * inputs[1]).double()  # at most 255^2: exact
        return round_clip(product * (scales[0] * scales[1] / float(y.scale)), *_bounds("none", y))
    assert isinstance(operator, GlobalAvgPool)
    count = x.shape[2] * x.shape[3]
    total = x.sum((2, 3), keepdim=True, dtype=torch.float64)
    return round_clip(total * (scales[0] / float(y.scale) / count), *_bounds("none", y))


def _bounds(activation: Activation, params: ActivationParams) -> tuple[float, float]:
    """`arithmetic.activation_bounds` in steps."""
    low, high = activation_bounds(activation, params)
    return float(low - params.zero_point), float(high - params.zero_point)


def _run_conv(step: _Step, conv: Conv2d, x: Tensor) -> Tensor:
    rows, y = step.rows[conv.name], step.params[conv.output]
    dtype = torch.float64 if conv.name in step.wide else torch.float32
    padding = (conv.zeros[0], conv.zeros[2])
    if padding != (conv.zeros[1], conv.zeros[3]):
        x, padding = _pad(x, conv.zeros, 0.0), (0, 0)
    accumulator = functional.conv2d(
        x.to(dtype),
        rows.kernel.to(dtype),
        rows.bias.detach().to(dtype),
        conv.stride,
        padding,
        conv.dilation,
        conv.groups,
    ).float()
    low, high = _bounds(conv.activation, y)
    # Scores may grow past the range that they had at the last calibration: clipping them must not
    # stop the head from learning.
    passes = conv.name == step.head
    return requantize_through(accumulator, rows.multiplier, rows.bias, low, high, passes)


def _pad(x: Tensor, padding: Padding, value: float) -> Tensor:
    top, bottom, left, right = padding
    return functional.pad(x, (left, right, top, bottom), value=value)


def _max_pool(pool: MaxPool, x: Tensor, lowest: float) -> Tensor:
    """Padding counts as the lowest code; so does what a ceil_mode window reaches beyond it."""
    top, bottom, left, right = pool.zeros
    more = []
    for k, (before, after) in enumerate(((top, bottom), (left, right))):
        kernel, stride, size = pool.kernel[k], pool.stride[k], x.shape[2 + k]
        out = window_output(size, kernel, stride, before, after, 1, pool.ceil_mode)
        more.append(max(after, (out - 1) * stride + kernel - size - before))
    padded = _pad(x, (top, more[0], left, more[1]), lowest)
    pooled: Tensor = functional.max_pool2d(padded, pool.kernel, pool.stride)
    return pooled
