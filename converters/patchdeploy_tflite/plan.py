"""A .tflite file as plain values, before any byte of it is laid out.

In: nothing. Out: `Blob` (an array that lies somewhere in the file and may be a slot), tensors
and operators that refer to blobs, `Subgraph`. Blobs are shared by identity: two tensors that
name one kernel blob name one Buffer, whatever subgraph they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.slots import Slot

Array = NDArray[Any]
Scalar = int | float | bool


@dataclass(frozen=True, eq=False)
class Blob:
    """Elements that are stored once, little-endian.

    Attributes:
        data: flat array in the dtype of the file.
        slot: what a patch may set here, its ``offset_bytes`` not known yet (-1); or None.
    """

    data: Array
    slot: Slot | None = None


@dataclass(frozen=True)
class Quantization:
    """Per-tensor (vectors of one element) or per-channel parameters along ``dimension``."""

    scale: Blob
    zero_point: Blob
    dimension: int = 0


@dataclass(frozen=True)
class Tensor:
    """One tensor of a subgraph.

    Attributes:
        dtype: a name of schema.fbs's TensorType: UINT8, INT8, INT32, FLOAT32.
        buffer: its constant contents; None for an activation.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None
    buffer: Blob | None = None


@dataclass(frozen=True)
class Options:
    """A builtin options table: its name in schema.fbs and scalar fields."""

    table: str
    fields: tuple[tuple[str, Scalar], ...] = ()


@dataclass(frozen=True)
class Operation:
    """A builtin operator of schema.fbs at a version, on tensor indices of its subgraph."""

    kind: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Options | None


@dataclass
class Subgraph:
    """One resolution's tensors and operators, filled in order, and the signature over them."""

    name: str
    tensors: list[Tensor] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)

    def tensor(self, tensor: Tensor) -> int:
        """Index of ``tensor``, which is new to this subgraph."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, tensor: Tensor) -> int:
        """Index of a constant: the one that is there already where it is the same."""
        if tensor in self.tensors:
            return self.tensors.index(tensor)
        return self.tensor(tensor)

    def operation(
        self,
        kind: str,
        version: int,
        inputs: Sequence[int],
        output: Tensor,
        options: Options | None = None,
    ) -> int:
        """Append an operator that writes ``output``; returns that tensor's index."""
        index = self.tensor(output)
        self.operations.append(Operation(kind, version, tuple(inputs), (index,), options))
        return index


@dataclass
class Pool:
    """Every blob of a file, in the order in which it is laid out; constants are stored once."""

    blobs: list[Blob] = field(default_factory=list)
    _constants: dict[tuple[str, bytes], Blob] = field(default_factory=dict)

    def constant(self, data: Array) -> Blob:
        """A blob that no patch sets; equal contents give the same blob."""
        flat = np.ascontiguousarray(data).reshape(-1)
        key = (flat.dtype.str, flat.tobytes())
        if key not in self._constants:
            self._constants[key] = self._add(Blob(flat))
        return self._constants[key]

    def slot(self, slot: Slot, data: Array) -> Blob:
        """A blob that a patch sets: never shared because its contents happen to be equal."""
        return self._add(Blob(data, slot))

    def _add(self, blob: Blob) -> Blob:
        self.blobs.append(blob)
        return blob
