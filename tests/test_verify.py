"""Verifying a bundle: a sound one passes, and each kind of damage fails its own check."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from bundle_cases import KEY, LABELS, make_bundle, make_patch, reference_logits
from graph_cases import random_images
from patchdeploy_onnx import unsigned_kernels
from PIL import Image

from patchdeploy.bundle import add_task, create_bundle, open_bundle, standalone
from patchdeploy.convert import load_converter
from patchdeploy.data import ImageDataset
from patchdeploy.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    PatchRefusedError,
    SlotTableError,
    UnknownTaskError,
)
from patchdeploy.fold import fold_patch
from patchdeploy.patchfile.pack import Release, Signer, check_results, open_patch
from patchdeploy.quantize.runtimes import MACHINES, arithmetic_of, this_machine
from patchdeploy.runtime.ort_kernels import SIGNED, is_exact
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex
from patchdeploy.verify import bare, verify_bundle
from patchdeploy.verify.bare import judge
from patchdeploy.verify.images import task_labels


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("verify") / "bundle", signed=True)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle.path, tmp_path / "copy")


def failed(report):
    return {(check.name, check.subject) for check in report.failures}


def test_a_sound_bundle_passes_every_check_with_its_numbers(bundle):
    seen = []
    report = verify_bundle(bundle.path, progress=seen.append)
    assert report.ok
    assert tuple(seen) == report.checks
    # no float scores: this bundle was made of slot values, not exported from a network
    assert {check.name for check in report.checks if check.passed is not True} == {"int8 = float"}
    names = [check.name for check in report.checks]
    assert names.count("hash") == len(bundle.manifest.files)
    assert names.count("slot table") == 2
    assert names.count("patch values") == 2
    assert names.count("signature") == 2
    assert names.count("result hashes") == 2
    assert names.count("self-test") == 2 * 2
    # a .tflite holds both resolutions, a .onnx is compared at each of them
    assert names.count("overlay = stand-alone") == 2 * (1 + 2)
    assert names.count("runtime = reference") == 2 * 2 * 2
    assert names.count("per-run = resident") == 2 * 2
    for check in report.checks:
        if check.name == "runtime = reference":
            format_name = "tflite" if check.subject.endswith("litert") else "onnx"
            assert check.numbers == {
                "images": 8,
                "largest_lsb": 0,
                "equal_top1": 1.0,
                "arithmetic": arithmetic_of(format_name).name,
            }
            assert "synthetic" in check.detail
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_the_reference_computes_as_the_machine_that_is_named(tmp_path):
    """Both machines at once: one of them is another than this one, and products tell them apart."""
    tasks = ("first", "second", "third")
    path = make_bundle(tmp_path / "b", "squeeze_excitation", tasks, ["tflite"]).path
    found = {}
    for machine, runtimes in MACHINES.items():
        report = verify_bundle(path, machine=machine)
        rows = [one for one in report.checks if one.name == "runtime = reference"]
        assert {one.numbers["arithmetic"] for one in rows} == {runtimes["tflite"].name}
        found[machine] = [one for one in rows if not one.passed]
    assert found.pop(this_machine()) == []
    (other,) = found.values()
    assert other
    for one in other:
        assert f"in {one.numbers['arithmetic']} arithmetic; at most 0 LSB is allowed" in one.detail


def test_a_machine_whose_arithmetic_nobody_knows_is_refused_before_the_bundle_is_opened(tmp_path):
    with pytest.raises(ConfigError, match="arithmetic of machine 'sparc'; the reference computes"):
        verify_bundle(tmp_path / "none", machine="sparc")


def test_accuracy_is_measured_where_labels_are_there(bundle):
    images = random_images(20, 30)
    engine_labels = reference_logits(
        bundle, "onnxruntime", "first", 24, _at(bundle, images, 24)
    ).argmax(1)
    labels = engine_labels.copy()
    labels[:5] = (labels[:5] + 1) % len(LABELS)  # 15 of 20 right, as the reference sees it
    dataset = ImageDataset("test", images, labels.astype(np.int64), LABELS)
    report = verify_bundle(bundle.path, {"first": dataset}, ["onnx"])
    assert report.ok
    rows = {c.subject: c.numbers for c in report.checks if c.name == "accuracy"}
    assert rows["first 24 px onnxruntime"] == {"images": 20, "int8_top1": 0.75}
    assert set(rows) == {"first 16 px onnxruntime", "first 24 px onnxruntime"}
    limited = verify_bundle(bundle.path, {"first": dataset}, ["onnx"], limit=10)
    assert {c.numbers["images"] for c in limited.checks if c.name == "accuracy"} == {10}


def _at(bundle, images, px):
    dataset = ImageDataset("x", images, np.zeros(len(images), np.int64), LABELS)
    return dataset.at(px, bundle.manifest.preprocessing)


def test_labels_in_another_order_of_classes_mean_the_same():
    dataset = ImageDataset("x", random_images(3, 4), np.array([0, 1, 2]), ("c", "a", "b"))
    assert list(task_labels(dataset, ("a", "b", "c"))) == [2, 0, 1]
    assert task_labels(dataset, ("a", "b")) is None


def test_float_accuracy_comes_from_the_float_files(copy):
    base, patch = make_patch(task="third", seed=9)
    network = fold_patch(make_patch()[0].graph, classes=len(LABELS))
    model = load_converter("onnx").write_float(network, [24])
    release = Release(signers=(Signer(KEY, 0),))
    add_task(copy, patch, float_files={"third.24.onnx": model}, release=release)
    images = random_images(6, 24)
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: images})[0]
    dataset = ImageDataset("test", images, scores.argmax(1).astype(np.int64), LABELS)
    report = verify_bundle(copy, dataset, ["onnx"], task="third")
    rows = {c.subject: c for c in report.checks if c.name == "accuracy"}
    numbers = rows["third 24 px onnxruntime"].numbers
    assert numbers["float_top1"] == 1.0
    assert numbers["drop_points"] == pytest.approx(100 * (1 - numbers["int8_top1"]), abs=1e-9)
    assert "no float file" in rows["third 16 px onnxruntime"].detail
    assert base.head_capacity == 10


def test_a_folder_of_images_is_used_with_or_without_classes(bundle, tmp_path):
    for k, label in enumerate(LABELS):
        (tmp_path / "classes" / label).mkdir(parents=True)
        Image.fromarray(random_images(1, 20, seed=k)[0]).save(
            tmp_path / "classes" / label / "a.png"
        )
    report = verify_bundle(bundle.path, tmp_path / "classes", ["onnx"])
    assert sum(check.name == "accuracy" for check in report.checks) == 4
    plain = tmp_path / "classes" / LABELS[0]
    report = verify_bundle(bundle.path, plain, ["onnx"])
    rows = [check for check in report.checks if check.name == "runtime = reference"]
    assert {check.numbers["images"] for check in rows} == {1}
    assert not any(check.name == "accuracy" for check in report.checks)
    with pytest.raises(DataError, match="nowhere does not exist; images are read from a folder"):
        verify_bundle(bundle.path, tmp_path / "nowhere")


def test_an_unknown_task_is_refused(bundle):
    with pytest.raises(UnknownTaskError):
        verify_bundle(bundle.path, task="flowers")


def test_a_changed_byte_fails_its_hash_and_stops_what_builds_on_it(copy):
    model = copy / "base.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    report = verify_bundle(copy)
    assert not report.ok
    assert failed(report) == {("hash", "base.onnx")}
    assert {check.name for check in report.checks} == {"manifest", "hash"}


def test_no_bundle_and_a_damaged_manifest_fail_and_do_not_raise(copy, tmp_path):
    for path in (tmp_path, copy):
        (copy / "manifest.json").write_bytes(b"{")
        assert failed(verify_bundle(path)) == {("manifest", "manifest.json")}


def test_a_deployed_copy_skips_what_needs_the_reference(copy):
    shutil.rmtree(copy / "reference")
    report = verify_bundle(copy)
    assert report.ok
    skipped = {check.name for check in report.checks if check.passed is None}
    assert skipped == {"hash", "int8 = float", "overlay = stand-alone", "runtime = reference"}


class Careless:
    """The ONNX converter with a planted defect."""

    def __init__(self, change):
        self.real = load_converter("onnx")
        self.name, self.suffix = self.real.name, self.real.suffix
        self.change = change

    def write(self, base, variants):
        return self.change(self.real.write(base, variants))


def plant(path, change, monkeypatch):
    """A bundle whose base file and table come from a careless converter, hashes right."""
    base, patch = make_patch()
    with monkeypatch.context() as context:
        context.setattr("patchdeploy.bundle.writer.load_converter", lambda name: Careless(change))
        create_bundle(path, base, resolutions=(16, 24), formats=("onnx",))
    with suppress(SlotTableError, IntegrityError):  # some show as soon as a patch is packed
        add_task(path, patch)
    return verify_bundle(path)


def shifted_slot(written):
    """One bias slot that begins a row later in the patch, and is as long as before."""
    slots = list(written.table.slots)
    k = next(k for k, slot in enumerate(slots) if slot.kind == "bias")
    slots[k] = replace(slots[k], start=slots[k].start + 1)
    return replace(written, table=replace(written.table, slots=tuple(slots)))


def moved_slot(written):
    """One bias slot moved by four bytes, and made shorter so that slots do not overlap."""
    slots = list(written.table.slots)
    k = next(k for k, slot in enumerate(slots) if slot.kind == "bias")
    slot = slots[k]
    slots[k] = replace(slot, offset_bytes=slot.offset_bytes + 4, count=slot.count - 1)
    return replace(written, table=replace(written.table, slots=tuple(slots)))


def test_a_slot_table_with_one_wrong_row_fails_overlay_and_reference(tmp_path, monkeypatch):
    names = {name for name, _ in failed(plant(tmp_path / "b", shifted_slot, monkeypatch))}
    assert names >= {"overlay = stand-alone", "runtime = reference"}


def test_a_slot_that_is_not_the_tensor_it_names_fails_the_table(tmp_path, monkeypatch):
    found = failed(plant(tmp_path / "b", moved_slot, monkeypatch))
    assert ("slot table", "onnx") in found


def test_a_slot_beyond_the_patch_fails_the_table(tmp_path, monkeypatch):
    def change(written):
        slots = [replace(s, start=10**6) if s.kind == "bias" else s for s in written.table.slots]
        return replace(written, table=replace(written.table, slots=tuple(slots)))

    assert ("slot table", "onnx") in failed(plant(tmp_path / "b", change, monkeypatch))


def test_a_table_for_a_file_of_another_length_fails(tmp_path, monkeypatch):
    def change(written):
        return replace(written, table=replace(written.table, base_bytes=len(written.data) + 8))

    assert ("slot table", "onnx") in failed(plant(tmp_path / "b", change, monkeypatch))


def test_the_planting_itself_is_sound(tmp_path, monkeypatch):
    assert plant(tmp_path / "b", lambda written: written, monkeypatch).ok


def test_kernels_in_the_file_that_are_not_the_reference_fail(tmp_path, monkeypatch):
    """The executor sees it too, where export and overlay share a defect."""

    def change(written):
        data = bytearray(written.data)
        slots = written.table.slots
        covered = {k for s in slots for k in range(s.offset_bytes, s.offset_bytes + s.length_bytes)}
        base = make_patch()[0]
        kernel = base.weights["stem"].transpose(0, 3, 1, 2).tobytes()
        start = bytes(data).index(kernel)
        assert not covered & set(range(start, start + len(kernel)))
        for k in range(start, start + len(kernel)):
            data[k] ^= 0x40
        table = replace(written.table, base_sha256=sha256_hex(bytes(data)))
        return replace(written, data=bytes(data), table=table)

    names = {name for name, _ in failed(plant(tmp_path / "b", change, monkeypatch))}
    assert names == {"overlay = stand-alone", "runtime = reference"}


def test_the_tolerance_is_in_steps_of_the_head_output(bundle, monkeypatch):
    """A reference that is one step off fails at tolerance 0 and passes at 1."""
    from patchdeploy.verify import images as verify_images

    real = verify_images.run_integer

    def off_by_one(base, variant, pixels, arithmetic):
        result = real(base, variant, pixels, arithmetic)
        scale = variant.activations[base.graph.output].scale
        return replace(result, logits=result.logits + scale)

    monkeypatch.setattr(verify_images, "run_integer", off_by_one)
    strict = verify_bundle(bundle.path, formats=["onnx"])
    assert {name for name, _ in failed(strict)} == {"runtime = reference"}
    assert "at most 0 LSB is allowed" in strict.failures[0].detail
    assert verify_bundle(bundle.path, formats=["onnx"], tolerance_lsb=1).ok


def test_the_standalone_model_is_what_a_slot_table_describes(bundle):
    table = bundle.table("onnx")
    assert isinstance(table, SlotTable)
    model = standalone(bundle, "first", "onnx", 24)
    assert len(model) == table.base_bytes
    assert open_bundle(bundle.path).formats == ("onnx", "tflite")


def test_an_unsigned_bundle_is_said_to_be_one(tmp_path):
    report = verify_bundle(make_bundle(tmp_path / "b", formats=("onnx",)).path)
    assert report.ok
    said = {(c.subject, c.detail) for c in report.checks if c.name == "signature"}
    assert said == {
        (task, "UNSIGNED: this is a development bundle") for task in ("first", "second")
    }


def test_a_patch_that_loads_and_says_something_else_fails_its_self_test(tmp_path):
    base, patch = make_patch()
    path = tmp_path / "b"
    create_bundle(path, base, resolutions=(16, 24), formats=("onnx", "tflite"))
    add_task(path, patch, thumbnails=np.zeros((1, 8, 8, 3), np.uint8))
    bundle = open_bundle(path)
    good = bundle.patch("first")
    scores = {
        name: {px: np.invert(one) for px, one in by_side.items()}
        for name, by_side in good.golden.scores.items()
    }
    wrong = replace(good, golden=replace(good.golden, scores=scores))
    add_task(path, wrong, replace_existing=True)
    found = failed(verify_bundle(path))
    assert found == {("self-test", "first onnx"), ("self-test", "first tflite")}


def test_a_patch_over_other_base_files_fails_its_result_hashes(tmp_path):
    bundle = make_bundle(tmp_path / "b", tasks=("first",), formats=("onnx",), signed=True)
    other = make_bundle(tmp_path / "c", tasks=(), formats=("onnx",), resolutions=(16, 32))
    data = bundle.read(bundle.task("first").file)
    checked, patch = open_patch(data, bundle.policy("first"), bundle.coding_table)
    with pytest.raises(PatchRefusedError) as caught:
        check_results(checked, patch, {"tflite": bundle.base_files()["onnx"]})
    assert caught.value.code == "result"
    changed = bytearray(other.base_file("onnx"))
    changed[-1] ^= 1
    table = replace(bundle.table("onnx"), base_sha256=sha256_hex(bytes(changed)))
    with pytest.raises(PatchRefusedError, match="SHA-256 of onnx at 24 px is"):
        check_results(checked, patch, {"onnx": (bytes(changed), table)})


def test_a_model_in_a_bare_session_is_compared_in_both_forms(bundle):
    """On a processor that saturates the rows are skipped and say so: this holds on both kinds."""
    report = verify_bundle(bundle.path, formats=["onnx"])
    rows = [check for check in report.checks if check.name == "without the Engine"]
    assert len(rows) == 4
    exact = is_exact(onnxruntime, SIGNED)
    for row in rows:
        assert row.passed is (True if exact else None)
        assert row.numbers["wrong_unsigned"] == 0
        assert row.numbers["kernels_exact"] is exact
    assert exact is (sum(row.numbers["wrong_as_written"] for row in rows) == 0)


@pytest.mark.parametrize(
    ("exact", "wrong", "wrong_unsigned", "passed"),
    [(True, 0, 0, True), (False, 8, 0, None), (False, 0, 0, None)]
    + [(True, 1, 0, False), (True, 0, 1, False), (False, 8, 1, False)],
)
def test_a_processor_that_saturates_is_no_failure_and_another_score_is(
    exact, wrong, wrong_unsigned, passed
):
    assert judge(exact, wrong, wrong_unsigned, 8)[0] is passed


def test_a_file_that_is_wrong_here_without_the_engine_is_said_loudly(bundle, monkeypatch, caplog):
    def count(model, pixels, scores):  # as an x86-64 without VNNI counts
        return 0 if model == unsigned_kernels(model) else 5

    monkeypatch.setattr(bare, "is_exact", lambda module, form: form != SIGNED)
    monkeypatch.setattr(bare, "_count_wrong", count)
    bare._warn_once.cache_clear()
    with caplog.at_level("WARNING", "patchdeploy.verify"):
        report = verify_bundle(bundle.path, formats=["onnx"])
    assert report.ok
    rows = [check for check in report.checks if check.name == "without the Engine"]
    assert {row.passed for row in rows} == {None}
    assert "5 of 8 images have other scores" in rows[0].detail
    said = [r.getMessage() for r in caplog.records if r.name == "patchdeploy.verify"]
    assert said == [
        "base.onnx IS WRONG ON THIS PROCESSOR WITHOUT THE ENGINE (int8 kernels saturate); use its "
        "unsigned form there, see docs/bundle-format.md"
    ]
