"""The quantised base in neutral form: its graph and int8 kernels in one file, free of torch.

In: a `QuantizedBase`. Out: bytes (safetensors: kernels and scales as arrays, the graph as JSON in
the metadata) and back. Its SHA-256 is the base's name: every patch carries it. Exporting one task
on its own, and the NumPy executor, need nothing else; a phone needs none of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from patchdeploy.documents import parse_tensor_notes
from patchdeploy.errors import FileFormatError
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.reference_graph import FORMAT, FORMAT_BY_SIZE, depends_on_size, read_base
from patchdeploy.storage import sha256_hex

_METADATA_KEY = "patchdeploy"


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
    by_size = depends_on_size(graph)
    document = {
        "format": FORMAT_BY_SIZE if by_size else FORMAT,
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
    if by_size:
        document["limit"] = None if graph.limit is None else asdict(graph.limit)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return save(arrays, {_METADATA_KEY: text})


def reference_sha256(base: QuantizedBase) -> str:
    """The hash that patches of ``base`` name: SHA-256 of `save_reference`."""
    return sha256_hex(save_reference(base))


def load_reference(data: bytes) -> QuantizedBase:
    """The inverse of `save_reference`; ``graph.parameters`` is empty.

    Raises:
        FileFormatError: truncated, of another format, an unknown operator, or parts that break a
            rule or do not fit each other; the message names the field.
    """
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"reference file of {len(data)} bytes does not parse ({error!s:.200}); it must be a "
            "whole reference/base.safetensors of a bundle; copy it again or export the base again"
        ) from error
    return read_base(parse_tensor_notes(data, _METADATA_KEY, "reference file", 6), arrays)


def _encode(value: Any) -> Any:
    """A dataclass as a mapping with its class under ``operator``; tuples as lists."""
    if is_dataclass(value):
        body = {one.name: _encode(getattr(value, one.name)) for one in fields(value)}
        return {"operator": type(value).__name__, **body}
    if isinstance(value, tuple):
        return [_encode(one) for one in value]
    return value
