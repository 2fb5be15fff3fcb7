"""int8 against float without labels: a bundle that answers otherwise than its network fails."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from size_cases import base_of, block_images, network, patch_of
from torch import nn

import patchdeploy.lower.compare as compare_module
import patchdeploy.quantize.variant as variant_module
from patchdeploy.bundle import add_task, open_bundle, remove_task
from patchdeploy.bundle.float_scores import (
    Comparison,
    FloatRecord,
    compare_scores,
    is_float_scores,
)
from patchdeploy.errors import FileFormatError, UnknownTaskError, WrongBaseError
from patchdeploy.export import export_bundle
from patchdeploy.lower import passes
from patchdeploy.verify import FloatNetwork, verify_bundle

SIDES = (32, 36)


@pytest.fixture(scope="module")
def images():
    return block_images()


@pytest.fixture(scope="module")
def base(images):
    return base_of(network(pool=lambda: nn.AdaptiveAvgPool2d(1)), images)


@pytest.fixture(scope="module")
def bundle(base, images, tmp_path_factory):
    """Exported as it should be; tests leave it unchanged."""
    return export(tmp_path_factory.mktemp("b") / "b", base, images)


def export(path, base, images):
    return export_bundle(path, base, [patch_of(base, SIDES)], {"task": images}, unsigned=True)


def float_rows(report):
    return [check for check in report.checks if check.name == "int8 = float"]


def test_every_task_resolution_and_runtime_is_compared_with_the_scores_kept_at_export(bundle):
    rows = float_rows(verify_bundle(bundle.path, reference_limit=1))
    assert [row.subject for row in rows] == [
        f"task {px} px {runtime}" for runtime in ("litert", "onnxruntime") for px in SIDES
    ]
    for row in rows:
        assert row.passed
        assert row.numbers["snr_db"] > 20
        assert row.numbers["export"]["images"] == 8
        assert "against the float scores kept at export: signal to noise" in row.detail


def test_the_network_itself_is_compared_on_given_images_without_labels(base, images, bundle):
    against = {"task": FloatNetwork(base, patch_of(base, SIDES))}
    rows = float_rows(verify_bundle(bundle.path, images, reference_limit=1, against=against))
    own = [row for row in rows if "against the module with its patch" in row.detail]
    assert [row.passed for row in own] == [True] * 4
    assert {row.numbers["images"] for row in own} == {24}


def test_another_network_than_the_exported_one_fails_or_is_refused(base, images, bundle):
    patch = patch_of(base, SIDES)
    head = f"{base.head_name}.weight"
    turned = {px: {**patch.tensors(px), head: -patch.tensors(px)[head]} for px in SIDES}
    other = FloatNetwork(base, replace(patch, variants=turned))
    report = verify_bundle(bundle.path, images, reference_limit=1, against={"task": other})
    assert any("int8 answers otherwise than the float network" in c.detail for c in report.failures)
    stranger = base_of(network(), images.subset(range(8)))  # other statistics
    of_stranger = {"task": FloatNetwork(stranger, patch_of(stranger, SIDES))}
    with pytest.raises(WrongBaseError, match="task 'task' is compared with base"):
        verify_bundle(bundle.path, against=of_stranger)
    renamed = {"task": FloatNetwork(base, replace(patch, classes=("x", "y", "z")))}
    with pytest.raises(UnknownTaskError, match="has 3 classes, the bundle's has 3, or others"):
        verify_bundle(bundle.path, against=renamed)


def _padding_mirrored(monkeypatch):
    def mirrored(reader, pad, honest=passes._pad_more):
        top, bottom, left, right = pad.padding
        return honest(reader, replace(pad, padding=(bottom, top, right, left)))

    monkeypatch.setattr(passes, "_pad_more", mirrored)


def test_a_planted_bug_in_lowering_that_export_let_through_fails(
    base, images, tmp_path, monkeypatch
):
    _padding_mirrored(monkeypatch)
    monkeypatch.setattr(compare_module, "TOLERANCE", 1e9)  # export sees nothing
    bundle = export(tmp_path / "b", base, images)
    monkeypatch.undo()
    report = verify_bundle(bundle.path, images)
    assert {c.name for c in report.failures} == {"int8 = float"}  # all else agrees with itself
    assert "the graph that was exported is not the module" in report.failures[0].detail


def test_a_planted_bug_in_quantising_fails(base, images, tmp_path, monkeypatch):
    honest = variant_module.quantize_rows

    def without_bias(kernel, step, bias, x, y):
        return honest(kernel, step, bias * 0, x, y)

    monkeypatch.setattr(variant_module, "quantize_rows", without_bias)
    told = []
    bundle = export_bundle(
        tmp_path / "b", base, [patch_of(base, SIDES)], {"task": images}, unsigned=True,
        progress=told.append)  # fmt: skip
    assert any("LOW: int8 answers otherwise than float" in text for text in told)
    report = verify_bundle(bundle.path, images)
    assert {c.name for c in report.failures} == {"int8 = float"}


def test_a_bundle_that_changed_since_its_export_fails(base, images, bundle, tmp_path):
    """Another head under the same task: consistent in itself, but not what was recorded."""
    patch = bundle.patch("task")
    layout = bundle.manifest.layout
    head = slice(layout.head_element, None)
    turned = {}
    for px, values in patch.values.items():
        weights = values.weights.copy()
        weights[head] = weights[head][::-1]
        turned[px] = replace(values, weights=weights)
    record = bundle.read(bundle.manifest.float_scores("task"))
    copy = export(tmp_path / "b", base, images)
    add_task(
        copy.path, replace(patch, values=turned), replace_existing=True, float_scores=record
    )  # fmt: skip
    report = verify_bundle(copy.path)
    failed = [row.detail for row in float_rows(report) if row.passed is False]
    assert len(failed) == 4
    assert "dB at export on the same pictures" in failed[0]


def test_the_record_goes_with_its_task(base, images, tmp_path):
    copy = export(tmp_path / "b", base, images)
    path = copy.manifest.float_scores("task")
    assert path == "float/task.scores.safetensors"
    assert not copy.manifest.files[path].ships
    replaced = add_task(copy.path, copy.patch("task"), replace_existing=True, float_scores=b"new")
    assert replaced.read(replaced.manifest.float_scores("task")) == b"new"
    assert not (copy.path / path).exists()
    report = verify_bundle(copy.path, reference_limit=1)
    assert "float scores of 3 bytes" in float_rows(report)[0].detail
    assert not report.ok
    (copy.path / replaced.manifest.float_scores("task")).unlink()  # as in a deployed copy
    rows = float_rows(verify_bundle(copy.path, reference_limit=1))
    assert {row.passed for row in rows} == {None}
    assert "give the base and the patch" in rows[0].detail
    assert remove_task(copy.path, "task").manifest.float_scores("task") is None
    assert not any(is_float_scores(path, "task") for path in open_bundle(copy.path).manifest.files)


def record() -> FloatRecord:
    draw = np.random.default_rng(0)
    scores = {px: draw.normal(size=(2, 3)).astype(np.float32) for px in SIDES}
    comparisons = {32: Comparison(2, 24.5, 1.0), 36: Comparison(2, None, 0.5)}
    thumbnails = draw.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return FloatRecord(thumbnails, scores, scores, comparisons, comparisons)


def test_a_record_read_is_the_record_written():
    found, written = FloatRecord.from_bytes(record().to_bytes()), record()
    assert (found.measured, found.kept) == (written.measured, written.kept)
    np.testing.assert_array_equal(found.thumbnails, written.thumbnails)
    for px in SIDES:
        np.testing.assert_array_equal(found.module[px], written.module[px])
        np.testing.assert_array_equal(found.graph[px], written.graph[px])


def forge(change):
    data = record().to_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    notes = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["patchdeploy"])
    arrays = load(data)
    change(notes, arrays)
    return save(arrays, {"patchdeploy": json.dumps(notes)})


@pytest.mark.parametrize(
    "change",
    [
        lambda n, a: n.update(format=2),
        lambda n, a: n.update(surprise=1),
        lambda n, a: n.pop("kept"),
        lambda n, a: n["kept"].pop("36"),
        lambda n, a: n["measured"]["32"].update(images=True),
        lambda n, a: n["measured"]["32"].update(snr_db="24"),
        lambda n, a: n["measured"]["32"].update(equal_top1=1.5),
        lambda n, a: n["measured"].update({"032": n["measured"]["32"]}),
        lambda n, a: n.update(measured=[]),
        lambda n, a: a.pop("thumbnails"),
        lambda n, a: a.update(thumbnails=a["thumbnails"][:, :4]),
        lambda n, a: a.update(thumbnails=a["thumbnails"][:0]),
        lambda n, a: a.pop("graph/36"),
        lambda n, a: a.update(extra=a["graph/36"]),
        lambda n, a: a.update({"module/32": a["module/32"][:1]}),
        lambda n, a: a.update({"module/32": a["module/32"].astype(np.float64)}),
        lambda n, a: a.update({"module/32": a["module/32"] * np.float32("nan")}),
        lambda n, a: a.update({key: a[key][:, :1] for key in list(a) if "/" in key}),
    ],
)
def test_a_record_outside_the_format_is_refused(change):
    FloatRecord.from_bytes(forge(lambda n, a: None))
    with pytest.raises(FileFormatError):
        FloatRecord.from_bytes(forge(change))


@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_record_is_a_file_format_error_or_still_a_record(position, value):
    data = bytearray(record().to_bytes())
    data[position % len(data)] = value
    for broken in (bytes(data), bytes(data[:position])):
        try:
            FloatRecord.from_bytes(broken)
        except FileFormatError:
            continue


def test_signal_to_noise_counts_what_differs_between_images():
    truth = np.array([[1, 5], [-1, 5], [1, 5], [-1, 5]], np.float32)
    found = compare_scores(truth, truth + np.float32([[0.1, 0], [-0.1, 0], [0.1, 0], [-0.1, 0]]))
    assert found.snr_db == pytest.approx(20.0, abs=1e-5)  # 10 log10(4 / 0.04), float32 0.1
    assert found == Comparison(4, found.snr_db, 1.0)
    assert compare_scores(truth, truth).snr_db == 200.0
    assert compare_scores(truth * 0 + 3, truth).snr_db is None  # all images alike: no signal
    assert compare_scores(truth, np.roll(truth, 1, 0)).is_unlike
    assert compare_scores(truth, truth * 0).snr_db < 0


@pytest.mark.parametrize(
    ("path", "task", "expected"),
    [
        ("float/a.scores.safetensors", "a", True),
        ("float/a.scores.0123456789ab.safetensors", "a", True),
        ("float/a.scores.0123456789ag.safetensors", "a", False),
        ("float/ab.scores.safetensors", "a", False),
        ("float/a.32.onnx", "a", False),
        ("reference/a.scores.safetensors", "a", False),
    ],
)
def test_a_record_is_found_by_its_name(path, task, expected):
    assert is_float_scores(path, task) is expected
