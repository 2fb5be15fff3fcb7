"""The prepared way to set slots gives the bytes of the definition, `apply_values`."""

import math
from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import make_bundle
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.errors import SlotTableError, UnknownResolutionError
from patchdeploy.slot_plan import apply_plan, plan_slots
from patchdeploy.slots import (
    SLOT_KINDS,
    WEIGHT_LAYOUTS,
    PatchValues,
    Slot,
    SlotTable,
    apply_values,
    check_table,
)

ROWS, SITES, ELEMENTS = 7, 5, 40


def make_values(seed: int) -> PatchValues:
    generator = np.random.default_rng(seed)
    return PatchValues(
        weight_scale=generator.uniform(1e-6, 1e3, ROWS).astype(np.float32),
        bias=generator.integers(-(2**31), 2**31, ROWS).astype(np.int32),
        activation_scale=generator.uniform(1e-6, 1e3, SITES).astype(np.float32),
        activation_zero_point=generator.integers(-128, 128, SITES).astype(np.int8),
        weights=generator.integers(-127, 128, ELEMENTS).astype(np.int8),
    )


@st.composite
def tables(draw: st.DrawFn) -> SlotTable:
    """Any slots at any alignment, with gaps, for 16 px, 24 px or both."""
    slots, offset = [], 0
    for _ in range(draw(st.integers(1, 12))):
        offset += draw(st.integers(0, 9))
        kind = draw(st.sampled_from(sorted(SLOT_KINDS)))
        dtype = draw(st.sampled_from(sorted(SLOT_KINDS[kind])))
        layout, shape = "", ()
        if kind == "weight":
            layout = draw(st.sampled_from(sorted(WEIGHT_LAYOUTS)))
            shape = tuple(draw(st.lists(st.integers(1, 2), min_size=4, max_size=4)))
            count, length = math.prod(shape), ELEMENTS
        else:
            length = SITES if kind.startswith("activation") else ROWS
            count = draw(st.integers(1, length))
        start = draw(st.integers(0, length - count))
        x_index = draw(st.integers(0, SITES - 1)) if kind == "bias_scale" else -1
        resolution = draw(st.sampled_from((None, 16, 24)))
        slot = Slot("s", kind, resolution, offset, start, count, dtype, x_index, layout, shape)
        slots.append(slot)
        offset += slot.length_bytes
    table = SlotTable("x", "", offset + draw(st.integers(0, 9)), (16, 24), tuple(slots), {})
    check_table(table)
    return table


@given(tables(), st.integers(0, 99))
def test_a_plan_gives_the_bytes_of_the_definition(table, seed):
    base = np.random.default_rng(seed).bytes(table.base_bytes)
    for resolution in (16, 24):
        values = make_values(seed + resolution)
        expected = apply_values(bytearray(base), table, {resolution: values})
        found = bytearray(base)
        apply_plan(found, plan_slots(table, resolution), values)
        assert found == expected


def test_a_plan_of_a_real_bundle_gives_the_bytes_of_the_definition(tmp_path):
    for name in ("conv_stack", "branches"):
        bundle = make_bundle(tmp_path / name, name)
        for format_name in bundle.formats:
            base, table = bundle.base_file(format_name), bundle.table(format_name)
            for px, values in bundle.patch("second").values.items():
                expected = apply_values(bytearray(base), table, {px: values})
                found = bytearray(base)
                apply_plan(found, plan_slots(table, px), values)
                assert found == expected != base


@pytest.mark.parametrize(
    ("kind", "dtype", "array", "x_index"),
    [
        ("weight_scale", "f32", "weight_scale", -1),
        ("bias", "i32", "bias", -1),
        ("bias_scale", "f32", "weight_scale", 0),
        ("bias_scale", "f32", "activation_scale", SITES - 1),
        ("activation_scale", "f32", "activation_scale", -1),
        ("activation_zero_point", "i64", "activation_zero_point", -1),
        ("weight", "i8", "weights", -1),
    ],
)
def test_an_array_too_short_for_its_slots_is_refused_before_anything_is_set(
    kind, dtype, array, x_index
):
    values = make_values(1)
    count = len(getattr(values, "weight_scale" if kind == "bias_scale" else array))
    extra = {"layout": "ohwi", "shape": (count, 1, 1, 1)} if kind == "weight" else {}
    slots = (
        Slot("a", "bias", None, 0, 0, 1, "i32"),
        Slot("b", kind, None, 4, 0, count, dtype, x_index, **extra),
    )
    table = SlotTable("x", "", 4 + slots[1].length_bytes, (), slots, {})
    short = replace(values, **{array: getattr(values, array)[:-1]})
    whole = len(getattr(values, array))
    for apply in (
        lambda target: apply_values(target, table, {16: short}),
        lambda target: apply_plan(target, plan_slots(table, 16), short),
    ):
        target = bytearray(table.base_bytes)
        with pytest.raises(SlotTableError) as caught:
            apply(target)
        assert str(caught.value) == (
            f"the slot table sets {whole} elements of {array}; the values have {whole - 1}; use "
            "the slot table and the patch of one bundle"
        )
        assert not any(target)


def test_a_resolution_without_a_signature_has_no_plan():
    table = SlotTable("x", "", 4, (16,), (Slot("a", "bias", 16, 0, 0, 1, "i32"),), {})
    with pytest.raises(UnknownResolutionError, match="resolution 32 px is not in this base file"):
        plan_slots(table, 32)
