"""A network's tensors in a file: read, compared with the network, put into a copy of it.

In: a safetensors or .pt file of another's making, a module. Out: a filled module, or a
CheckpointError that says which tensor does not fit and what would. Nothing in the file is run
(`base.pickled`), and no tensor is larger than the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from patchdeploy.base.forms import choose_state, find_states, is_counter, only_state
from patchdeploy.base.pickled import Placeholder, read_pickled
from patchdeploy.base.plain import copy_module
from patchdeploy.errors import CheckpointError, IrregularFileError, NonFiniteError
from patchdeploy.errors_reason import describe_reason
from patchdeploy.storage import open_regular
from patchdeploy.storage_kinds import HEAD_BYTES, describe_content

MOST_BYTES = 16 * 2**30
"""The longest checkpoint that is read."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAFETENSORS_HEADER_BYTES = 100 * 2**20


def read_state(path: Path, expected: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict in a safetensors or .pt file, whatever the file is called.

    Args:
        expected: the network's state dict: of several mappings in the file the one that fits is
            taken, under the network's names (`base.forms`). By default the largest.

    Raises:
        CheckpointError: missing, truncated, or no mapping of names to tensors.
    """
    try:
        states = _read_states(path)
    except Exception as error:  # each loader has errors of its own; all mean the same here
        what, remedy = _explain(path, error)
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({what}); it must be a whole safetensors file or a "
            f".pt file of tensors; {remedy}"
        ) from error
    if expected is None:
        return only_state(states)
    return choose_state(states, expected, str(path))


def _read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length > MOST_BYTES:
            raise CheckpointError(f"it is {length} bytes long, and at most {MOST_BYTES} are read")
        if _is_safetensors(file, length):
            from safetensors.torch import load

            states = {"": dict(load(file.read()))}
        else:
            document = read_pickled(file)
            states = find_states(document)
            if not states:
                raise CheckpointError(_describe_document(document))
    for state in states.values():
        for key, value in state.items():
            _check_tensor(key, value, length)
    return states


def _is_safetensors(file: BinaryIO, length_bytes: int) -> bool:
    """8 bytes with the length of a JSON object, and the object."""
    head = file.read(9)
    file.seek(0)
    header = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and header <= _SAFETENSORS_HEADER_BYTES


def _describe_document(document: object) -> str:
    if isinstance(document, Placeholder):
        kind = getattr(document, "name", "another class")
        return f"it holds a whole object of class {kind}, which only its program can make"
    if isinstance(document, Mapping):
        shown = ", ".join(repr(one) for one in list(document)[:5])
        return f"it holds a mapping without tensors (keys {shown or 'none'})"
    return f"it holds a {type(document).__name__}"


def _check_tensor(key: str, value: Tensor, length_bytes: int) -> None:
    """A plain array in memory whose values are all in the file: a stride of 0 repeats a few."""
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise CheckpointError(
            f"tensor {key!r} is sparse, quantised or without values; save it as a plain one"
        )
    if value.numel() * value.element_size() > length_bytes:
        raise CheckpointError(
            f"tensor {key!r} of {list(value.shape)} is larger than the file; save it whole"
        )


def _explain(path: Path, error: Exception) -> tuple[str, str]:
    """What is wrong with the file, and what to do."""
    again = "copy or save it again"
    if isinstance(error, CheckpointError):
        what, _, remedy = str(error).partition("; ")
        return what, remedy or "save module.state_dict()"
    if isinstance(error, IrregularFileError):
        return str(error).partition("; ")[0], "name the file itself"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror, "correct the path"
    try:
        with os.fdopen(open_regular(path, follow=True), "rb") as file:
            found = describe_content(file.read(HEAD_BYTES))
    except (OSError, IrregularFileError):
        found = None
    return found or (describe_reason(error), again)


def fill_module(module: nn.Module, path: Path) -> nn.Module:
    """A copy of ``module`` with the state dict in ``path``.

    Raises:
        CheckpointError: not readable, or names and shapes that do not fit.
    """
    filled = copy_module(module, str(path))
    expected = filled.state_dict()
    state = read_state(path, expected)
    _check_fit(expected, state, path)
    filled.load_state_dict(state, strict=False)  # names are checked
    return filled


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise unless every value is finite.

    Raises:
        NonFiniteError: naming the first tensor with NaN or infinity.
    """
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise NonFiniteError(
                f"{name}: tensor {key!r} has {count} values that are NaN or infinite; all must be "
                "finite; use an earlier checkpoint"
            )


def _check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    # Counters are in no .safetensors of most exporters, and no forward pass reads them.
    heads = {key.partition(".")[0] for key in expected}
    expected, found = (
        {k: v for k, v in one.items() if not is_counter(k, v)} for one in (expected, found)
    )
    found = {k: v for k, v in found.items() if k in expected or not _is_auxiliary(k, heads)}
    wrong = [f"{key} is missing" for key in expected if key not in found]
    wrong += [f"{key} is not expected" for key in found if key not in expected]
    wrong += [
        f"{key} is {list(found[key].shape)}, not {list(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    wrong += [
        f"{key} is {str(found[key].dtype).removeprefix('torch.')}, not a float"
        for key in expected
        if key in found and found[key].dtype not in _FLOATS
    ]
    if wrong:
        raise CheckpointError(
            f"checkpoint {path} does not fit the network: {'; '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}; "
            + _name_remedy(expected, found)
        )


def _is_auxiliary(key: str, heads: set[str]) -> bool:
    """Of a second classifier, which only training runs and `Base.from_torchvision` takes off."""
    first = key.partition(".")[0]
    return first.lower().startswith("aux") and first not in heads


def _name_remedy(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Where one layer alone has another number of rows, it is a head of other classes."""
    other = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    layers = {key.rpartition(".")[0] for key in other}
    rows = {len(found[key]) for key in other if found[key].ndim > 0}
    alike = all(found[key].shape[1:] == expected[key].shape[1:] for key in other)
    if set(expected) == set(found) and len(layers) == len(rows) == 1 and alike:
        return (
            f"layer {layers.pop()} has {rows.pop()} rows in the checkpoint; build the network with "
            "as many classes (each patch brings a head of its own)"
        )
    return "use the checkpoint of this architecture"
