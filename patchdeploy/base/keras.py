"""A Keras MobileNetV2 .h5 file as a torch module with the very same function.

In: the file (h5py reads it; TensorFlow is not needed). Out: torchvision's MobileNetV2 with
TensorFlow's conventions: stride-2 convolutions pad bottom and right only, batch norm eps 1e-3.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdeploy.data import Preprocessing
from patchdeploy.errors import CheckpointError, IrregularFileError, MissingExtraError
from patchdeploy.errors_reason import describe_reason
from patchdeploy.storage import open_regular
from patchdeploy.storage_kinds import HEAD_BYTES, describe_content

MODEL = "model_weights"
FEATURES = 1280
MOST_ARRAYS, MOST_CLASSES = 100_000, 65_536
MOST_PACKED = 32
"""How many times longer a compressed array may be than the file; weights do not reach 2."""
KERAS_EPS = 1e-3
"""keras.applications.MobileNetV2, BatchNormalization(epsilon=1e-3)."""


class PadAfter(nn.Conv2d):
    """A stride-2 3x3 convolution with TensorFlow's SAME padding of an even size: (0, 1, 0, 1)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


def read_mobilenet_v2(path: Path) -> tuple[nn.Module, Preprocessing]:
    """The network in ``path``: width 1.0, its dense head where there is one on 1280 features.

    Only arrays that a MobileNetV2 has are read, of the very shapes that it has, and only where
    their values lie in the file itself: HDF5 can name other files for them, or none.

    Raises:
        MissingExtraError: h5py is not installed.
        CheckpointError: not an HDF5 file, or no MobileNetV2 in it.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(
            "a Keras file needs h5py, which is not installed; run: pip install 'patchdeploy[keras]'"
        ) from error
    found: tuple[str, str] | None = None
    try:
        with os.fdopen(open_regular(path, follow=True), "rb") as raw:
            length = os.fstat(raw.fileno()).st_size
            found = describe_content(raw.read(HEAD_BYTES))
            raw.seek(0)
            with h5py.File(raw, "r") as file:
                return _read(file, path, length)
    except (CheckpointError, MissingExtraError):
        raise
    except IrregularFileError as error:
        raise CheckpointError(f"Keras file {error}") from error
    except Exception as error:  # h5py raises five kinds on damaged bytes
        what, remedy = describe_reason(error), "save it with model.save('file.h5')"
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES):
            what = error.strerror or what
        elif found is not None and "HDF5" not in found[0]:
            what, remedy = found
        raise CheckpointError(
            f"{path} cannot be read as HDF5 ({what}); it must be a whole Keras .h5 file; copy it "
            f"again or {remedy}"
        ) from error


def _read(file: Any, path: Path, length_bytes: int) -> tuple[nn.Module, Preprocessing]:
    named = file.get("model_weights", getlink=True)
    if named is not None and type(named).__name__ != "HardLink":
        raise CheckpointError(
            f"{path}: model_weights is a link; its arrays must be in the file itself; save the "
            "whole model"
        )
    arrays = _Arrays(path, length_bytes, _find_arrays(file if named is None else file[MODEL]))
    if "Conv1/kernel" not in arrays.found or "block_16_project/kernel" not in arrays.found:
        raise CheckpointError(
            f"{path} holds {len(arrays.found)} arrays but no MobileNetV2 (no Conv1/kernel); save a "
            "model that is built on keras.applications.MobileNetV2"
        )
    config = str(file.attrs.get("model_config", ""))
    size = next((px for px in (96, 128, 160, 192, 224) if f"1.00_{px}" in config), 224)
    return _fill(arrays), Preprocessing((0.5,) * 3, (0.5,) * 3, size)


def _find_arrays(group: Any) -> dict[str, Any]:
    """Data sets by 'layer/variable', whatever groups the file nests them in; none is read yet.

    Links are not followed. A name that comes twice is given to neither.
    """
    import h5py

    found: dict[str, Any] = {}
    twice: set[str] = set()

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            key = "/".join(name.replace(":0", "").split("/")[-2:])
            if key in found:
                twice.add(key)
            found[key] = entry
            if len(found) > MOST_ARRAYS:
                raise ValueError(f"more than {MOST_ARRAYS} arrays")

    group.visititems(visit)
    return {key: entry for key, entry in found.items() if key not in twice}


@dataclass(frozen=True)
class _Arrays:
    """Data sets of a file, each looked at before it is read."""

    path: Path
    length_bytes: int
    found: dict[str, Any]

    def read(self, key: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Float values of the data set ``key``, which must have ``shape``.

        Raises:
            CheckpointError: not there, of another shape or kind, or with values elsewhere.
        """
        entry = self.found.get(key)
        if entry is None:
            raise CheckpointError(
                f"the Keras file has no {key} of its own; a MobileNetV2 of width 1.0 has; save the "
                "whole model"
            )
        if entry.shape != shape:
            raise CheckpointError(
                f"the Keras file has an array {entry.shape} where width 1.0 has {shape};"
                " only MobileNetV2 of width 1.0 is read"
            )
        if entry.external or entry.is_virtual or entry.dtype.kind != "f":
            raise CheckpointError(
                f"{self.path}: the values of {key} are no floats in this file (type "
                f"{entry.dtype}, or kept in another file); they must be; save the whole model again"
            )
        kept, needed = entry.id.get_storage_size(), entry.size * entry.dtype.itemsize
        packed = entry.compression is not None and needed <= MOST_PACKED * self.length_bytes
        if not kept or (kept < needed and not packed) or kept > self.length_bytes:
            raise CheckpointError(
                f"{self.path}: {key} of {entry.shape} takes {needed} bytes, of which {kept} are in "
                "the file; it must hold all; save the whole model again"
            )
        return np.asarray(entry)


def make_mobilenet_v2(classes: int) -> nn.Module:
    """Keras' MobileNetV2 with random weights: TensorFlow's padding and epsilon."""
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = torchvision.models.mobilenet_v2(num_classes=classes)
    for path, _, _ in _layers():
        conv = module.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        if conv.stride == (2, 2):
            conv.__class__ = PadAfter
            conv.padding = (0, 0)
        _norm_of(module, path).eps = KERAS_EPS
    return module


def _norm_of(module: nn.Module, convolution: str) -> nn.BatchNorm2d:
    stem, _, last = convolution.rpartition(".")
    norm = module.get_submodule(f"{stem}.{int(last) + 1}")
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _fill(arrays: _Arrays) -> nn.Module:
    dense = [
        key
        for key, entry in arrays.found.items()
        if len(entry.shape) == 2 and entry.shape[0] == FEATURES and key.endswith("kernel")
    ]
    classes = int(arrays.found[dense[0]].shape[1]) if dense else 1000
    if not 1 <= classes <= MOST_CLASSES or FEATURES * classes > MOST_PACKED * arrays.length_bytes:
        raise CheckpointError(
            f"{arrays.path}: {dense[0]} has {classes} classes; a head has 1 to {MOST_CLASSES}, and "
            "the file must hold it; save the whole model"
        )
    module = make_mobilenet_v2(classes)
    for path, conv_layer, norm_layer in _layers():
        conv, norm = module.get_submodule(path), _norm_of(module, path)
        assert isinstance(conv, nn.Conv2d)
        _copy(conv.weight, _kernel(arrays, conv_layer, tuple(conv.weight.shape)))
        for target, variable in (
            (norm.weight, "gamma"),
            (norm.bias, "beta"),
            (norm.running_mean, "moving_mean"),
            (norm.running_var, "moving_variance"),
        ):
            assert target is not None
            _copy(target, arrays.read(f"{norm_layer}/{variable}", tuple(target.shape)))
    if dense:
        head = module.get_submodule("classifier.1")
        assert isinstance(head, nn.Linear)
        _copy(head.weight, arrays.read(dense[0], (FEATURES, classes)).T)
        layer = dense[0].rpartition("/")[0]
        _copy(head.bias, arrays.read(f"{layer}/bias".lstrip("/"), (classes,)))
    return module


def _layers() -> list[tuple[str, str, str]]:
    """(torch path of the convolution, Keras convolution, Keras normalisation), in order."""
    rows = [
        ("features.0.0", "Conv1", "bn_Conv1"),
        ("features.1.conv.0.0", "expanded_conv_depthwise", "expanded_conv_depthwise_BN"),
        ("features.1.conv.1", "expanded_conv_project", "expanded_conv_project_BN"),
    ]
    for block in range(1, 17):
        for part, name in (("0.0", "expand"), ("1.0", "depthwise"), ("2", "project")):
            layer = f"block_{block}_{name}"
            rows.append((f"features.{block + 1}.conv.{part}", layer, f"{layer}_BN"))
    return [*rows, ("features.18.0", "Conv_1", "Conv_1_bn")]


def _kernel(arrays: _Arrays, layer: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """[O, I/groups, kh, kw] of Keras' [kh, kw, I, O], or [kh, kw, C, 1] where it is depthwise."""
    outputs, inputs, high, wide = shape
    if layer.endswith("depthwise"):
        name = "depthwise_kernel" if f"{layer}/depthwise_kernel" in arrays.found else "kernel"
        return arrays.read(f"{layer}/{name}", (high, wide, outputs, 1)).transpose(2, 3, 0, 1)
    return arrays.read(f"{layer}/kernel", (high, wide, inputs, outputs)).transpose(3, 2, 0, 1)


def _copy(target: Tensor, values: np.ndarray[Any, Any]) -> None:
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.ascontiguousarray(values, np.float32)))
