"""A detector's features as a base: the same features, and all that a base is for works on it."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from lower_cases import EXACT, noise_images, perturbed_patch, settle_statistics, unfolded_logits
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG
from torchvision.models.vgg import cfgs, make_layers

from patchdeploy.base import Base
from patchdeploy.base.detector import build_ssdlite
from patchdeploy.data import Preprocessing, load_packaged
from patchdeploy.errors import BaseError, CheckpointError
from patchdeploy.evaluate import sample
from patchdeploy.export import CalibrationConfig, export_bundle
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import fold_patch
from patchdeploy.lower import lower_base
from patchdeploy.patch import PatchConfig, count_parameters, find_sites
from patchdeploy.runtime import Engine
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.verify import verify_bundle

PX = 32
HALF = (0.5, 0.5, 0.5)


def detector(seed: int = 0) -> nn.Module:
    """SSDLite over MobileNetV2 0.35, with statistics of noise, so that signals do not vanish."""
    torch.manual_seed(seed)
    made = build_ssdlite(classes=3, width_mult=0.35, size_px=PX)
    norms = [one for one in made.backbone.modules() if isinstance(one, nn.BatchNorm2d)]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        made.backbone.train()(torch.randn(16, 3, PX, PX))  # type: ignore[operator, union-attr]
    for norm in norms:
        norm.momentum = 0.03
    return made.eval()


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.from_detector(detector(), classes=5)


def some_images(count: int) -> Tensor:
    return torch.randn(count, 3, PX, PX, generator=torch.Generator().manual_seed(3))


def test_the_features_are_the_detectors_own_to_the_last_bit(base: Base) -> None:
    made = detector()
    images = some_images(4)
    with torch.no_grad():
        maps = list(made.backbone(images).values())  # type: ignore[operator]
        expected = maps[1].mean((2, 3))  # the second of six is the last of the backbone
        found = base.module.get_submodule("features")(images).mean((2, 3))
        assert torch.equal(found, expected)
        assert float(found.std(0).mean()) > 1e-3  # and the images matter
        weight, bias = base.module.classifier.weight, base.module.classifier.bias  # type: ignore[union-attr]
        scores = nn.functional.linear(expected, weight, bias)  # type: ignore[arg-type]
        # The same sums of one map's pixels and of 1,280 products below 1 in another order:
        # sqrt(1280) half-ulps.
        torch.testing.assert_close(base.module(images), scores, rtol=0, atol=36 * 2**-24)


def test_it_is_mobilenet_v2_without_what_detection_adds(base: Base) -> None:
    config = PatchConfig(("scale_bias", "depthwise", "head"))
    settings = Preprocessing(input_size=PX)
    classifier = Base.from_torchvision(
        "mobilenet_v2", preprocessing=settings, width_mult=0.35, num_classes=5
    )
    assert count_parameters(base, config, 5) == count_parameters(classifier, config, 5)
    assert len(find_sites(base, config).norms) == 52
    assert base.head_name == "classifier"
    assert base.unused == ()
    # What the detector's own transform does.
    assert base.preprocessing == Preprocessing(HALF, HALF, PX, resize="squash")
    assert base.name == "SSD/features"


def test_the_detector_stays_as_it_is_and_the_seed_decides_the_head() -> None:
    made = detector().train()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    bases = [Base.from_detector(made, seed=seed, classes=4) for seed in (0, 0, 1)]
    assert bases[0].sha256 == bases[1].sha256 != bases[2].sha256
    assert made.training
    assert all(one.requires_grad for one in made.parameters())
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def vgg_detector() -> nn.Module:
    """torchvision's ssd300_vgg16 without the 120 million weights of VGG's classifier, which its
    own builder makes and throws away."""
    torch.manual_seed(0)
    extractor = SSDFeatureExtractorVGG(make_layers(cfgs["D"]), highres=False)
    boxes = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2, 3], [2], [2]])
    made: nn.Module = SSD(extractor, boxes, (300, 300), 3)
    return made


def mobilenet_v3_detector() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=3)
    return made


# Builder, normalisations, convolutions without one, channels of the last feature, name of head.
DETECTORS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    "mobilenet_v2": (detector, 52, 0, 1280),
    "mobilenet_v3": (mobilenet_v3_detector, 46, 16, 480),  # 16: two of each squeeze-and-excite
    "vgg16": (vgg_detector, 0, 15, 1024),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_lowered_and_folded_it_computes_what_the_patched_network_computes(name: str) -> None:
    build, norms, bare, channels = DETECTORS[name]
    px = 40
    # EXACT: see lower_cases; the detectors' own means are no whole number of 255.
    base = Base.from_detector(build(), preprocessing=replace(EXACT, input_size=px), classes=4)
    settle_statistics(base.module, px)
    assert len([one for one in base.norms.values() if one]) == norms
    assert len([one for one in base.norms.values() if not one]) == bare
    assert base.module.get_submodule("classifier").in_features == channels
    patch = perturbed_patch(base.module)
    images = noise_images(2, px, px)
    found = FloatRunner(fold_patch(lower_base(base, [px]), patch), "float64")(images)
    expected = unfolded_logits(base, patch, images)
    # A sum of K products is off by at most K u of the result for random signs (test_fold says
    # why), K <= 9 * 1024, u = 2^-53; how much of that reaches the scores is measured by moving
    # each value of the patch by 2^-30 of itself; 8 covers that it is one draw.
    random = np.random.default_rng(5)
    moved = {k: v * (1 + 2.0**-30 * random.choice([-1, 1], v.shape)) for k, v in patch.items()}
    moves = np.abs(unfolded_logits(base, moved, images) - expected).max() * 2.0**30
    bound = 8 * moves * 9 * 1024 * 2.0**-53
    assert bound < 1e-3 * np.abs(expected).max()  # the bound itself says something
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    assert np.abs(expected[0] - expected[1]).max() > 100 * bound  # the images matter
    assert np.abs(unfolded_logits(base, {}, images) - expected).max() > 100 * bound


def test_exported_to_a_bundle_it_runs_and_verifies(base: Base, tmp_path: Path) -> None:
    train, test = (sample(part, 32) for part in load_packaged("faces"))
    patch = train_patch(base, train, TrainConfig(epochs=1, batch_size=8, device="cpu"), quiet=True)
    few = CalibrationConfig(images=16)
    bundle = export_bundle(
        tmp_path / "bundle", base, [patch], {"faces": train}, config=few, unsigned=True
    )
    report = verify_bundle(bundle.path, {"faces": test}, reference_limit=4)
    assert report.ok, [check.detail for check in report.failures]
    with Engine.open(bundle.path) as engine:
        engine.swap_to("faces", PX)
        scores = [engine.classify(np.asarray(image)).scores for image in test.images[:8]]
    assert np.ptp(np.asarray(scores), axis=0).max() > 0  # the images matter


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_of_the_whole_detector_fills_it(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"detector{suffix}", detector(seed=4).state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    empty = detector(seed=0)
    found = Base.from_detector(empty, checkpoint=path)
    assert found.sha256 == Base.from_detector(detector(seed=4)).sha256
    assert found.sha256 != Base.from_detector(empty).sha256
    other = build_ssdlite(classes=7, width_mult=0.35, size_px=PX)
    with pytest.raises(CheckpointError, match="does not fit the network: head"):
        Base.from_detector(other, checkpoint=path)


def test_weights_go_through_torchvisions_own_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in torch's cache is what a download leaves; no network is needed to read it."""
    name, shown = "ssdlite320_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large_coco-a79551df.pth"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(9)
    trained = ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=91)
    torch.save(trained.state_dict(), tmp_path / "checkpoints" / shown)
    base = Base.from_detector(name, "COCO_V1", classes=5)
    assert base.name == f"torchvision/{name}/features"
    assert base.preprocessing == Preprocessing(HALF, HALF, 320)
    kernel = trained.backbone.features[0][0][0].weight
    assert torch.equal(base.module.features[0][0][0].weight, kernel)  # type: ignore[index, union-attr]
    (tmp_path / "checkpoints" / shown).write_bytes(b"half")
    with pytest.raises(BaseError, match=r"weights 'COCO_V1' of '.*' cannot be downloaded or read"):
        Base.from_detector(name, "COCO_V1")


class Extractor(nn.Module):
    """A backbone that is no torchvision one."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Any:
        return OrderedDict({"0": self.features(images)})


class Detector(nn.Module):
    """As little of a detector as `Base.from_detector` reads."""

    def __init__(self, features: nn.Module | None) -> None:
        super().__init__()
        if features is not None:
            self.backbone = Extractor(features)


TINY = Preprocessing(input_size=16)


def test_any_backbone_with_a_chain_of_features_will_do() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    base = Base.from_detector(Detector(layers), preprocessing=TINY, classes=2, name="tiny")
    assert (base.name, base.norms) == ("tiny", {"features.0": "features.1"})


@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"]
)
def test_the_remedy_for_a_segmentation_or_detection_network_works(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        module = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    with pytest.raises(BaseError, match=r"Base.from_detector\(module\) takes the layers") as caught:
        Base.from_module(module, TINY, name)
    assert "must give class scores" in str(caught.value)
    base = Base.from_detector(module, preprocessing=TINY, classes=2)
    # FrozenBatchNorm2d (fasterrcnn's default) too: each is a site
    assert len(find_sites(base, PatchConfig()).norms) > 30


REFUSED: dict[str, tuple[nn.Module | str, dict[str, Any], str]] = {
    "a classifier": (
        nn.Linear(3, 3),
        {"preprocessing": TINY},
        "detector 'Linear/features' has no feature extractor that is known (its backbone: none); "
        "it must have a backbone as torchvision's detection and segmentation networks have; take "
        "the layers out yourself and use Base.from_module",
    ),
    "features that are no chain": (
        Detector(nn.Conv2d(3, 6, 3)),
        {"preprocessing": TINY},
        "detector 'Detector/features' has no feature extractor that is known (its backbone: "
        "Extractor); it must have a backbone as torchvision's detection and segmentation networks "
        "have; take the layers out yourself and use Base.from_module",
    ),
    "no transform": (
        Detector(nn.Sequential(nn.Conv2d(3, 6, 3))),
        {},
        "detector 'Detector/features' has no fixed size of its images; a base takes a fixed "
        "square; give preprocessing, such as Preprocessing(input_size=224)",
    ),
    "features that are flat": (
        Detector(nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        {"preprocessing": TINY},
        "detector 'Detector/features': backbone.features gives [1, 6] for one image; it must give "
        "a feature map [1, channels, height, width]; use Base.from_module for other networks",
    ),
    "weights for a module": (
        Detector(None),
        {"weights": "COCO_V1", "num_classes": 3},
        "weights, num_classes for a detector that is a module; they are for torchvision's names; "
        "load them into the module, or give checkpoint",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_detector_is_refused_in_full(case: str) -> None:
    given, arguments, message = REFUSED[case]
    with pytest.raises(BaseError) as caught:
        Base.from_detector(given, **arguments)
    assert str(caught.value) == message


def test_features_that_fail_on_the_input_name_its_shape() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 6, 32))
    with pytest.raises(BaseError) as caught:
        Base.from_detector(Detector(layers), preprocessing=TINY)
    message = str(caught.value)
    assert message.startswith("detector 'Detector/features' fails on float32 [1, 3, 16, 16] (")
    assert message.endswith(
        "); its backbone.features must map images to a feature map; correct it or its input_size"
    )


def test_a_name_that_torchvision_has_not_is_a_base_error() -> None:
    with pytest.raises(BaseError, match="torchvision has no 'ssd301' with weights None"):
        Base.from_detector("ssd301")
    with pytest.raises(BaseError, match="torchvision has no 'ssd300_vgg16' with weights 'V9'"):
        Base.from_detector("ssd300_vgg16", "V9")


def test_the_small_ssdlite_trains_and_detects_as_torchvisions_do() -> None:
    torch.manual_seed(0)
    made: Any = build_ssdlite(classes=2, width_mult=0.35, size_px=64).train()
    images = [torch.rand(3, 50, 70) for _ in range(4)]
    boxes = torch.tensor([[5.0, 5.0, 40.0, 30.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([2])} for _ in images]
    losses = made(images, targets)
    assert set(losses) == {"bbox_regression", "classification"}
    sum(losses.values()).backward()
    missing = [name for name, one in made.named_parameters() if one.grad is None]
    assert missing == []
    found = made.eval()(images)
    assert all(set(one["labels"].tolist()) <= {1, 2} for one in found)
