"""What a network is made of: which normalisation reads which convolution, signs, content hash.

In: an nn.Module in evaluation mode. Out: a `Trace` of one forward pass, the module with positive
normalisation scales, and the SHA-256 of what it computes with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdeploy.data import Preprocessing
from patchdeploy.errors import BaseError

CONVOLUTIONS = (nn.Conv2d,)
NORMS = (nn.BatchNorm2d,)


@dataclass(frozen=True)
class Trace:
    """What one forward pass reached.

    Attributes:
        norms: for every convolution, the path of the normalisation that reads it, or None.
        classifiers: paths of Linear and Conv2d layers, in the order of their (last) call.
        reached: paths of convolutions and normalisations that ran.
    """

    norms: Mapping[str, str | None]
    classifiers: tuple[str, ...]
    reached: frozenset[str]

    def head(self, name: str) -> str:
        """The Linear or Conv2d that ran last.

        Raises:
            BaseError: there is none.
        """
        if not self.classifiers:
            raise BaseError(
                f"base {name!r} has no Linear or Conv2d; its last layer would be the head; give a "
                "classifier"
            )
        return self.classifiers[-1]


def trace_layers(module: nn.Module, input_size: int, name: str) -> Trace:
    """Which normalisation reads which convolution, and what runs last, seen in a forward pass.

    Raises:
        BaseError: a forward pass on float32 [1, 3, input_size, input_size] fails, or gives no
            [1, classes].
    """
    readers: dict[str, str | None] = {}
    # Output of a convolution and its version, by id; kept, so that the id stays its own. A
    # version that moved on tells of an operation in place (an activation) before the reader.
    made: dict[int, tuple[str, Tensor, int]] = {}
    order: dict[str, None] = {}
    reached: set[str] = set()

    def after(path: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            order.pop(path, None)
            order[path] = None
            if isinstance(layer, CONVOLUTIONS):
                reached.add(path)
                readers[path] = None
                made[id(output)] = (path, output, output._version)

        return hook

    def before_norm(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reached.add(path)
            maker = made.get(id(inputs[0]))
            if maker is not None and maker[2] == inputs[0]._version:
                readers[maker[0]] = path

        return hook

    handles = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            handles.append(layer.register_forward_hook(after(path, layer)))
        elif isinstance(layer, NORMS):
            _check_statistics(layer, path, name)
            handles.append(layer.register_forward_pre_hook(before_norm(path)))
    try:
        output = _run_example(module, torch.zeros(1, 3, input_size, input_size), name)
    finally:
        for handle in handles:
            handle.remove()
    if order and not (isinstance(output, Tensor) and output.ndim == 2 and len(output) == 1):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BaseError(
            f"base {name!r} gives {found} for one image; it must give class scores [1, classes]; "
            "wrap it in a module that does"
        )
    return Trace(readers, tuple(order), frozenset(reached))


@torch.no_grad()
def _run_example(module: nn.Module, images: Tensor, name: str) -> Any:
    try:
        return module(images)
    except Exception as error:  # whatever a caller's own module raises
        raise BaseError(
            f"base {name!r} fails on float32 {list(images.shape)} ({error}); it must map images to "
            "class scores; correct its input_size or wrap it"
        ) from error


def _check_statistics(norm: nn.Module, path: str, name: str) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise BaseError(
            f"base {name!r}: normalisation {path!r} keeps no statistics "
            "(track_running_stats=False); folding needs mu and var; train it with them"
        )


@torch.no_grad()
def make_scales_positive(
    module: nn.Module, norms: Mapping[str, str | None], input_size: int, name: str
) -> None:
    """Move negative signs of normalisation scales into the convolutions before them, in place.

    Raises:
        BaseError: the function would change, because something else reads such a convolution too.
    """
    negative = [norm for norm in norms.values() if norm and _has_negative_scale(module, norm)]
    if not negative:
        return
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, input_size, input_size, generator=generator)
    before = _run_example(module, images, name)
    for conv_path, norm_path in norms.items():
        if norm_path in negative:
            _flip_rows(module.get_submodule(conv_path), module.get_submodule(norm_path))
    after = _run_example(module, images, name)
    # Bit-equal where kernels round alike for either sign (all that are known do); a sign in the
    # wrong place moves scores by far more than a thousandth of the largest.
    if float((after - before).abs().max()) > 1e-3 * float(before.abs().max()):
        raise BaseError(
            f"base {name!r}: normalisations with negative scales ({', '.join(negative[:3])}) whose "
            "convolution something else reads too; scales must be positive so that quantised rows "
            "serve every task; give each such normalisation a convolution of its own"
        )


def _has_negative_scale(module: nn.Module, norm_path: str) -> bool:
    gamma = module.get_submodule(norm_path).weight
    return isinstance(gamma, Tensor) and bool((gamma < 0).any())


def _flip_rows(conv: nn.Module, norm: nn.Module) -> None:
    gamma = _tensor(norm.weight)
    sign = torch.where(gamma < 0, -1.0, 1.0)
    _tensor(conv.weight).mul_(sign.reshape(-1, 1, 1, 1))
    if conv.bias is not None:
        _tensor(conv.bias).mul_(sign)
    _tensor(norm.running_mean).mul_(sign)
    gamma.mul_(sign)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value.data


def content_hash(module: nn.Module, preprocessing: Preprocessing, name: str) -> str:
    """SHA-256 over name, preprocessing, every tensor's name, dtype, shape and bytes, and what the
    tensors do not tell: stride, padding, dilation, groups and epsilon.
    """
    digest = hashlib.sha256()
    digest.update(name.encode() + b"\0")
    digest.update(json.dumps(preprocessing.to_json(), sort_keys=True).encode() + b"\0")
    for key, value in sorted(module.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        array = np.ascontiguousarray(value.cpu().numpy())
        digest.update(f"{key}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    for path, layer in module.named_modules():
        digest.update(f"{path}\0{_settings(layer)}\0".encode())
    return digest.hexdigest()


def _settings(layer: nn.Module) -> tuple[Any, ...]:
    if isinstance(layer, nn.Conv2d):
        return (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return (layer.eps,) if isinstance(layer, NORMS) else ()
