"""Networks that look at their input's size, through all of export: right, or nothing written."""

import onnxruntime
import pytest
from size_cases import Factor, Resized, base_of, block_images, network, patch_of
from torch import nn

import patchdeploy.patch.forward as forward
from patchdeploy.bundle import open_bundle
from patchdeploy.bundle.float_scores import compare_scores
from patchdeploy.errors import LoweringMismatchError, UnknownResolutionError
from patchdeploy.export import Exporter, export_bundle, export_patch
from patchdeploy.reference import load_reference, save_reference
from patchdeploy.runtime import Engine
from patchdeploy.verify import FloatNetwork, verify_bundle


@pytest.fixture(scope="module")
def images():
    return block_images()


def test_same_padding_and_whole_windows_are_right_at_every_resolution_in_both_runtimes(
    images, tmp_path
):
    sides = (30, 32, 36, 44)
    base = base_of(network(), images)
    patch = patch_of(base, sides)
    bundle = export_bundle(tmp_path / "b", base, [patch], {"task": images}, unsigned=True)
    assert verify_bundle(bundle.path, images).ok
    for px in sides:
        pixels = images.at(px, base.preprocessing)
        truth = FloatNetwork(base, patch).score(pixels, px)
        for runtime in ("litert", "onnxruntime"):
            with Engine.open(bundle.path, runtime) as engine:
                found = engine.logits(pixels, "task", px)
            # int8 leaves 25 dB and more here; padding that is shifted leaves 5 to 13 dB.
            assert compare_scores(truth, found).snr_db > 20, (px, runtime)
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
