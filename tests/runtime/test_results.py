"""The signed hash of a result binds a bundle's own patches to the base file that an engine runs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import make_bundle
from graph_cases import random_images

from patchdeploy.bundle import open_bundle
from patchdeploy.errors import PatchRefusedError, SlotTableError
from patchdeploy.runtime import Engine, versions
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex

WAYS = [("litert", "resident"), ("onnxruntime", "resident"), ("onnxruntime", "per_run")]
SUFFIX = {"litert": ".tflite", "onnxruntime": ".onnx"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("results") / "b", signed=True)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle.path, tmp_path / "copy")


def write_consistently(path, files):
    """Put other bytes in the place of files, and every hash of the manifest right."""
    document = json.loads((path / "manifest.json").read_text())
    for name, data in files.items():
        (path / name).write_bytes(data)
        document["files"][name].update(sha256=sha256_hex(data), bytes=len(data))
    del document["manifest_sha256"]
    for _ in range(2):
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        document.setdefault("manifest_sha256", sha256_hex(text.encode()))
    (path / "manifest.json").write_text(text)


def change_kernel(path, suffix):
    """One byte of a shared kernel: consistent with every hash but the signed ones."""
    opened = open_bundle(path)
    base, table = opened.base_file(suffix[1:]), opened.table(suffix[1:])
    reference = opened.reference()
    conv = next(c for c in reference.graph.convolutions() if c.name not in reference.patch_owned)
    kernel = reference.weights[conv.name]
    layouts = [kernel.transpose(axes).tobytes() for axes in ((0, 1, 2, 3), (0, 3, 1, 2))]
    place = max(base.find(layout) for layout in layouts)
    assert place >= 0
    changed = bytearray(base)
    changed[place] ^= 1
    table = replace(table, base_sha256=sha256_hex(bytes(changed)))
    files = {f"base{suffix}": bytes(changed), f"base{suffix}.slots.json": table.to_json()}
    write_consistently(path, files)


@pytest.mark.parametrize(("runtime", "mode"), WAYS)
def test_a_base_that_was_changed_together_with_its_manifest_is_refused(copy, runtime, mode):
    change_kernel(copy, SUFFIX[runtime])
    with Engine.open(copy, runtime, mode=mode) as engine:
        for _ in range(2):  # a refusal is not remembered as a proof
            with pytest.raises(PatchRefusedError) as caught:
                engine.logits(random_images(1, 24), "first", 24)
            assert caught.value.code == "result"
        assert engine.residents == ()


@pytest.mark.parametrize(("runtime", "mode"), WAYS)
def test_a_slot_table_that_was_changed_together_with_its_manifest_is_refused(copy, runtime, mode):
    """Two slots of one kind and length take each other's values."""
    name = f"base{SUFFIX[runtime]}.slots.json"
    table = SlotTable.from_json((copy / name).read_bytes())
    first, second = two_alike(table)
    first, second = replace(first, start=second.start), replace(second, start=first.start)
    put_slots(copy, name, table, first, second)
    with (
        Engine.open(copy, runtime, mode=mode) as engine,
        pytest.raises(PatchRefusedError, match="SHA-256"),
    ):
        engine.logits(random_images(1, 24), "first", 24)


@pytest.mark.parametrize("mode", ["resident", "per_run"])
def test_a_slot_whose_name_is_another_initialiser_is_refused(copy, mode):
    """The result's hash binds places; names choose what is set where patches are fed by name."""
    name = "base.onnx.slots.json"
    table = SlotTable.from_json((copy / name).read_bytes())
    first, second = two_alike(table)
    first, second = replace(first, name=second.name), replace(second, name=first.name)
    put_slots(copy, name, table, first, second)
    with pytest.raises(SlotTableError):
        Engine.open(copy, "onnxruntime", mode=mode)


def two_alike(table):
    alike = {}
    for slot in table.slots:
        key = (slot.kind, slot.count, slot.resolution)
        if slot.kind == "bias" and slot.resolution in (24, None) and key in alike:
            return alike[key], slot
        alike[key] = slot
    raise AssertionError("no two slots have one length")


def put_slots(path, name, table, first, second):
    places = {one.offset_bytes: one for one in (first, second)}
    slots = tuple(places.get(slot.offset_bytes, slot) for slot in table.slots)
    write_consistently(path, {name: replace(table, slots=slots).to_json()})


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_a_result_is_compared_once_in_a_process(bundle, monkeypatch, runtime):
    compared = []

    def check(checked, patch, bases):
        compared.append((checked.header.task, *patch.values, *bases))
        return real(checked, patch, bases)

    real = versions.check_results
    monkeypatch.setattr(versions, "check_results", check)
    monkeypatch.setattr(versions, "_PROVED", set())
    for _ in range(2):
        with Engine.open(bundle, runtime, patch_budget_bytes=0) as engine:
            for px in (16, 24, 16):
                scores = engine.logits(random_images(1, px), "first", px)
                engine.evict("first", px)
            assert np.isfinite(scores).all()
    name = SUFFIX[runtime][1:]
    assert compared == [("first", 16, name), ("first", 24, name)]
