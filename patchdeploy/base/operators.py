"""One ATen call in a form that is the same however PyTorch came to make it.

In: an operator with its arguments, as a dispatch mode sees them. Out: a `Described`. Several
operators that compute the same get one form (relu and clamp, view and flatten, the forms of batch
normalisation, a linear layer by addmm), and what copies without changing a value is marked so: then
neither a release of PyTorch nor a memory format changes the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Described:
    """One call.

    Attributes:
        kind: operator, without overload and the underscore of one in place.
        operands: tensors that it reads.
        settings: its other arguments, as text, in a fixed order.
        written: tensors whose memory it writes.
        same: the result has the values and the shape of the only operand.
        keeps_values: the result has the operand's values in another shape, which says all.
        turns: the second operand is the transposed kernel.
    """

    kind: str
    operands: tuple[Tensor, ...]
    settings: tuple[str, ...] = ()
    written: tuple[Tensor, ...] = ()
    same: bool = False
    keeps_values: bool = False
    turns: bool = False

    @property
    def is_layer(self) -> bool:
        """It multiplies maps with a kernel, as a last layer does."""
        return self.kind in LAYERS

    @property
    def is_weighted(self) -> bool:
        """What it reads after the first operand are a layer's own tensors."""
        return self.kind in LAYERS or self.kind in NORMALISATIONS


LAYERS = frozenset(("convolution", "linear"))
NORMALISATIONS = frozenset(("batch_norm", "native_layer_norm", "native_group_norm"))
COPIES = frozenset(("detach", "alias", "clone", "contiguous", "lift_fresh", "_to_copy", "dropout"))
RESHAPES = frozenset(
    ("view", "_unsafe_view", "_reshape_alias", "reshape", "flatten", "squeeze", "unsqueeze")
)
FACTORIES = frozenset(("empty", "empty_like", "empty_strided", "new_empty"))
UNHEARD = frozenset(
    ("layout", "device", "pin_memory", "memory_format", "non_blocking", "generator")
)
"""Arguments that change no value."""


def describe_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Described:
    """The call of ATen operator ``func``."""
    given = _by_name(func, args, kwargs)
    name = func._schema.name.partition("::")[2]
    mutable = func._schema.is_mutable
    kind = name.removesuffix("_") if mutable else name
    written = tuple(
        given[one.name]
        for one in func._schema.arguments
        if one.alias_info is not None and one.alias_info.is_write
        if isinstance(given.get(one.name), Tensor)
    )
    made = _FORMS.get(kind, _plain)(kind, given)
    # Batch normalisation in evaluation mode writes nothing, whatever its schema says.
    return made if made.kind == "batch_norm" else replace(made, written=written)


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    declared = func._schema.arguments
    given = {one.name: one.default_value for one in declared if one.has_default_value()}
    given |= {one.name: value for one, value in zip(declared, args, strict=False)}
    return {**given, **kwargs}


def flat_tensors(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [one for part in value.values() for one in flat_tensors(part)]
    if isinstance(value, list | tuple):
        return [one for part in value for one in flat_tensors(part)]
    return []


def constant_token(tensor: Tensor) -> str:
    """What a tensor is called that is neither state nor made here: its type, shape and content."""
    array = tensor.detach().cpu().contiguous().reshape(-1)
    data = array.view(torch.uint8).numpy().tobytes() if array.numel() else b""
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"constant({_text(tensor.dtype)}{list(tensor.shape)}#{digest})"


def _text(value: Any) -> str:
    """A setting; whole numbers and fractions of one value alike (relu6 is a clamp at 6 and 6.0)."""
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(one) for one in value)}]"
    return str(value).removeprefix("torch.")


def _settings(given: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}={_text(given.get(name))}" for name in names)


def _plain(kind: str, given: Mapping[str, Any]) -> Described:
    """Every tensor is read, all else is a setting."""
    operands = tuple(one for value in given.values() for one in flat_tensors(value))
    names = [k for k, v in given.items() if k not in UNHEARD and not flat_tensors(v)]
    return Described(kind, operands, _settings(given, sorted(names)))


def _tensors(given: Mapping[str, Any], names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(given[one] for one in names if isinstance(given.get(one), Tensor))


def _copy(kind: str, given: Mapping[str, Any]) -> Described:
    operand = flat_tensors(list(given.values()))[0]
    if kind == "dropout" and given.get("train"):
        return _plain(kind, given)
    if kind == "_to_copy" and given.get("dtype") not in (None, operand.dtype):
        return Described("to", (operand,), _settings(given, ["dtype"]))
    return Described(kind, (operand,), same=True)


def _reshape(kind: str, given: Mapping[str, Any]) -> Described:
    return Described("reshape", (flat_tensors(list(given.values()))[0],), keeps_values=True)


def _factory(kind: str, given: Mapping[str, Any]) -> Described:
    return Described("empty", ())


def _permute(kind: str, given: Mapping[str, Any]) -> Described:
    operand: Tensor = given["self"]
    if kind != "permute" and operand.ndim == 2:
        return Described("transpose", (operand,))
    axes = list(range(operand.ndim))
    if kind == "permute":
        axes = [int(dim) % operand.ndim for dim in given["dims"]]
    elif operand.ndim > 1:
        first, second = (int(given[key]) for key in ("dim0", "dim1"))
        axes[first], axes[second] = axes[second], axes[first]
    return Described("permute", (operand,), (_text(axes),))


def _convolution(kind: str, given: Mapping[str, Any]) -> Described:
    names = ["stride", "padding", "dilation", "groups", "transposed"]
    names += ["output_padding"] if given.get("transposed") else []
    return Described(
        "convolution", _tensors(given, ("input", "weight", "bias")), _settings(given, names)
    )


def _batch_norm(kind: str, given: Mapping[str, Any]) -> Described:
    names = ("input", "weight", "bias", "running_mean", "running_var")
    which = _settings({name: given.get(name) is not None for name in names}, names[1:])
    if given.get("training"):
        return Described("batch_norm_of_batch", _tensors(given, names), which)
    return Described("batch_norm", _tensors(given, names), (*which, f"eps={_text(given['eps'])}"))


def _clamp(kind: str, given: Mapping[str, Any]) -> Described:
    operand: Tensor = given["self"]
    low = given.get("min_val", given.get("min", 0.0 if kind == "relu" else None))
    high = given.get("max_val", given.get("max"))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return _plain(kind, given)
    return Described("clamp", (operand,), (_text(low), _text(high)))


def _max_pool(kind: str, given: Mapping[str, Any]) -> Described:
    settings = {**given, "stride": given.get("stride") or given["kernel_size"]}
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return Described("max_pool2d", (given["self"],), _settings(settings, names))


def _mean(kind: str, given: Mapping[str, Any]) -> Described:
    operand: Tensor = given["self"]
    dims = sorted(int(dim) % operand.ndim for dim in given.get("dim") or range(operand.ndim))
    return Described("mean", (operand,), (_text(dims), _text(bool(given.get("keepdim")))))


def _linear(kind: str, given: Mapping[str, Any]) -> Described:
    if kind == "linear":
        return Described(kind, _tensors(given, ("input", "weight", "bias")))
    if kind == "addmm" and (given.get("alpha", 1), given.get("beta", 1)) != (1, 1):
        return _plain(kind, given)
    names = ("mat1", "mat2", "self") if kind == "addmm" else ("self", "mat2")
    return Described("linear", _tensors(given, names), turns=True)


def _as_strided(kind: str, given: Mapping[str, Any]) -> Described:
    """PyTorch calls it on a pooled map in another memory format, whose values stay in place."""
    operand: Tensor = given["self"]
    whole = operand.numel() * operand.element_size() == operand.untyped_storage().nbytes()
    if list(given["size"]) == list(operand.shape) and operand.shape[2:].numel() == 1 and whole:
        return Described(kind, (operand,), same=True)
    return _plain(kind, given)


Form = Callable[[str, Mapping[str, Any]], Described]
_FORMS: dict[str, Form] = {
    **dict.fromkeys(COPIES, _copy),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(FACTORIES, _factory),
    **dict.fromkeys(("t", "transpose", "permute"), _permute),
    **dict.fromkeys(("relu", "hardtanh", "relu6", "clamp", "clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution"), _convolution),
    **dict.fromkeys(
        (
            "batch_norm",
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "mkldnn_max_pool2d"), _max_pool),
    **dict.fromkeys(("linear", "addmm", "mm"), _linear),
    "as_strided": _as_strided,
    "mean": _mean,
}
