"""Slots of the .onnx file: overlay, initialiser override and run-time values are one thing."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from graph_cases import GRAPH_CASES, make_case, make_variant, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from patchdeploy_onnx import OnnxConverter, find_initializers, per_run_model
from patchdeploy_onnx.wire import slot_dims

from patchdeploy.quantize.model import (
    QuantizedBase,
    QuantizedVariant,
    flatten_variant,
    neutral_variant,
)
from patchdeploy.slots import SlotTable, overlay, slot_values

OWNED = {"conv_stack": ("dw1", "dw2"), "grouped_dilated": ("grouped", "dilated_dw")}
"""Convolutions whose kernels are slots too, besides the head's."""


def write_pair(name: str, seed: int = 3) -> tuple[QuantizedBase, QuantizedVariant, Any, Any]:
    """(base, variant, the base file before any patch, the variant's own file)."""
    base, variants = make_case(name, seed=seed, patch_owned=OWNED.get(name, ()))
    neutral = OnnxConverter().write(base, {16: neutral_variant(base, 16)})
    return base, variants[16], neutral, OnnxConverter().write(base, variants)


def slot_arrays(
    table: SlotTable, base: QuantizedBase, variant: QuantizedVariant
) -> dict[str, NDArray[Any]]:
    flat = flatten_variant(base, variant)
    return {s.name: slot_values(s, flat).reshape(slot_dims(s)) for s in table.slots}


def session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def run_scores(
    data: bytes, feeds: dict[str, NDArray[Any]], overrides: dict[str, NDArray[Any]] | None = None
) -> NDArray[Any]:
    options = session_options()
    # The session reads an override's memory for as long as it lives: keep the values.
    kept = {
        name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in (overrides or {}).items()
    }
    for name, value in kept.items():
        options.add_initializer(name, value)
    scores: NDArray[Any] = ort.InferenceSession(data, options).run(None, feeds)[0]
    return scores


@pytest.mark.parametrize("name", GRAPH_CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), resolution=st.sampled_from([16, 24, 224]))
def test_overlay_is_byte_identical_to_writing_the_task_alone(
    name: str, seed: int, resolution: int
) -> None:
    base, _ = make_case(name, patch_owned=OWNED.get(name, ()))
    variant = make_variant(base, resolution, seed)
    neutral = OnnxConverter().write(base, {16: neutral_variant(base, 16)})
    alone = OnnxConverter().write(base, {resolution: variant})
    patched = overlay(neutral.data, neutral.table, {resolution: flatten_variant(base, variant)})
    assert bytes(patched) == alone.data
    assert alone.data != neutral.data
    assert alone.table.slots == neutral.table.slots


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_bytes_outside_slots_belong_to_the_base(name: str) -> None:
    _, _, neutral, alone = write_pair(name)
    outside = np.ones(len(neutral.data), bool)
    for slot in neutral.table.slots:
        outside[slot.offset_bytes : slot.offset_bytes + slot.length_bytes] = False
    first, second = (np.frombuffer(file.data, np.uint8) for file in (neutral, alone))
    np.testing.assert_array_equal(first[outside], second[outside])
    assert (first[~outside] != second[~outside]).any()


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_slots_are_named_after_initializers_and_cover_every_value(name: str) -> None:
    base, variant, neutral, _ = write_pair(name)
    spans = find_initializers(neutral.data)
    covered: dict[str, int] = {}
    for slot in neutral.table.slots:
        span = spans[slot.name]
        assert (span.start, span.length_bytes) == (slot.offset_bytes, slot.length_bytes)
        assert slot.name == f"{slot.site}.{slot.kind}"
        assert slot.resolution is None
        covered[slot.kind] = covered.get(slot.kind, 0) + slot.count
    flat = flatten_variant(base, variant)
    assert covered["weight_scale"] == covered["bias"] == flat.weight_scale.size
    assert covered["weight"] == flat.weights.size
    assert covered["activation_scale"] == covered["activation_zero_point"]
    assert neutral.table.resolutions == ()
    assert SlotTable.from_json(neutral.table.to_json()) == neutral.table


def test_an_activation_site_has_one_slot_however_many_read_it() -> None:
    base, _, neutral, _ = write_pair("residual")
    sites = [slot.site for slot in neutral.table.slots if slot.kind == "activation_scale"]
    assert len(sites) == len(set(sites)) == len(base.activation_sites())


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_overriding_initializers_equals_overlay_bit_for_bit(name: str) -> None:
    base, variant, neutral, alone = write_pair(name)
    images = random_images(2, 19)
    arrays = slot_arrays(neutral.table, base, variant)
    resident = run_scores(neutral.data, {"image": images}, arrays)
    expected = run_scores(alone.data, {"image": images})
    np.testing.assert_array_equal(resident, expected)
    assert (run_scores(neutral.data, {"image": images}) != expected).any()


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_feeding_values_at_run_time_equals_overlay_bit_for_bit(name: str) -> None:
    base, variant, neutral, _ = write_pair(name)
    other = make_variant(base, 16, 99)
    data = per_run_model(neutral.data, neutral.table)
    images = random_images(2, 19)
    session = ort.InferenceSession(data, session_options())
    for task in (variant, other, variant):
        own = OnnxConverter().write(base, {16: task})
        feeds = {"image": images, **slot_arrays(neutral.table, base, task)}
        scores = session.run(None, feeds)[0]
        np.testing.assert_array_equal(scores, run_scores(own.data, {"image": images}))
    # Where a run feeds nothing, the initialiser stands.
    plain = session.run(None, {"image": images})[0]
    np.testing.assert_array_equal(plain, run_scores(neutral.data, {"image": images}))


@pytest.mark.parametrize("kind", ["bias", "weight_scale", "activation_zero_point", "weight"])
def test_every_kind_of_run_time_value_has_an_effect(kind: str) -> None:
    """onnxruntime below 1.29 drops a bias that is fed; nothing may be dropped."""
    base, _, _, alone = write_pair("conv_stack")
    data = per_run_model(alone.data, alone.table)
    other = slot_arrays(alone.table, base, make_variant(base, 16, 99))
    changed = {slot.name: other[slot.name] for slot in alone.table.slots if slot.kind == kind}
    images = random_images(2, 19)
    plain = run_scores(data, {"image": images})
    fed = run_scores(data, {"image": images, **changed})
    assert (plain != fed).any()
    np.testing.assert_array_equal(fed, run_scores(alone.data, {"image": images}, changed))
