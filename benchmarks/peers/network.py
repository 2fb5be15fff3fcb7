"""The network that every peer exports: a folder of plain files, and the torch module it stands for.

In: a MobileNetV2 as a torch module. Out: a folder with ``weights.safetensors`` (float32, by
torchvision's names), ``network.json`` (`Network`) and ``calibration.npy`` (uint8 [N, px, px, 3]);
and back. Each peer lives in an environment of its own, so the folder is all that they share:
same weights, same padding, same pixels. This file imports torch, torchvision and safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import mobilenet_v2


@dataclass(frozen=True)
class Network:
    """What the weights alone do not say.

    Attributes:
        width_mult: MobileNetV2's width.
        classes: rows of the last layer.
        eps: of every batch norm.
        padding: of the 3x3 convolutions with stride 2: ``torch`` (1 on all sides) or
            ``tensorflow`` (0 top and left, 1 bottom and right, for even sizes).
        mean, std: of pixels in [0, 1], per channel R, G, B.
        px: side of the square input, pixels.
    """

    width_mult: float
    classes: int
    eps: float
    padding: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    px: int


def save_network(
    folder: Path,
    network: Network,
    state: Mapping[str, NDArray[np.float32]],
    calibration: NDArray[np.uint8],
) -> None:
    """Write the three files; ``state`` is by torchvision's names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.tensor(np.asarray(value)) for name, value in state.items()}
    save_file(tensors, folder / "weights.safetensors")
    (folder / "network.json").write_text(json.dumps(asdict(network), indent=1))
    np.save(folder / "calibration.npy", calibration)


def load_settings(folder: Path) -> Network:
    """``network.json`` of ``folder``."""
    document = json.loads((folder / "network.json").read_text())
    return Network(**{key: tuple(v) if isinstance(v, list) else v for key, v in document.items()})


def load_module(folder: Path) -> nn.Module:
    """The network in eval mode: float32 normalised [N, 3, px, px] -> logits [N, classes]."""
    settings = load_settings(folder)
    module = build_module(settings)
    state = load_file(folder / "weights.safetensors")
    missing, unexpected = module.load_state_dict(state, strict=False)
    real = [name for name in missing if not name.endswith("num_batches_tracked")]
    if real or unexpected:
        raise ValueError(f"{folder}: missing {real}, unexpected {unexpected}")
    return module.eval()


def build_module(settings: Network) -> nn.Module:
    """torchvision's MobileNetV2 with the settings' eps and padding, weights not loaded.

    Padding in TensorFlow's manner is a hook-free subclass of the convolution, so that the names
    of the state dict stay torchvision's.
    """
    module = mobilenet_v2(
        weights=None,
        width_mult=settings.width_mult,
        num_classes=settings.classes,
        norm_layer=partial(nn.BatchNorm2d, eps=settings.eps),
    )
    if settings.padding == "tensorflow":
        for block in module.modules():
            for name, child in list(block.named_children()):
                if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                    setattr(block, name, _BottomRightConv2d.of(child))
    return module


class _BottomRightConv2d(nn.Conv2d):
    """A 3x3 convolution with stride 2 padded by (0, 1, 0, 1): TensorFlow's SAME for even sizes."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> _BottomRightConv2d:
        return cls(
            conv.in_channels,
            conv.out_channels,
            3,
            stride=2,
            groups=conv.groups,
            bias=conv.bias is not None,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def normalise(settings: Network, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [N, px, px, 3] -> float32 [N, px, px, 3]: (pixel / 255 - mean) / std."""
    mean = np.asarray(settings.mean, np.float32)
    std = np.asarray(settings.std, np.float32)
    normalised: NDArray[np.float32] = (images.astype(np.float32) / np.float32(255) - mean) / std
    return normalised
