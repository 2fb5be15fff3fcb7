"""A Keras MobileNetV2 .h5 file as a torch module with the very same function.

In: the file (h5py reads it; TensorFlow is not needed). Out: torchvision's MobileNetV2 with
TensorFlow's conventions: stride-2 convolutions pad bottom and right only, batch norm eps 1e-3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdeploy.data import Preprocessing
from patchdeploy.errors import CheckpointError, MissingExtraError

KERAS_EPS = 1e-3
"""keras.applications.MobileNetV2, BatchNormalization(epsilon=1e-3)."""


class PadAfter(nn.Conv2d):
    """A stride-2 3x3 convolution with TensorFlow's SAME padding of an even size: (0, 1, 0, 1)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


def read_mobilenet_v2(path: Path) -> tuple[nn.Module, Preprocessing]:
    """The network in ``path``: width 1.0, its dense head where there is one on 1280 features.

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
    try:
        with h5py.File(path) as file:
            arrays = _arrays(file.get("model_weights", file), h5py.Dataset)
            config = str(file.attrs.get("model_config", ""))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read as HDF5 ({error}); it must be a whole Keras .h5 file; copy it "
            "again or save it with model.save('file.h5')"
        ) from error
    if "Conv1/kernel" not in arrays or "block_16_project/kernel" not in arrays:
        raise CheckpointError(
            f"{path} holds {len(arrays)} arrays but no MobileNetV2 (no Conv1/kernel); save a model "
            "that is built on keras.applications.MobileNetV2"
        )
    size = next((px for px in (96, 128, 160, 192, 224) if f"1.00_{px}" in config), 224)
    module = _build(arrays)
    return module, Preprocessing((0.5,) * 3, (0.5,) * 3, size)


def _arrays(group: Any, dataset_type: type) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays by 'layer/variable', whatever groups the file nests them in."""
    found: dict[str, np.ndarray[Any, Any]] = {}

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, dataset_type):
            found["/".join(name.replace(":0", "").split("/")[-2:])] = np.asarray(entry)

    group.visititems(visit)
    return found


def _build(arrays: dict[str, np.ndarray[Any, Any]]) -> nn.Module:
    import torchvision

    dense = [key for key, value in arrays.items() if value.shape[:1] == (1280,) and value.ndim == 2]
    classes = arrays[dense[0]].shape[1] if dense else 1000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = torchvision.models.mobilenet_v2(num_classes=classes)
    for path, conv_layer, norm_layer in _layers():
        conv = module.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        if conv.stride == (2, 2):
            conv.__class__ = PadAfter
            conv.padding = (0, 0)
        _copy(conv.weight, _kernel(arrays, conv_layer))
        stem, _, last = path.rpartition(".")
        norm = module.get_submodule(f"{stem}.{int(last) + 1}")
        assert isinstance(norm, nn.BatchNorm2d)
        norm.eps = KERAS_EPS
        for target, variable in (
            (norm.weight, "gamma"),
            (norm.bias, "beta"),
            (norm.running_mean, "moving_mean"),
            (norm.running_var, "moving_variance"),
        ):
            _copy(target, _array(arrays, f"{norm_layer}/{variable}"))
    if dense:
        head = module.get_submodule("classifier.1")
        _copy(head.weight, arrays[dense[0]].T)
        _copy(head.bias, _array(arrays, dense[0].replace("kernel", "bias")))
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


def _array(arrays: dict[str, np.ndarray[Any, Any]], key: str) -> np.ndarray[Any, Any]:
    if key not in arrays:
        raise CheckpointError(
            f"the Keras file has no {key}; a MobileNetV2 of width 1.0 has; save the whole model"
        )
    return arrays[key]


def _kernel(arrays: dict[str, np.ndarray[Any, Any]], layer: str) -> np.ndarray[Any, Any]:
    """[O, I/groups, kh, kw] of Keras' [kh, kw, I, O], or [kh, kw, C, 1] where it is depthwise."""
    if layer.endswith("depthwise"):
        name = "depthwise_kernel" if f"{layer}/depthwise_kernel" in arrays else "kernel"
        return _array(arrays, f"{layer}/{name}").transpose(2, 3, 0, 1)
    return _array(arrays, f"{layer}/kernel").transpose(3, 2, 0, 1)


def _copy(target: Any, values: np.ndarray[Any, Any]) -> None:
    if tuple(target.shape) != values.shape:
        raise CheckpointError(
            f"the Keras file has an array {values.shape} where width 1.0 has {tuple(target.shape)};"
            " only MobileNetV2 of width 1.0 is read"
        )
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.ascontiguousarray(values)))
