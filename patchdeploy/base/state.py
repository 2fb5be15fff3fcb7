"""A network's tensors in a file: read, compared with the network, put into a copy of it.

In: a .safetensors or .pt file, a module. Out: a filled module, or a CheckpointError that says which
tensor does not fit and what would.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from patchdeploy.errors import CheckpointError, NonFiniteError


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pt file.

    Raises:
        CheckpointError: missing, truncated, or no mapping of names to tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
    except Exception as error:  # each loader has errors of its own; all mean the same here
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {str(error)[:200]}); it "
            "must be a whole .safetensors file or a .pt file of tensors; copy or save it again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(state).__name__}; it must be a state dict, names to "
            "tensors; save module.state_dict()"
        )
    return dict(state)


def fill_module(module: nn.Module, path: Path) -> nn.Module:
    """A copy of ``module`` with the state dict in ``path``.

    Raises:
        CheckpointError: not readable, or names and shapes that do not fit.
    """
    state = read_state(path)
    filled = copy.deepcopy(module)
    _check_fit(filled.state_dict(), state, path)
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
    # Batch counters are in no .safetensors of most exporters, and no forward pass reads them.
    expected, found = (
        {k: v for k, v in one.items() if not k.endswith("num_batches_tracked")}
        for one in (expected, found)
    )
    wrong = [f"{key} is missing" for key in expected if key not in found]
    wrong += [f"{key} is not expected" for key in found if key not in expected]
    wrong += [
        f"{key} is {list(found[key].shape)}, not {list(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"checkpoint {path} does not fit the network: {'; '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}; "
            + _name_remedy(expected, found)
        )


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
