"""What a network is made of: which normalisation reads which convolution, signs, content hash.

In: an nn.Module in evaluation mode. Out: a `Trace` of one forward pass, the module with positive
normalisation scales, and the SHA-256 of what it computes with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdeploy.base.function import Function, record_function
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
    if type(module).__module__.startswith("torchvision.models.detection"):
        raise _refuse_output(module, [], name)  # before it resizes an image to 800 px
    try:
        output = _run_example(module, torch.zeros(1, 3, input_size, input_size), name)
    finally:
        for handle in handles:
            handle.remove()
    good = isinstance(output, Tensor) and output.dtype == torch.float32
    if order and not (good and output.ndim == 2 and len(output) == 1):
        raise _refuse_output(module, output, name)
    return Trace(readers, tuple(order), frozenset(reached))


@torch.no_grad()
def _run_example(module: nn.Module, images: Tensor, name: str) -> Any:
    first: list[tuple[str, nn.Conv2d]] = []

    def see(path: str, layer: nn.Conv2d) -> Any:
        return layer.register_forward_pre_hook(lambda *_: first.append((path, layer)))

    layers = module.named_modules()
    handles = [see(path, layer) for path, layer in layers if isinstance(layer, nn.Conv2d)]
    try:
        return module(images)
    except Exception as error:  # whatever a caller's own module raises
        shown = f"fails on float32 {list(images.shape)}"
        if first and first[0][1].in_channels != images.shape[1]:
            raise _refuse_channels(name, *first[0]) from error
        raise BaseError(
            f"base {name!r} {shown} ({error}); it must map images to class scores; correct its "
            "input_size or wrap it"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _refuse_channels(name: str, path: str, first: nn.Conv2d) -> BaseError:
    remedy = "give it the 3 input channels that it needs for RGB (weight[:, :3]) and train it again"
    if first.in_channels == 1 and first.groups == 1:
        remedy = (
            "give it 3 input channels with weight.repeat(1, 3, 1, 1) / 3, which scores grey images "
            "as before (preprocessing with one mean and one std)"
        )
    return BaseError(
        f"base {name!r} reads images of {first.in_channels} channels (convolution {path!r}); a "
        f"base reads RGB, float32 [N, 3, H, W]; {remedy}"
    )


def _refuse_output(module: nn.Module, output: Any, name: str) -> BaseError:
    found = type(output).__name__
    if isinstance(output, Tensor):
        found = f"{str(output.dtype).removeprefix('torch.')} {list(output.shape)}"
    remedy = "wrap it in a module that does"
    if is_detector(module):
        remedy = (
            "Base.from_detector(module) takes the layers of its backbone with a new linear layer"
        )
    elif hasattr(output, "logits"):
        remedy = "wrap it in a module that returns its logits"
    return BaseError(
        f"base {name!r} gives {found} for one image; it must give class scores, float32 "
        f"[1, classes]; {remedy}"
    )


def is_detector(module: nn.Module) -> bool:
    """A network of torchvision's for detection or segmentation, or one with a backbone like it."""
    kinds = ("torchvision.models.detection", "torchvision.models.segmentation")
    return type(module).__module__.startswith(kinds) or isinstance(
        getattr(module, "backbone", None), nn.Module
    )


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

    One whose convolution something else reads too keeps its sign: it is a layer by itself when
    lowered, of rows that no other layer shares.
    """
    negative = {
        conv: norm for conv, norm in norms.items() if norm and _has_negative_scale(module, norm)
    }
    if not negative:
        return
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, input_size, input_size, generator=generator)
    before = _run_example(module, images, name)

    def keeps(pairs: Sequence[tuple[str, str]]) -> bool:
        """Turn the signs of ``pairs``; where that changes the function, turn them back."""
        signs = [_flip_rows(module.get_submodule(c), module.get_submodule(n)) for c, n in pairs]
        after = _run_example(module, images, name)
        # Bit-equal where kernels round alike for either sign (all that are known do); a sign in the
        # wrong place moves scores by far more than a thousandth of the largest.
        same = float((after - before).abs().max()) <= 1e-3 * float(before.abs().max())
        for (conv, norm), sign in zip(pairs, signs, strict=True):
            if not same:
                _turn_rows(module.get_submodule(conv), module.get_submodule(norm), sign)
        return same

    def turn(pairs: Sequence[tuple[str, str]]) -> None:
        if pairs and not keeps(pairs) and len(pairs) > 1:
            half = len(pairs) // 2
            turn(pairs[:half])
            turn(pairs[half:])

    turn(list(negative.items()))


def _has_negative_scale(module: nn.Module, norm_path: str) -> bool:
    gamma = module.get_submodule(norm_path).weight
    return isinstance(gamma, Tensor) and bool((gamma < 0).any())


def _flip_rows(conv: nn.Module, norm: nn.Module) -> Tensor:
    """Make ``norm``'s scales positive; the signs that they had."""
    sign = torch.where(_tensor(norm.weight) < 0, -1.0, 1.0)
    _turn_rows(conv, norm, sign)
    return sign


def _turn_rows(conv: nn.Module, norm: nn.Module, sign: Tensor) -> None:
    _tensor(conv.weight).mul_(sign.reshape(-1, 1, 1, 1))
    if conv.bias is not None:
        _tensor(conv.bias).mul_(sign)
    _tensor(norm.running_mean).mul_(sign)
    _tensor(norm.weight).mul_(sign)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value.data


def describe_function(module: nn.Module, input_size: int, name: str) -> Function:
    """What ``module`` computes; see `record_function`.

    Raises:
        BaseError: it fails on a batch of 2 images.
    """
    try:
        return record_function(module, input_size)
    except Exception as error:  # whatever a caller's own module raises
        raise BaseError(
            f"base {name!r} fails on float32 [2, 3, {input_size}, {input_size}] ({error}), though "
            "not on one image; it must map batches of any number of images to class scores; "
            "correct its reshapes"
        ) from error


def content_hash(
    module: nn.Module, preprocessing: Preprocessing, name: str, made: frozenset[str] = frozenset()
) -> str:
    """SHA-256 over name, preprocessing, every tensor's name, dtype, shape and bytes, and of the
    convolutions and normalisations stride, padding, dilation, groups and epsilon.

    Args:
        made: names of tensors that `unify_norms` made; they are left out.
    """
    digest = hashlib.sha256()
    digest.update(name.encode() + b"\0")
    digest.update(json.dumps(preprocessing.to_json(), sort_keys=True).encode() + b"\0")
    for key, value in sorted(module.state_dict().items()):
        if key.endswith("num_batches_tracked") or key in made:
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
