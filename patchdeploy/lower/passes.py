"""Raw operators -> the neutral graph's operators, by passes that each do one thing.

In: what the rules of `lower.rules` emit, one raw operator per call of the network, in
topological order. Out: operators of `graph`, where paddings, normalisations and activations
have become part of the convolutions before or after them. Every pass is a pure function
from a list to a new list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from patchdeploy.data import Preprocessing
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    FloatArray,
    MaxPool,
    Mul,
    Operator,
    Padding,
)
from patchdeploy.lower.builder import RawActivation, RawAffine, RawNorm, RawOperator, RawPad


@dataclass(frozen=True)
class RawGraph:
    """Raw operators with what they name; see `graph.Graph` for the fields."""

    input: str
    output: str
    operators: tuple[RawOperator, ...]
    channels: Mapping[str, int]
    parameters: Mapping[str, FloatArray]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    fixed_maps: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def reader_counts(self) -> Counter[str]:
        """How often each value is read; the graph's output is one reading."""
        counts = Counter(value for o in self.operators for value in raw_inputs(o))
        counts[self.output] += 1
        return counts


def raw_inputs(operator: RawOperator) -> tuple[str, ...]:
    """The values that ``operator`` reads."""
    if isinstance(operator, RawPad | RawAffine | RawNorm | RawActivation):
        return (operator.input,)
    return operator.inputs


def rename_inputs(operator: RawOperator, names: Mapping[str, str]) -> RawOperator:
    """``operator`` reading ``names[value]`` instead of ``value``."""
    found = tuple(names.get(value, value) for value in raw_inputs(operator))
    changes: dict[str, Any] = {"inputs": found}
    if not isinstance(operator, Add | Mul | Concat):
        changes = {"input": found[0]}
    return replace(operator, **changes)


def constant_conv(
    raw: RawGraph,
    name: str,
    input_name: str,
    output: str,
    factor: Sequence[float] = (),
    offset: Sequence[float] = (),
    padding: Padding = (0, 0, 0, 0),
) -> tuple[Conv2d, dict[str, FloatArray]]:
    """A depthwise 1x1 convolution ``factor[c] * x + offset[c]`` and its constants.

    Without ``factor`` it is the identity; without ``offset`` it has no bias.
    """
    channels = raw.channels[input_name]
    kernel = np.ones((channels, 1, 1, 1), np.float32)
    if factor:
        kernel = np.asarray(factor, np.float32).reshape(channels, 1, 1, 1)
    constants = {f"{name}.identity": kernel}
    if any(offset):
        constants[f"{name}.offset"] = np.asarray(offset, np.float32)
    conv = Conv2d(
        name=name,
        input=input_name,
        output=output,
        weight=f"{name}.identity",
        in_channels=channels,
        out_channels=channels,
        kernel=(1, 1),
        bias=f"{name}.offset" if any(offset) else None,
        groups=channels,
        padding=padding,
        is_constant=True,
    )
    return conv, constants


def join_affines(raw: RawGraph) -> RawGraph:
    """Two affine maps in a row, the first read once, become one: f2 * (f1 x + o1) + o2."""
    counts = raw.reader_counts()
    done: list[RawOperator] = []
    for operator in raw.operators:
        before = next((k for k, o in enumerate(done) if o.output in raw_inputs(operator)), -1)
        previous = done[before] if before >= 0 else None
        if (
            isinstance(operator, RawAffine)
            and isinstance(previous, RawAffine)
            and counts[previous.output] == 1
        ):
            pairs = list(zip(operator.factor, previous.factor, previous.offset, strict=True))
            offset = zip(pairs, operator.offset, strict=True)
            operator = replace(
                operator,
                input=previous.input,
                factor=tuple(f2 * f1 for f2, f1, _ in pairs),
                offset=tuple(f2 * o1 + o2 for (f2, _, o1), o2 in offset),
            )
            del done[before]
        done.append(operator)
    return replace(raw, operators=tuple(done))


def join_split_affines(raw: RawGraph) -> RawGraph:
    """cat(f[i] * x[:, i] + o[i]) is one affine map of x (torchvision's transform_input)."""
    producers = {o.output: o for o in raw.operators}
    counts = raw.reader_counts()
    operators: list[RawOperator] = []
    for operator in raw.operators:
        parts = [producers.get(value) for value in raw_inputs(operator)]
        affines = [p for p in parts if isinstance(p, RawAffine) and counts[p.output] == 1]
        selects = [producers.get(a.input) for a in affines]
        picked = [s for s in selects if isinstance(s, ChannelSelect)]
        indices = tuple(k for s in picked for k in s.indices)
        source = picked[0].input if picked else ""
        whole = indices == tuple(range(raw.channels.get(source, 0)))
        same = len({s.input for s in picked}) == 1 and len(picked) == len(parts)
        if isinstance(operator, Concat) and same and whole:
            factor = tuple(f for a in affines for f in a.factor)
            offset = tuple(o for a in affines for o in a.offset)
            operator = RawAffine(operator.name, source, operator.output, factor, offset)
        operators.append(operator)
    return drop_unread(replace(raw, operators=tuple(operators)))


def absorb_input_affine(raw: RawGraph) -> RawGraph:
    """An affine map of the graph's input becomes part of the preprocessing.

    f * (p/255 - mean) / std + o = (p/255 - mean') / std' with std' = std / f and
    mean' = mean - o * std / f; zero padding after the map keeps its meaning. f must be > 0.
    """
    readers = [o for o in raw.operators if raw.input in raw_inputs(o)]
    if len(readers) != 1 or not isinstance(readers[0], RawAffine) or min(readers[0].factor) <= 0:
        return raw
    affine = readers[0]
    old = raw.preprocessing
    std = [s / f for s, f in zip(old.std, affine.factor, strict=True)]
    mean = [m - o * s for m, o, s in zip(old.mean, affine.offset, std, strict=True)]
    names = {affine.output: raw.input}
    rest = tuple(rename_inputs(o, names) for o in raw.operators if o is not affine)
    new = replace(old, mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))
    return replace(raw, operators=rest, preprocessing=new)


def merge_padding(raw: RawGraph) -> RawGraph:
    """Zero padding moves into the convolutions that read it; elsewhere a 1x1 identity pads.

    Into a maximum pool it moves only after a rectifier: then zero is never the maximum of a
    window that minus infinity would not have been (every window holds a value >= 0).
    """
    operators = list(raw.operators)
    parameters = dict(raw.parameters)
    for pad in [o for o in operators if isinstance(o, RawPad)]:
        pad = next(o for o in operators if o.output == pad.output and isinstance(o, RawPad))
        readers = [o for o in operators if pad.output in raw_inputs(o)]
        producer = next((o for o in operators if o.output == pad.input), None)
        takes = all(_takes_padding(reader, producer, pad) for reader in readers)
        place = operators.index(pad)
        if not takes or pad.output == raw.output:
            conv, constants = constant_conv(
                raw, pad.name, pad.input, pad.output, padding=pad.padding
            )
            operators[place] = conv
            parameters |= constants
            continue
        operators = [_pad_more(o, pad) if o in readers else o for o in operators if o is not pad]
    return replace(raw, operators=tuple(operators), parameters=parameters)


def _takes_padding(reader: RawOperator, producer: RawOperator | None, pad: RawPad) -> bool:
    if isinstance(reader, MaxPool):
        narrow = max(pad.padding[:2]) < reader.kernel[0] and max(pad.padding[2:]) < reader.kernel[1]
        return isinstance(producer, RawActivation) and narrow and not reader.ceil_mode
    return isinstance(reader, Conv2d | RawPad)


def _pad_more(reader: RawOperator, pad: RawPad) -> RawOperator:
    assert isinstance(reader, Conv2d | RawPad | MaxPool)
    a = reader.padding if isinstance(reader, RawPad) else reader.zeros
    b = pad.padding
    total = (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
    return replace(reader, input=pad.input, padding=total)


def realise_affines(raw: RawGraph) -> RawGraph:
    """Affine maps that are left become depthwise 1x1 convolutions with constant kernels."""
    operators: list[RawOperator] = []
    parameters = dict(raw.parameters)
    for operator in raw.operators:
        if isinstance(operator, RawAffine):
            a = operator
            operator, constants = constant_conv(raw, a.name, a.input, a.output, a.factor, a.offset)
            parameters |= constants
        operators.append(operator)
    return replace(raw, operators=tuple(operators), parameters=parameters)


Fuse = Callable[[RawOperator, RawOperator], Operator | None]


def _fuse_norm(producer: RawOperator, raw_norm: RawOperator) -> Operator | None:
    if not isinstance(raw_norm, RawNorm) or not isinstance(producer, Conv2d):
        return None
    if producer.norm is not None or producer.activation != "none":
        return None
    return replace(producer, norm=raw_norm.norm, output=raw_norm.output)


def _fuse_activation(producer: RawOperator, raw_act: RawOperator) -> Operator | None:
    if not isinstance(raw_act, RawActivation) or not isinstance(producer, Conv2d | Add):
        return None
    if producer.activation != "none":
        return None
    if isinstance(producer, Add) and raw_act.kind not in ("relu", "relu6"):
        return None
    return replace(producer, activation=raw_act.kind, output=raw_act.output)


def _standalone(
    operator: RawNorm | RawActivation, raw: RawGraph
) -> tuple[Conv2d, dict[str, FloatArray]]:
    conv, constants = constant_conv(raw, operator.name, operator.input, operator.output)
    if isinstance(operator, RawNorm):
        return replace(conv, norm=operator.norm), constants
    return replace(conv, activation=operator.kind), constants


def _fuse_into_producers(raw: RawGraph, kind: type, fuse: Fuse) -> RawGraph:
    """Merge each operator of ``kind`` into the one before it, or make it a convolution."""
    counts = raw.reader_counts()
    operators: list[RawOperator] = []
    place: dict[str, int] = {}
    parameters = dict(raw.parameters)
    for operator in raw.operators:
        if isinstance(operator, kind):
            assert isinstance(operator, RawNorm | RawActivation)
            at = place.get(operator.input)
            fused = None
            if at is not None and counts[operator.input] == 1:
                fused = fuse(operators[at], operator)
            if at is not None and fused is not None:
                operators[at] = fused
                place[fused.output] = at
                continue
            operator, constants = _standalone(operator, raw)
            parameters |= constants
        place[operator.output] = len(operators)
        operators.append(operator)
    return replace(raw, operators=tuple(operators), parameters=parameters)


def attach_norms(raw: RawGraph) -> RawGraph:
    """A normalisation belongs to the convolution before it, when nothing else reads that.

    Any other becomes a depthwise 1x1 convolution with unit kernel, which keeps the affine site.
    """
    return _fuse_into_producers(raw, RawNorm, _fuse_norm)


def fuse_activations(raw: RawGraph) -> RawGraph:
    """An activation belongs to the convolution or sum before it, when nothing else reads that.

    Any other becomes a depthwise 1x1 identity convolution with that activation.
    """
    return _fuse_into_producers(raw, RawActivation, _fuse_activation)


IMAGE_IDENTITY = "image.identity"
"""Name of the convolution that `isolate_input` puts after the image."""


def isolate_input(raw: RawGraph, always: bool = False) -> RawGraph:
    """Make one convolution the only reader of the input: normalisation is folded into it.

    Where it is not, or where ``always`` asks for it, a dense 1x1 identity convolution goes in
    between: dense, since folding may reorder its input channels (BGR). A grouped convolution
    cannot take that reordering, and gets the identity too.
    """
    readers = [o for o in raw.operators if raw.input in raw_inputs(o)]
    only = readers[0] if len(readers) == 1 and raw.output != raw.input else None
    reorders = raw.preprocessing.channel_order != "RGB"
    if isinstance(only, Conv2d) and not always and (only.groups == 1 or not reorders):
        return raw
    channels = raw.channels[raw.input]
    name, key = IMAGE_IDENTITY, f"{IMAGE_IDENTITY}.identity"
    names = {raw.input: name}
    conv = Conv2d(name, raw.input, name, key, channels, channels, (1, 1), is_constant=True)
    kernel = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    return replace(
        raw,
        operators=(conv, *(rename_inputs(o, names) for o in raw.operators)),
        output=names.get(raw.output, raw.output),
        channels={**raw.channels, name: channels},
        parameters={**raw.parameters, key: kernel},
    )


def drop_unread(raw: RawGraph) -> RawGraph:
    """Keep the operators that the output depends on."""
    needed = {raw.output}
    kept: list[RawOperator] = []
    for operator in reversed(raw.operators):
        if operator.output in needed:
            needed.update(raw_inputs(operator))
            kept.insert(0, operator)
    return replace(raw, operators=tuple(kept))


def drop_unread_parameters(raw: RawGraph) -> RawGraph:
    """Keep the parameters that a convolution or its normalisation names."""
    convs = [o for o in raw.operators if isinstance(o, Conv2d)]
    keys = {key for conv in convs for key in (conv.weight, conv.bias)}
    for conv in convs:
        if conv.norm is not None:
            suffixes = ("weight", "bias", "running_mean", "running_var")
            keys |= {f"{conv.norm.name}.{suffix}" for suffix in suffixes}
    parameters = {key: value for key, value in raw.parameters.items() if key in keys}
    return replace(raw, parameters=parameters)


def name_values(raw: RawGraph) -> RawGraph:
    """Call every value after the operator that writes it; the input keeps its name."""
    names = {o.output: o.name for o in raw.operators}
    operators = tuple(
        replace(rename_inputs(o, names), output=names[o.output]) for o in raw.operators
    )
    order = [raw.input, *(o.output for o in raw.operators)]
    channels = {names.get(value, value): raw.channels[value] for value in order}
    output = names.get(raw.output, raw.output)
    return replace(raw, operators=operators, channels=channels, output=output)


def simplify(raw: RawGraph, exact_border: bool = False) -> RawGraph:
    """All passes in their order; the result holds operators of `graph` alone."""
    raw = drop_unread(raw)
    for step in (
        join_affines,
        join_split_affines,
        absorb_input_affine,
        merge_padding,
        realise_affines,
    ):
        raw = step(raw)
    raw = isolate_input(fuse_activations(attach_norms(raw)), always=exact_border)
    return name_values(drop_unread_parameters(drop_unread(raw)))
