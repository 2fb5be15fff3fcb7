"""A detector's feature extractor as a classifier (paper, section 5.2).

In: an SSD or another of torchvision's networks for detection or segmentation, as a module, by
torchvision's name, or with a checkpoint. Out: the layers up to the
last feature of its backbone, global average pooling and a new linear layer, and the preprocessing
that the detector was trained with. What the detector adds behind its backbone (extra feature maps,
box heads) is left out, as the paper leaves it out. `build_ssdlite` makes a small SSD to train.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchdeploy.data import Preprocessing
from patchdeploy.errors import BaseError

C4 = 14
"""The block of torchvision's MobileNetV2 that goes from stride 16 to 32; SSDLite's first feature is
its expansion (MobileNetV2 paper, section 6.2)."""
LAST = 18
"""The 1x1 convolution to 1280 channels: SSDLite's second feature, and the last of the backbone."""


def classifier_of(
    detector: nn.Module, classes: int, input_size: int, seed: int, name: str
) -> nn.Sequential:
    """``features`` (a copy of the extractor's layers), ``pool``, ``flatten`` and ``classifier``.

    Args:
        classes: rows of the linear layer, which starts at torch's own random values of ``seed``.
        input_size: px; the channels of the last feature are read off an image of this side.

    Raises:
        BaseError: no feature extractor that is known, one that fails on such an image, or a
            detector that is a classifier.
    """
    features = copy.deepcopy(_feature_layers(detector, name)).cpu().eval()
    channels = _count_channels(features, input_size, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(channels, classes)
    parts = OrderedDict[str, nn.Module](
        features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=head
    )
    return nn.Sequential(parts)


def _feature_layers(detector: nn.Module, name: str) -> nn.Sequential:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.ssd import SSDFeatureExtractorVGG

    extractor: Any = getattr(detector, "backbone", None)
    layers = getattr(extractor, "features", None)
    # A feature pyramid's convolutions (`fpn`) are the detector's own; below them is the backbone.
    body = getattr(extractor, "body", extractor)
    if isinstance(body, IntermediateLayerGetter):
        return nn.Sequential(OrderedDict(body.items()))
    if not isinstance(layers, nn.Sequential):
        found = type(extractor).__name__ if extractor is not None else "none"
        raise BaseError(
            f"detector {name!r} has no feature extractor that is known (its backbone: {found}); it "
            "must have a backbone as torchvision's detection and segmentation networks have; take "
            "the layers out yourself and use Base.from_module"
        )
    if isinstance(extractor, SSDFeatureExtractorVGG):
        # features ends at conv4_3; conv5 and the convolutions made of VGG's fc6 and fc7 are the
        # first of the `extra` layers, and all that is behind them is SSD's own.
        return nn.Sequential(*layers, *extractor.extra[0])
    return layers


@torch.no_grad()
def _count_channels(features: nn.Sequential, input_size: int, name: str) -> int:
    images = torch.zeros(1, 3, input_size, input_size)
    try:
        output = features(images)
    except Exception as error:  # whatever a caller's own module raises
        raise BaseError(
            f"detector {name!r} fails on float32 {list(images.shape)} ({error}); its "
            "backbone.features must map images to a feature map; correct it or its input_size"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BaseError(
            f"detector {name!r}: backbone.features gives {found} for one image; it must give a "
            "feature map [1, channels, height, width]; use Base.from_module for other networks"
        )
    return int(output.shape[1])


def preprocessing_of(detector: nn.Module, name: str) -> Preprocessing:
    """What the detector's own transform does to an image: squash to its size, normalise.

    Raises:
        BaseError: no transform to a fixed square.
    """
    transform: Any = getattr(detector, "transform", None)
    size = getattr(transform, "fixed_size", None)
    if size is None or size[0] != size[1]:
        found = "has no fixed size of its images" if size is None else f"resizes to {size}"
        raise BaseError(
            f"detector {name!r} {found}; a base takes a fixed square; give preprocessing, such as "
            "Preprocessing(input_size=224)"
        )
    mean, std = (
        tuple(map(float, values)) for values in (transform.image_mean, transform.image_std)
    )
    return Preprocessing((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), int(size[0]))


def checkpoint_arguments(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What torchvision's model function must be told so that ``state``, of a whole SSD, fits:
    ``num_classes``, or nothing where its heads are not found.

    The first feature's heads have a row a default box and class, and four a box.
    """
    rows = {}
    for part in ("classification", "regression"):
        keys = [key for key in state if f"head.{part}_head.module_list.0." in key]
        sizes = [len(state[key]) for key in sorted(keys) if key.endswith("bias")]
        rows[part] = sizes[-1] if sizes else 0
    boxes = rows["regression"] // 4
    return {"num_classes": rows["classification"] // boxes} if boxes else {}


def build_ssdlite(classes: int, width_mult: float = 1.0, size_px: int = 320) -> nn.Module:
    """torchvision's SSD over MobileNetV2 with SSDLite's extra layers and heads, random weights.

    The two backbone features and the four extra maps are those of the MobileNetV2 paper, section
    6.2; default boxes, batch-norm settings and input range are those of torchvision's
    ssdlite320_mobilenet_v3_large. Trains and detects as any torchvision SSD does.

    Args:
        classes: objects; label 0 is the background, so labels are 1 to ``classes``.
        width_mult: of MobileNetV2 and of the extra layers.
        size_px: side of the square that images are resized to.
    """
    from torchvision.models import mobilenet_v2
    from torchvision.models.detection import _utils
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

    norm_layer = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    layers: Any = mobilenet_v2(width_mult=width_mult, norm_layer=norm_layer).features
    # The extractor is written for MobileNetV3, which calls the layers of a block `block`.
    layers[C4].block = layers[C4].conv
    extractor = SSDLiteFeatureExtractorMobileNet(layers, C4, norm_layer, width_mult=width_mult)
    size = (size_px, size_px)
    boxes = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    channels = _utils.retrieve_out_channels(extractor, size)
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), classes + 1, norm_layer)
    half = [0.5, 0.5, 0.5]
    detector: nn.Module = SSD(
        extractor, boxes, size, classes + 1, image_mean=half, image_std=half, head=head
    )
    return detector
