"""The quantised base in neutral form: its graph and int8 kernels in one file, free of torch.

In: a `QuantizedBase`. Out: bytes (safetensors: kernels and scales as arrays, the graph as JSON in
the metadata) and back. Its SHA-256 is the base's name: every patch carries it. Exporting one task
on its own, and the NumPy executor, need nothing else; a phone needs none of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from patchdeploy.data import Preprocessing
from patchdeploy.errors import ConfigError, FileFormatError
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    MaxPool,
    Mul,
    Norm,
    Operator,
    Pointwise,
)
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.storage import sha256_hex

FORMAT = 1
_METADATA_KEY = "patchdeploy"
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Add, ChannelSelect, Concat, Conv2d, GlobalAvgPool, MaxPool, Mul, Norm, Pointwise)
}


def save_reference(base: QuantizedBase) -> bytes:
    """``base`` as bytes; the same base gives the same bytes.

    Kernels are int8 [O, kh, kw, I/groups] under ``weight/<convolution>`` (those that patches
    bring are left out: only their shape is kept), scales float32 [O] under
    ``weight_scale/<convolution>``. The graph's float parameters are not stored.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, kernel in base.weights.items():
        arrays[f"weight_scale/{name}"] = np.ascontiguousarray(base.weight_scales[name], np.float32)
        if name not in base.patch_owned:
            arrays[f"weight/{name}"] = np.ascontiguousarray(kernel)
    graph = base.graph
    document = {
        "format": FORMAT,
        "name": graph.name,
        "base_sha256": graph.base_sha256,
        "preprocessing": graph.preprocessing.to_json(),
        "input": graph.input,
        "output": graph.output,
        "head": graph.head,
        "operators": [_encode(operator) for operator in graph.operators],
        "channels": list(graph.channels.items()),
        "patch_owned": {name: base.weights[name].shape for name in sorted(base.patch_owned)},
        "head_capacity": base.head_capacity,
        "input_zero_point": base.input_zero_point,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return save(arrays, {_METADATA_KEY: text})


def reference_sha256(base: QuantizedBase) -> str:
    """The hash that patches of ``base`` name: SHA-256 of `save_reference`."""
    return sha256_hex(save_reference(base))


def load_reference(data: bytes) -> QuantizedBase:
    """The inverse of `save_reference`; ``graph.parameters`` is empty.

    Raises:
        FileFormatError: truncated, of another format, or an unknown operator.
    """
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA_KEY])
        return _build(document, arrays)
    except FileFormatError:
        raise
    except (
        SafetensorError,
        ConfigError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise FileFormatError(
            f"reference file of {len(data)} bytes does not parse ({error}); it must be a whole "
            "reference/base.safetensors of a bundle; copy it again or export the base again"
        ) from error


def _build(document: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> QuantizedBase:
    if document["format"] != FORMAT:
        raise FileFormatError(
            f"reference file has format {document['format']!r}; this version reads format "
            f"{FORMAT}; export the base again or upgrade patchdeploy"
        )
    graph = Graph(
        name=document["name"],
        base_sha256=document["base_sha256"],
        preprocessing=Preprocessing.from_json(document["preprocessing"]),
        input=document["input"],
        output=document["output"],
        head=document["head"],
        operators=tuple(_decode_operator(one) for one in document["operators"]),
        channels={value: int(channels) for value, channels in document["channels"]},
        parameters={},
    )
    owned = {name: tuple(shape) for name, shape in document["patch_owned"].items()}
    names = [conv.name for conv in graph.convolutions()]
    return QuantizedBase(
        graph=graph,
        weights={
            name: np.zeros(owned[name], np.int8) if name in owned else arrays[f"weight/{name}"]
            for name in names
        },
        weight_scales={name: arrays[f"weight_scale/{name}"] for name in names},
        patch_owned=frozenset(owned),
        head_capacity=int(document["head_capacity"]),
        input_zero_point=int(document["input_zero_point"]),
    )


def _encode(value: Any) -> Any:
    """A dataclass as a mapping with its class under ``operator``; tuples as lists."""
    if is_dataclass(value):
        body = {one.name: _encode(getattr(value, one.name)) for one in fields(value)}
        return {"operator": type(value).__name__, **body}
    if isinstance(value, tuple):
        return [_encode(one) for one in value]
    return value


def _decode_operator(value: Mapping[str, Any]) -> Operator:
    operator: Operator = _decode(value)
    return operator


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        kind = value["operator"]
        if kind not in _KINDS:
            raise FileFormatError(
                f"reference file holds an operator {kind!r}; this version knows "
                f"{', '.join(_KINDS)}; upgrade patchdeploy"
            )
        return _KINDS[kind](**{k: _decode(one) for k, one in value.items() if k != "operator"})
    if isinstance(value, list):
        return tuple(_decode(one) for one in value)
    return value
