"""Kernels in the form that the processor multiplies exactly, found by trying, and by force."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from bundle_cases import make_bundle
from onnx_cases import EXACT_FORMS
from patchdeploy_onnx import probe, unsigned_kernels

from patchdeploy.bundle import patched
from patchdeploy.errors import ConfigError, RuntimeBackendError
from patchdeploy.runtime import Engine
from patchdeploy.runtime.ort import OnnxRuntimeBackend, unsigned_table
from patchdeploy.runtime.ort_kernels import (
    SIGNED,
    UNSIGNED,
    VARIABLE,
    choose_kernels,
    expected,
    is_exact,
)
from patchdeploy.slots import overlay, slot_values
from patchdeploy.storage import sha256_hex


class FakeRuntime(SimpleNamespace):
    """A runtime that is exact with some forms of kernels and saturates with the others."""

    __version__ = "0.0 of the test"
    GraphOptimizationLevel = SimpleNamespace(ORT_DISABLE_ALL=0)
    __hash__ = object.__hash__

    def __init__(self, *exact, refuses=False):
        self.forms = {probe.probe_model(): SIGNED, unsigned_kernels(probe.probe_model()): UNSIGNED}
        self.exact, self.refuses = exact, refuses

    class SessionOptions(SimpleNamespace):
        pass

    def InferenceSession(self, model, options, providers):
        if self.refuses:
            raise ValueError("no such operator")
        share = 1 if self.forms[model] in self.exact else 32767 / (2 * 255 * 127)

        def run(names, feeds):
            assert (feeds["image"] == 255).all()
            right = expected((1, 2, 2, 6)).astype(np.float64)
            wrong = np.rint(128 + share * (right - 128)).astype(np.uint8)
            return [right.astype(np.uint8)] * (len(names) - 1) + [wrong]

        return SimpleNamespace(run=run)


def test_the_probe_is_a_valid_model_in_both_forms():
    for model in (probe.probe_model(), unsigned_kernels(probe.probe_model())):
        onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)


def test_unsigned_kernels_are_exact_on_every_processor():
    assert is_exact(onnxruntime, UNSIGNED)
    assert UNSIGNED in EXACT_FORMS


@pytest.mark.parametrize(
    ("exact", "chosen"),
    [((SIGNED, UNSIGNED), SIGNED), ((UNSIGNED,), UNSIGNED)],
    ids=["exact", "saturating"],
)
def test_the_fastest_form_that_is_exact_is_chosen(monkeypatch, exact, chosen):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_kernels(FakeRuntime(*exact)) == chosen
    monkeypatch.setenv(VARIABLE, "")
    assert choose_kernels(FakeRuntime(*exact)) == chosen


def test_one_wrong_convolution_of_the_probe_is_enough():
    assert is_exact(FakeRuntime(SIGNED), SIGNED)
    assert not is_exact(FakeRuntime(UNSIGNED), SIGNED)


def test_a_runtime_that_is_wrong_with_every_form_is_refused(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(RuntimeBackendError) as caught:
        choose_kernels(FakeRuntime())
    assert str(caught.value) == (
        "onnxruntime 0.0 of the test gives wrong products with signed and unsigned kernels on this "
        "processor; scores must be exact; use another version of it, or runtime 'litert'"
    )


def test_a_forced_form_is_taken_and_refused_where_it_is_wrong(monkeypatch):
    for form in (SIGNED, UNSIGNED):
        monkeypatch.setenv(VARIABLE, form)
        assert choose_kernels(FakeRuntime(SIGNED, UNSIGNED)) == form
    monkeypatch.setenv(VARIABLE, SIGNED)
    with pytest.raises(RuntimeBackendError) as caught:
        choose_kernels(FakeRuntime(UNSIGNED))
    assert str(caught.value) == (
        "onnxruntime 0.0 of the test gives wrong products with signed kernels on this processor; "
        "scores must be exact; unset PATCHDEPLOY_ORT_KERNELS"
    )


def test_another_value_of_the_variable_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "int8")
    with pytest.raises(ConfigError) as caught:
        Engine.open(make_bundle(tmp_path / "b"), "onnxruntime")
    assert str(caught.value) == (
        "PATCHDEPLOY_ORT_KERNELS is 'int8'; it must be 'signed' or 'unsigned'; correct it or unset "
        "it"
    )


def test_a_runtime_that_does_not_run_the_probe_is_named():
    with pytest.raises(RuntimeBackendError, match="does not run quantised convolutions"):
        is_exact(FakeRuntime(refuses=True), UNSIGNED)


@pytest.mark.parametrize("form", EXACT_FORMS)
def test_the_kernels_of_a_back_end_have_the_form(tmp_path, monkeypatch, form):
    monkeypatch.setenv(VARIABLE, form)
    dtype = {SIGNED: "i8", UNSIGNED: "u8"}[form]
    bundle = make_bundle(tmp_path / "b")
    head = next(slot for slot in bundle.table("onnx").slots if slot.kind == "weight")
    per_run = OnnxRuntimeBackend(bundle, threads=1, mode="per_run")
    types = {one.name: one.type for one in per_run._per_run.get_inputs()}
    declared = {one.name: one.type for one in per_run._per_run.get_overridable_initializers()}
    names = {"u8": "tensor(uint8)", "i8": "tensor(int8)"}
    assert (types | declared)[head.name] == names[dtype]
    values = bundle.patch("second").values[24]
    resident = OnnxRuntimeBackend(bundle, threads=1)
    assert resident.kernels == form
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


def test_the_probe_is_the_model_that_kotlin_probes_with():
    """OnnxRuntimeBackendTest.kt holds the same hash."""
    test = Path(__file__).parents[2] / "android_demo/patchkit-onnxruntime/src/test/kotlin"
    text = (test / "OnnxRuntimeBackendTest.kt").read_text()
    assert hashlib.sha256(probe.probe_model()).hexdigest() in text
