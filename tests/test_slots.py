import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.errors import IntegrityError, SlotTableError, UnknownResolutionError
from patchdeploy.slots import (
    Edit,
    PatchValues,
    Slot,
    SlotTable,
    apply_values,
    check_table,
    overlay,
    select_view,
    slot_values,
)
from patchdeploy.storage import sha256_hex

BASE = bytes(range(200))


def make_table(**changes):
    slots = (
        Slot("conv", "weight_scale", 32, 0, 0, 3, "f32"),
        Slot("conv", "bias", 32, 16, 0, 3, "i32"),
        Slot("conv", "bias_scale", 32, 32, 0, 3, "f32", x_index=1),
        Slot("x", "activation_scale", 32, 48, 1, 1, "f32"),
        Slot("x", "activation_zero_point", 32, 56, 1, 1, "i64"),
        Slot("x", "activation_zero_point", 64, 64, 0, 1, "u8"),
        Slot("head", "weight", None, 80, 0, 12, "i8", layout="1hwo", shape=(3, 2, 2, 1)),
    )
    fields = {
        "runtime": "tflite",
        "base_sha256": sha256_hex(BASE),
        "base_bytes": len(BASE),
        "resolutions": (32, 64),
        "slots": slots,
        "views": {32: (Edit(100, 1), Edit(104, 70000)), 64: (Edit(100, 2),)},
    }
    return SlotTable(**{**fields, **changes})


def make_values(seed=0):
    generator = np.random.default_rng(seed)
    return PatchValues(
        weight_scale=generator.uniform(0.001, 0.1, 3).astype(np.float32),
        bias=generator.integers(-(2**31), 2**31 - 1, 3).astype(np.int32),
        activation_scale=generator.uniform(0.001, 0.1, 2).astype(np.float32),
        activation_zero_point=generator.integers(-128, 128, 2).astype(np.int8),
        weights=generator.integers(-127, 128, 12).astype(np.int8),
    )


def test_a_slot_table_survives_its_json_form():
    table = make_table()
    assert SlotTable.from_json(table.to_json()) == table


def test_overlay_changes_the_slots_of_the_given_resolution_and_nothing_else():
    table, values = make_table(), make_values()
    patched = overlay(BASE, table, {32: values})
    touched = np.zeros(len(BASE), bool)
    for slot in table.slots:
        if slot.resolution in (32, None):
            end = slot.offset_bytes + slot.length_bytes
            touched[slot.offset_bytes : end] = True
            assert bytes(patched[slot.offset_bytes : end]) == slot_values(slot, values).tobytes()
    before, after = np.frombuffer(BASE, np.uint8), np.frombuffer(bytes(patched), np.uint8)
    assert (before == after)[~touched].all()
    assert (before != after)[touched].any()


def test_a_bias_scale_is_the_float32_product_of_input_scale_and_weight_scale():
    values = make_values()
    slot = make_table().slots[2]
    expected = [np.float32(values.activation_scale[1] * w) for w in values.weight_scale]
    assert slot_values(slot, values).tolist() == [float(e) for e in expected]


def test_a_uint8_zero_point_is_the_int8_one_plus_128():
    values = make_values()
    assert slot_values(make_table().slots[5], values).tolist() == [
        int(values.activation_zero_point[0]) + 128
    ]


def test_a_uint8_kernel_is_the_int8_one_plus_128():
    values = make_values()
    slot = make_table().slots[6]
    signed = slot_values(slot, values)
    unsigned = slot_values(replace(slot, dtype="u8"), values)
    assert unsigned.dtype == np.uint8
    assert unsigned.tolist() == [int(q) + 128 for q in signed]


def test_a_depthwise_kernel_moves_its_output_channel_to_the_end():
    values = make_values()
    kernel = values.weights.reshape(3, 2, 2, 1)
    written = slot_values(make_table().slots[6], values).reshape(1, 2, 2, 3)
    for channel in range(3):
        np.testing.assert_array_equal(written[0, :, :, channel], kernel[channel, :, :, 0])


def test_a_base_file_with_one_changed_byte_is_refused_before_anything_is_written():
    changed = bytearray(BASE)
    changed[150] ^= 1
    with pytest.raises(IntegrityError) as caught:
        overlay(bytes(changed), make_table(), {32: make_values()})
    assert str(caught.value) == (
        f"base file has SHA-256 {sha256_hex(bytes(changed))}; its slot table is bound to "
        f"{sha256_hex(BASE)}; restore the base file that the table was exported with"
    )


def test_a_resolution_without_a_signature_is_refused_by_name():
    with pytest.raises(UnknownResolutionError) as caught:
        apply_values(bytearray(BASE), make_table(), {96: make_values()})
    assert str(caught.value) == (
        "resolution 96 px is not in this base file, which has 32, 64; choose one of them or "
        "export again"
    )
    with pytest.raises(UnknownResolutionError):
        select_view(bytearray(BASE), make_table(), 96)


def test_a_view_sets_little_endian_words_and_nothing_else():
    target = select_view(bytearray(BASE), make_table(), 32)
    assert target[100:108] == (1).to_bytes(4, "little") + (70000).to_bytes(4, "little")
    assert target[:100] == BASE[:100]
    assert target[108:] == BASE[108:]


@given(st.integers(0, 4000))
def test_a_slot_table_cut_at_any_length_is_a_typed_error(length):
    data = make_table().to_json()
    with pytest.raises(SlotTableError):
        SlotTable.from_json(data[: length % len(data)])


@given(st.binary(max_size=200))
def test_random_bytes_are_never_a_slot_table(data):
    with pytest.raises(SlotTableError):
        SlotTable.from_json(data)


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, {"offset_bytes": -4}),
        (1, {"offset_bytes": 11}),  # overlaps the slot before it, which ends at byte 12
        (6, {"offset_bytes": 189}),  # 12 bytes from 189 end at 201 of 200
        (0, {"count": 0}),
        (0, {"count": 2.0}),
        (0, {"kind": "name"}),
        (0, {"dtype": "f64"}),
        (6, {"layout": "hwio"}),
        (6, {"shape": (12,)}),
        (6, {"shape": (3, 2, 2, 2)}),  # 24 elements in a slot of 12
        (0, {"start": -1}),
        (2, {"x_index": -1}),  # a bias scale without an input
        (0, {"dtype": "i32"}),
        (1, {"dtype": "f32"}),
        (6, {"dtype": "f32"}),
    ],
)
def test_a_slot_that_breaks_a_rule_is_refused(index, change):
    slots = list(make_table().slots)
    fields = {name: getattr(slots[index], name) for name in Slot.__dataclass_fields__}
    slots[index] = Slot(**{**fields, **change})
    with pytest.raises(SlotTableError, match=f"slot {index} "):
        check_table(make_table(slots=tuple(slots)))


def test_slots_may_end_exactly_where_the_file_ends():
    slots = (*make_table().slots[:-1], Slot("head", "weight_scale", None, 188, 0, 3, "f32"))
    check_table(make_table(slots=slots))


def test_a_view_outside_the_file_is_refused():
    with pytest.raises(SlotTableError, match="bytes 197 to 201"):
        check_table(make_table(views={32: (Edit(197, 0),)}))


def test_a_table_of_another_format_names_both_formats():
    document = json.loads(make_table().to_json())
    document["format"] = 99
    with pytest.raises(SlotTableError, match="format 99; this version reads format 1"):
        SlotTable.from_json(json.dumps(document).encode())
