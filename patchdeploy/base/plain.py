"""A caller's module as one that patches can be attached to, of the same function.

In: any nn.Module. Out: a copy on the CPU in evaluation mode, without gradients; wrappers taken off,
parametrisations stored as the tensors that they compute, and every normalisation of maps by fixed
statistics a BatchNorm2d with scale and bias. What cannot be brought into that form is refused here,
with what to do about it.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from patchdeploy.errors import BaseError

NAMES_SHOWN = 3
FROZEN_NORM = {"weight", "bias", "running_mean", "running_var"}
"""The buffers of torchvision's FrozenBatchNorm2d and of its many copies."""


def make_plain(module: nn.Module, name: str) -> nn.Module:
    """A copy of ``module`` for a base.

    Off come DataParallel, DistributedDataParallel, AveragedModel and torch.compile; weight_norm,
    spectral_norm and other parametrisations become the tensors that they give in evaluation mode.

    Raises:
        BaseError: TorchScript, a module that is quantised, not float32, not initialised or without
            values (meta device), or that cannot be copied.
    """
    plain = copy_module(take_off_wrapper(module), name).eval()
    for parent in list(plain.modules()):
        for key, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[key] = take_off_wrapper(child)
    _store_parametrisations(plain, name)
    _check_state(plain, name)
    return plain.cpu().requires_grad_(False)


def take_off_wrapper(module: nn.Module) -> nn.Module:
    """What DataParallel, DistributedDataParallel, AveragedModel or torch.compile wraps."""
    wrappers = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    while True:
        if isinstance(module, wrappers):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = getattr(module, "_orig_mod")  # noqa: B009  # torch.compile; a plain read is Any
        else:
            return module


def _check_module(module: Any, name: str) -> None:
    if not isinstance(module, nn.Module):
        remedy = "call its module()" if hasattr(module, "module") else "pass the network itself"
        raise BaseError(
            f"base {name!r} is a {type(module).__name__}; it must be a torch.nn.Module; {remedy}"
        )
    scripted = _paths(module, torch.jit.ScriptModule)
    if scripted:
        raise BaseError(
            f"base {name!r} is TorchScript ({_listed(scripted)}), whose modules "
            "can be neither copied nor patched; pass the nn.Module that it was scripted or traced "
            "from, and load the weights with module.load_state_dict(scripted.state_dict())"
        )


def _paths(module: nn.Module, kind: Any) -> list[str]:
    return [path or "the root" for path, one in module.named_modules() if isinstance(one, kind)]


def copy_module(module: nn.Module, name: str) -> nn.Module:
    """A deep copy.

    weight_norm and spectral_norm of torch.nn.utils keep a computed tensor as an attribute, which
    deepcopy refuses: those are copied as values.

    Args:
        name: of the base, for messages.

    Raises:
        BaseError: no nn.Module, TorchScript, tensors without a shape, or it cannot be copied.
    """
    _check_module(module, name)
    lazy = [key for key, one in _state(module) if torch.nn.parameter.is_lazy(one)]
    if lazy:
        raise BaseError(
            f"base {name!r} has no shape yet for {_listed(lazy)}; every tensor of a base has one; "
            "run a batch through the module first"
        )
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever a caller's attributes raise: locks, process groups
        raise BaseError(
            f"base {name!r} cannot be copied ({type(error).__name__}: {_first_line(error)}); a "
            "base is a copy that nothing else changes; take out of the module what copy.deepcopy "
            "refuses"
        ) from error


def _state(module: nn.Module) -> list[tuple[str, Any]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _store_parametrisations(module: nn.Module, name: str) -> None:
    """Every computed weight becomes a parameter of its value in evaluation mode, in place."""
    for path, layer in list(module.named_modules()):
        try:
            if parametrize.is_parametrized(layer):
                _store_computed(layer)
            for key in [one.name for one in _computing_hooks(layer)]:
                _store_hooked(layer, key)
        except Exception as error:  # whatever a parametrisation of a caller's own raises
            raise BaseError(
                f"base {name!r}: the parametrisation of {path!r} cannot be stored as a tensor "
                f"({type(error).__name__}: {_first_line(error)}); remove it from the module first "
                "(torch.nn.utils.parametrize.remove_parametrizations)"
            ) from error


def _store_computed(layer: Any) -> None:
    """torch's remove_parametrizations takes the property off the class, which a copy shares with
    the caller's module; so the layer gets its former class back instead."""
    values = {key: getattr(layer, key).detach().clone() for key in layer.parametrizations}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for key, value in values.items():
        layer.register_parameter(key, nn.Parameter(value))


def _computing_hooks(layer: nn.Module) -> list[Any]:
    """torch.nn.utils.weight_norm's and spectral_norm's hooks, which compute ``layer``'s weight."""
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    hooks = layer._forward_pre_hooks.values()
    return [one for one in hooks if isinstance(one, SpectralNorm | WeightNorm)]


def _store_hooked(layer: nn.Module, key: str) -> None:
    from torch.nn.utils.weight_norm import WeightNorm

    is_weight_norm = any(isinstance(one, WeightNorm) for one in _computing_hooks(layer))
    remove = nn.utils.remove_weight_norm if is_weight_norm else nn.utils.remove_spectral_norm
    remove(layer, key)


def _check_state(module: nn.Module, name: str) -> None:
    """Every tensor a dense float32 one with values; counters and tables may be whole numbers."""
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor) or value.is_quantized:
            kind = type(value).__name__ if not isinstance(value, Tensor) else value.dtype
            raise BaseError(
                f"base {name!r} is quantised already ({key!r} is {str(kind).removeprefix('torch.')}"
                "); a base is a float32 network, which export quantises; pass the float network"
            )
    state = _state(module)
    meta = [key for key, value in state if value.is_meta]
    sparse = [key for key, value in state if value.layout != torch.strided]
    foreign = {
        key: str(value.dtype).removeprefix("torch.")
        for key, value in state
        if (value.is_floating_point() or value.is_complex()) and value.dtype != torch.float32
    }
    kinds = ", ".join(sorted(set(foreign.values())))
    for names, what, remedy in (
        (meta, "no values (they are on the meta device)", "load its weights first"),
        (sparse, "sparse tensors", "store them with to_dense()"),
        (list(foreign), f"{kinds} values", "pass module.float()"),
    ):
        if names:
            raise BaseError(
                f"base {name!r} has {what} in {_listed(names)}; a base computes in dense float32; "
                f"{remedy}"
            )


@torch.no_grad()
def unify_norms(module: nn.Module, side: int, name: str) -> frozenset[str]:
    """Make normalisations by fixed statistics BatchNorm2d with scale and bias, in place.

    SyncBatchNorm is BatchNorm in one process, InstanceNorm2d with tracked statistics is BatchNorm
    in evaluation mode, FrozenBatchNorm2d one of buffers, and affine=False one with scale 1 and
    bias 0. The function stays as it is (FrozenBatchNorm2d's to rounding).

    Returns:
        state-dict names of scales and biases that were made so, which no file of tensors has.

    Raises:
        BaseError: a class derived from SyncBatchNorm.
    """
    made: set[str] = set()
    _refuse_kinds_of_sync(module, name)
    maps = _readers_of_maps(module, side)
    layers: list[tuple[str, Any]] = list(module.named_modules())
    for path, layer in layers:
        if type(layer) is nn.SyncBatchNorm:
            _become(layer, nn.BatchNorm2d if layer in maps else nn.BatchNorm1d)
        elif _is_frozen_norm(layer):
            _thaw(layer)
        elif type(layer) is nn.InstanceNorm2d and layer.track_running_stats:
            _become(layer, nn.BatchNorm2d)
        if isinstance(layer, nn.BatchNorm2d):
            for key, value in (("weight", 1.0), ("bias", 0.0)):
                if layer._parameters.get(key) is None:
                    layer.affine = True
                    tensor = torch.full((layer.num_features,), value)
                    layer._parameters[key] = nn.Parameter(tensor, requires_grad=False)
                    made.add(f"{path}.{key}")
    return frozenset(made)


def _become(layer: Any, kind: type[nn.Module]) -> None:
    """The same object, tensors and hooks under another class."""
    layer.__class__ = kind


def _refuse_kinds_of_sync(module: nn.Module, name: str) -> None:
    for path, layer in module.named_modules():
        if isinstance(layer, nn.SyncBatchNorm) and type(layer) is not nn.SyncBatchNorm:
            raise BaseError(
                f"base {name!r}: normalisation {path!r} is a {type(layer).__name__}, a kind of "
                "SyncBatchNorm that cannot be patched; normalisations of a base are BatchNorm2d; "
                "build the network without convert_sync_batchnorm and load the weights into it"
            )


def _readers_of_maps(module: nn.Module, side: int) -> set[nn.Module]:
    """The SyncBatchNorm that read [N, C, H, W]; the same class serves [N, C]."""
    found: set[nn.Module] = set()
    norms = [one for one in module.modules() if type(one) is nn.SyncBatchNorm]

    def see(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(inputs[0], Tensor) and inputs[0].ndim == 4:
            found.add(layer)

    handles = [one.register_forward_pre_hook(see) for one in norms]
    try:
        if norms:
            with suppress(Exception):  # said when the layers are traced
                module(torch.zeros(1, 3, side, side))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_frozen_norm(layer: nn.Module) -> bool:
    """It has a batch normalisation's four buffers and nothing else, and computes as one does."""
    names = {key for key, value in layer._buffers.items() if value is not None}
    names.discard("num_batches_tracked")
    eps = getattr(layer, "eps", None)
    if names != FROZEN_NORM or layer._parameters or layer._modules or not isinstance(eps, float):
        return False
    mean, var, weight, bias = (
        layer.get_buffer(key) for key in ("running_mean", "running_var", "weight", "bias")
    )
    x = torch.randn(2, len(mean), 2, 2, generator=torch.Generator().manual_seed(0))
    try:
        found = layer(x)
    except Exception:  # another kind of layer, which is left as it is
        return False
    expected = nn.functional.batch_norm(x, mean, var, weight, bias, eps=eps)
    # Four roundings of either way, of values as large as the largest.
    close = 1e-5 * float(expected.abs().max())
    return isinstance(found, Tensor) and torch.allclose(found, expected, rtol=0, atol=close)


def _thaw(layer: Any) -> None:
    """A frozen normalisation as a BatchNorm2d over the same tensors, under the same object: hooks
    and other names of it stay."""
    tensors = {key: layer._buffers.pop(key) for key in FROZEN_NORM}
    plain = nn.BatchNorm2d(len(tensors["weight"]), layer.eps).eval()
    layer.__class__ = nn.BatchNorm2d
    for key, value in vars(plain).items():
        layer.__dict__.setdefault(key, value)
    for key, value in tensors.items():
        if key in ("weight", "bias"):
            layer._parameters[key] = nn.Parameter(value, requires_grad=False)
        else:
            layer._buffers[key] = value
    layer._buffers.setdefault("num_batches_tracked", torch.tensor(0))
