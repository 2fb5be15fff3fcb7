"""Uint8 kernels where a CPU gets uint8 by int8 wrong: the same scores, in both modes."""

from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import make_bundle, reference_logits
from graph_cases import random_images
from patchdeploy_onnx import unsigned_kernels

from patchdeploy.bundle import patched
from patchdeploy.runtime import Engine
from patchdeploy.runtime.ort import (
    OnnxRuntimeBackend,
    needs_unsigned,
    read_cpuinfo,
    unsigned_table,
)
from patchdeploy.slots import overlay, slot_values
from patchdeploy.storage import sha256_hex

OLD = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma avx512f avx512bw\nbugs\t\t: avx_vnni\n"
NEW = OLD.replace("avx512bw", "avx512bw avx512_vnni")
CLIENT = OLD.replace("avx512f avx512bw", "avx_vnni")
NAMED_ALIKE = OLD.replace("avx512bw", "avx512_vnni_like xavx_vnni")


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", OLD, True),
        ("x86_64", NEW, False),
        ("x86_64", CLIENT, False),
        ("AMD64", "", True),  # Windows: nothing is known, so the safe way
        ("x86_64", NAMED_ALIKE, True),
        ("x86_64", NEW + OLD, True),
        ("aarch64", "Features\t: fp asimd\n", False),
        ("arm64", "", False),
    ],
    ids=["avx512", "avx512 vnni", "avx vnni", "windows", "other flags", "mixed", "arm", "mac"],
)
def test_only_an_x86_cpu_without_vnni_needs_unsigned_kernels(machine, cpuinfo, expected):
    assert needs_unsigned(machine, cpuinfo) is expected


def test_the_text_of_this_cpu_is_read_where_there_is_one(monkeypatch, tmp_path):
    from patchdeploy.runtime import ort

    assert (read_cpuinfo() == "") is not ort.CPUINFO.exists()
    monkeypatch.setattr(ort, "CPUINFO", tmp_path / "none")
    assert read_cpuinfo() == ""


@pytest.mark.parametrize("mode", ["resident", "per_run"])
@pytest.mark.parametrize("name", ["conv_stack", "residual", "branches"])
def test_unsigned_kernels_give_the_same_scores_bit_by_bit(tmp_path, name, mode):
    bundle = make_bundle(tmp_path / "b", name)
    backend = OnnxRuntimeBackend(bundle, threads=1, mode=mode, unsigned=True)
    assert all(slot.dtype == "u8" for slot in backend._table.slots if slot.kind == "weight")
    with Engine(bundle, backend, None) as engine:
        for px in (16, 24):
            images = random_images(3, px)
            for task in bundle.tasks:
                expected = reference_logits(bundle, "onnxruntime", task, px, images)
                assert np.array_equal(engine.logits(images, task, px), expected)


@pytest.mark.parametrize(("cpuinfo", "dtype"), [(OLD, "u8"), (NEW, "i8")])
def test_the_kernels_follow_the_cpu_by_default(tmp_path, monkeypatch, cpuinfo, dtype):
    from patchdeploy.runtime import ort

    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(ort, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    bundle = make_bundle(tmp_path / "b")
    head = next(slot for slot in bundle.table("onnx").slots if slot.kind == "weight")
    per_run = OnnxRuntimeBackend(bundle, threads=1, mode="per_run")
    types = {one.name: one.type for one in per_run._per_run.get_inputs()}
    declared = {one.name: one.type for one in per_run._per_run.get_overridable_initializers()}
    names = {"u8": "tensor(uint8)", "i8": "tensor(int8)"}
    assert (types | declared)[head.name] == names[dtype]
    values = bundle.patch("second").values[24]
    resident = OnnxRuntimeBackend(bundle, threads=1)
    kernel = slot_values(replace(head, dtype=dtype), values).tobytes()
    assert kernel in resident._copy.render(values, 24)


def test_an_unsigned_overlay_is_the_overlay_made_unsigned(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    values = bundle.patch("second").values[24]
    base = unsigned_kernels(bundle.base_file("onnx"))
    table = replace(unsigned_table(bundle.table("onnx")), base_sha256=sha256_hex(base))
    assert any(slot.kind == "weight" for slot in table.slots)
    assert overlay(base, table, {24: values}) == unsigned_kernels(
        patched(bundle, "second", "onnx", 24)
    )
