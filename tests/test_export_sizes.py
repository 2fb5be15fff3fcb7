"""Networks that look at their input's size, through all of export: right, or nothing written."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchdeploy.base import Base
from patchdeploy.bundle import open_bundle
from patchdeploy.data import ImageDataset, Preprocessing
from patchdeploy.data.pixels import normalize_batch
from patchdeploy.errors import LoweringMismatchError, UnknownResolutionError
from patchdeploy.export import Exporter, export_bundle, export_patch
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel, initial_tensors
from patchdeploy.reference import load_reference, save_reference
from patchdeploy.runtime import Engine
from patchdeploy.verify import verify_bundle

CLASSES = ("a", "b", "c")


class Same(nn.Conv2d):
    """TensorFlow's SAME padding, computed from the map."""

    def forward(self, x):
        amounts = []
        for size, stride, kernel in zip(x.shape[2:], self.stride, self.kernel_size, strict=True):
            need = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            amounts += [need - need // 2, need // 2]
        return super().forward(F.pad(x, amounts[::-1]))


class WholeWindow(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, x.shape[-1])


class Resized(nn.Module):
    def forward(self, x):
        return x if x.shape[-1] == 8 else F.interpolate(x, size=(8, 8))


class Factor(nn.Module):
    def forward(self, x):
        return x * (32 / x.shape[-1])


def network(*, conv=Same, pool=WholeWindow, extra=nn.Identity):
    torch.manual_seed(4)
    layers = []
    for a, b in ((3, 8), (8, 16), (16, 24)):
        layers += [conv(a, b, 3, 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers[:6], extra(), *layers[6:], pool(), nn.Flatten(), nn.Linear(24, 3))


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, 1).repeat(16, 2)
    return ImageDataset("blocks", pixels, np.arange(24) % 3, CLASSES)


def base_of(module, images):
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, 32)
    return Base.from_module(module, preprocessing, "net").with_statistics_of(images)


def patch_of(base, sides, task="task"):
    """A patch whose head is of use: scores that differ."""
    draw = np.random.default_rng(1)
    config = PatchConfig()
    tensors = {k: v.numpy() for k, v in initial_tensors(base, config, 3).items()}
    head = f"{base.head_name}.weight"
    tensors |= {head: draw.normal(size=tensors[head].shape).astype(np.float32)}
    return Patch(task, base.sha256, config, CLASSES, dict.fromkeys(sides, tensors))


def signal_to_noise_db(truth, found):
    centred = truth - truth.mean(0)
    return 10 * np.log10(np.sum(centred**2) / np.sum((found - truth) ** 2))


def test_same_padding_and_whole_windows_are_right_at_every_resolution_in_both_runtimes(
    images, tmp_path
):
    sides = (30, 32, 36, 44)
    base = base_of(network(), images)
    patch = patch_of(base, sides)
    bundle = export_bundle(tmp_path / "b", base, [patch], {"task": images}, unsigned=True)
    assert verify_bundle(bundle.path, images).ok
    model = PatchedModel(base)
    model.load_patch(patch)
    for px in sides:
        pixels = images.at(px, base.preprocessing)
        model.set_active_task("task", px)
        with torch.no_grad():
            inputs = torch.from_numpy(normalize_batch(pixels, base.preprocessing))
            truth = model.eval()(inputs).numpy()
        for runtime in ("litert", "onnxruntime"):
            with Engine.open(bundle.path, runtime) as engine:
                found = engine.logits(pixels, "task", px)
            # int8 leaves 25 dB and more here; padding that is shifted leaves 5 to 13 dB.
            assert signal_to_noise_db(truth, found) > 20, (px, runtime)
    later = patch_of(base, sides, "later")
    assert export_patch(bundle.path, base, later, images).tasks == ("later", "task")


def test_a_graph_with_sizes_survives_its_reference_file(images):
    base = base_of(network(), images)
    quantized = Exporter.prepare(base, head_capacity=3, resolutions=[30, 32]).quantized
    kept = load_reference(save_reference(quantized)).graph
    assert kept.operators == quantized.graph.operators
    assert any(conv.padding == "same" for conv in kept.convolutions())
    limited = base_of(network(extra=Factor), images)
    quantized = Exporter.prepare(limited, head_capacity=3, resolutions=[32]).quantized
    kept = load_reference(save_reference(quantized)).graph
    assert kept.limit == quantized.graph.limit
    assert kept.limit.resolutions == (32,)


@pytest.mark.parametrize("extra", [Factor, Resized])
def test_what_is_right_at_one_size_alone_is_refused_at_two_and_holds_in_the_file_at_one(
    extra, images, tmp_path
):
    base = base_of(network(extra=extra), images)
    patch = patch_of(base, (32, 48))
    place = tmp_path / "b"
    with pytest.raises(NotImplementedError, match=r"at operator '6.affine'|at 48 px, aten.upsamp"):
        export_bundle(place, base, [patch], {"task": images}, unsigned=True)
    assert list(tmp_path.iterdir()) == []
    export_bundle(
        place, base, [patch], {"task": images}, resolutions=[32], unsigned=True,
    )  # fmt: skip
    assert verify_bundle(place, images).ok
    session = onnxruntime.InferenceSession(open_bundle(place).base_file("onnx"))
    assert session.get_inputs()[0].shape[1:] == [32, 32, 3]  # else 48 px ran, and were wrong
    exporter = Exporter.prepare(base, head_capacity=3)
    with pytest.raises(UnknownResolutionError, match="net' was lowered for 32 px and computes"):
        exporter.quantize(patch, images, [48])


def test_a_patch_is_compared_at_each_resolution_before_anything_is_written(
    images, tmp_path, monkeypatch
):
    base = base_of(network(conv=nn.Conv2d, pool=lambda: nn.AdaptiveAvgPool2d(1)), images)
    patch = patch_of(base, (32, 48))
    told = []
    import patchdeploy.patch.forward as forward

    honest = forward.run_structure

    def other_at_48(module, tensors, pixels, config, training):
        scores = honest(module, tensors, pixels, config, training)
        return scores.flip(1) if tensors and pixels.shape[-1] == 48 else scores

    monkeypatch.setattr("patchdeploy.lower.compare.run_structure", other_at_48)
    with pytest.raises(LoweringMismatchError, match="task 'task' at 48 px: the network to be exp"):
        export_bundle(
            tmp_path / "b", base, [patch], {"task": images}, unsigned=True, progress=told.append
        )
    assert told == []
    assert list(tmp_path.iterdir()) == []
