"""What a network computes, as text: every operator of one forward pass, in order.

In: an nn.Module in evaluation mode, the side of its images. Out: a `Function`: lines that name
operator, operands and settings, the same on every machine and in every process, and which layers
the scores come from. Why: tensors do not say which activation, pooling or order lies between them,
and two networks of the same tensors are two bases. Why not torch.export: it takes seconds, its text
changes with the version, and it refuses networks that can be trained.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchdeploy.base.operators import Described, constant_token, describe_call, flat_tensors

BATCH = 2
"""Not 1: a squeeze() without dimensions would drop the batch."""
TURNED = "^T"


@dataclass(frozen=True)
class Function:
    """One forward pass.

    Attributes:
        lines: of the operators, in order, and of the result.
        last_layers: module paths of convolutions and linear layers whose result reaches the scores
            with no other such layer between, in the order of their calls.
        layers: module paths of what is called as a convolution or a normalisation, in that order.
    """

    lines: tuple[str, ...]
    last_layers: tuple[str, ...]
    layers: tuple[str, ...]


@torch.no_grad()
def record_function(module: nn.Module, side: int) -> Function:
    """Run ``module`` on zeros, float32 [2, 3, side, side], and write down what it calls.

    Raises:
        Exception: whatever the module raises.
    """
    names = tensor_names(module)
    recorder = _Recorder(names, {names[id(one)] for one in module.parameters()})
    images = torch.zeros(BATCH, 3, side, side)
    recorder.name(images, "image")
    with recorder:
        result = module(images)
    return recorder.finish(result)


def tensor_names(module: nn.Module) -> dict[int, str]:
    """State-dict name by id of the tensor: of one that two layers share, the first."""
    names: dict[int, str] = {}
    for path, layer in module.named_modules():
        for name, value in (*layer._parameters.items(), *layer._buffers.items()):
            if value is not None:
                names.setdefault(id(value), f"{path}.{name}" if path else name)
    return names


def join_hash(tensors_sha256: str, function: Function) -> str:
    """SHA-256 of a base: of its tensors' hash and of what is computed with them."""
    digest = hashlib.sha256(b"patchdeploy base 2\0" + tensors_sha256.encode())
    for line in function.lines:
        digest.update(b"\n" + line.encode())
    return digest.hexdigest()


@dataclass
class _Origin:
    """Where a value comes from: last layers on the way, and tensors of the state, by name."""

    layers: dict[str, None] = field(default_factory=dict)
    tensors: dict[str, None] = field(default_factory=dict)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a line for each operator while it is entered.

    Line 7 makes the value %7. A value whose memory an operator in place has written since, maybe
    through another view, is named after those lines too: %7+%9.
    """

    def __init__(self, names: Mapping[int, str], parameters: Set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names, self._parameters = names, parameters
        self._lines: list[str] = []
        # by id; the reference says whether the id still is that tensor's
        self._known: dict[int, tuple[weakref.ref[Tensor], str, int]] = {}
        self._written: dict[int, list[int]] = {}  # lines that wrote, by address of the memory
        self._origins = {name: _Origin({}, {name: None}) for name in names.values()}
        self._layers: dict[str, None] = {}

    def name(self, tensor: Tensor, token: str) -> None:
        """What ``tensor`` is called from here on."""
        self._known[id(tensor)] = (weakref.ref(tensor), token, len(self._lines))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = describe_call(func, args, kwargs or {})
        # before it runs: an operator in place changes what its operand is called
        operands = [self._token(one) for one in call.operands]
        if call.turns:
            operands[1] = _turned(operands[1])
        result = func(*args, **(kwargs or {}))
        self._note(call, operands, flat_tensors(result))
        return result

    def _note(self, call: Described, operands: Sequence[str], made: Sequence[Tensor]) -> None:
        if call.same or call.kind in ("empty", "transpose"):
            token = operands[0] if operands else f"empty{list(made[0].shape)}"
            self.name(made[0], _turned(token) if call.kind == "transpose" else token)
            return
        number = len(self._lines)
        shape = [f"-> {list(made[0].shape)}"] if call.keeps_values else []
        self._lines.append(" ".join([f"%{number}", call.kind, *operands, *call.settings, *shape]))
        self._origins[f"%{number}"] = self._trace(call, operands)
        for place, tensor in enumerate(made):
            self.name(tensor, f"%{number}.{place}" if place else f"%{number}")
        for tensor in call.written:
            self._written.setdefault(tensor.untyped_storage().data_ptr(), []).append(number)

    def _token(self, tensor: Tensor) -> str:
        reference, token, since = self._known.get(id(tensor), (None, "", 0))
        if id(tensor) in self._names:
            token, since = self._names[id(tensor)], 0
        elif reference is None or reference() is not tensor:
            return constant_token(tensor)
        later = self._written.get(tensor.untyped_storage().data_ptr(), [])
        return token + "".join(f"+%{line}" for line in later if line >= since)

    def _trace(self, call: Described, operands: Sequence[str]) -> _Origin:
        """Which last layers and which tensors of the state the result comes from."""
        origins = [self._origin(token) for token in operands]
        total = _join(origins)
        names = _join(origins[1:]).tensors
        if call.is_layer:  # a kernel that is a constant makes no layer (average pooling, blur)
            names = {name: None for name in names if name in self._parameters}
        owners = {name.rpartition(".")[0]: None for name in names}
        if call.is_weighted:
            self._layers |= owners
        if call.is_layer and owners:
            total = _Origin(dict.fromkeys(list(owners)[:1]), total.tensors)
        return total

    def _origin(self, token: str) -> _Origin:
        parts = token.split("+")
        names = [part.removesuffix(TURNED) for part in parts]
        return _join(
            self._origins.get(one.partition(".")[0] if one.startswith("%") else one, _Origin())
            for one in names
        )

    def finish(self, result: Any) -> Function:
        """What was written down, with the line of the result."""
        tokens = [self._token(one) for one in flat_tensors(result)]
        last = _join(self._origin(token) for token in tokens)
        lines = (*self._lines, " ".join(["result", *tokens]))
        return Function(lines, tuple(last.layers), tuple(self._layers))


def _join(origins: Iterable[_Origin]) -> _Origin:
    total = _Origin()
    for one in origins:
        total.layers |= one.layers
        total.tensors |= one.tensors
    return total


def _turned(token: str) -> str:
    """A matrix's name when it is transposed; twice is not at all."""
    return token.removesuffix(TURNED) if token.endswith(TURNED) else token + TURNED
