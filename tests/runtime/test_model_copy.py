"""Every copy of a base file starts from the base: nothing of an earlier task is in it."""

import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import make_bundle

from patchdeploy.errors import SlotTableError, UnknownResolutionError
from patchdeploy.runtime.model_copy import ModelCopy
from patchdeploy.slots import Edit, PatchValues, Slot, SlotTable, overlay, select_view


def table_of(count: int, views=None) -> SlotTable:
    """``count`` bias slots of 4 bytes each, after 8 bytes that belong to no slot."""
    slots = tuple(Slot("site", "bias", None, 8 + 4 * k, k, 1, "i32") for k in range(count))
    return SlotTable("x", "", 8 + 4 * count, (16, 24) if views else (), slots, views or {})


def values_of(bias: int, count: int) -> PatchValues:
    floats = np.ones(1, np.float32)
    codes = np.zeros(1, np.int8)
    return PatchValues(floats, np.full(count, bias, np.int32), floats, codes, codes)


def test_a_first_model_is_the_overlay_seen_at_one_resolution(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    for name in bundle.formats:
        base, table = bundle.base_file(name), bundle.table(name)
        values = bundle.patch("first").values[24]
        expected = select_view(bytearray(overlay(base, table, {24: values})), table, 24)
        copy = ModelCopy(base, table)
        assert copy.render(values, 24) == expected
        copy.render(bundle.patch("second").values[24], 24)
        assert copy.render(values, 24) == expected


def test_a_model_shows_the_view_of_its_own_resolution_only():
    base = bytes(range(12))
    copy = ModelCopy(base, table_of(1, {16: (Edit(0, 1),), 24: (Edit(4, 2),)}))
    assert copy.render(values_of(7, 1), 16)[:8] == b"\1\0\0\0" + base[4:8]
    assert copy.render(values_of(7, 1), 24)[:8] == base[:4] + b"\2\0\0\0"


def test_a_model_that_was_given_never_changes_again():
    base = bytes(range(12))
    copy = ModelCopy(base, table_of(1))
    models = []
    for bias in range(5):
        models.append(copy.render(values_of(bias, 1), 0))
        copy.restock()
    expected = [bytes(range(8)) + bytes([bias, 0, 0, 0]) for bias in range(5)]
    assert models == expected
    assert all(type(model) is bytes for model in models)
    assert base == bytes(range(12))


def test_values_that_do_not_fill_the_slots_are_refused_and_the_next_model_is_right():
    copy = ModelCopy(bytes(16), table_of(2))
    with pytest.raises(SlotTableError, match="sets 2 elements of bias; the values have 1"):
        copy.render(values_of(9, 1), 0)
    assert copy.render(values_of(3, 2), 0) == bytes(8) + b"\3\0\0\0" * 2


def test_a_resolution_without_a_signature_is_refused():
    copy = ModelCopy(bytes(12), table_of(1, {16: (), 24: ()}))
    with pytest.raises(UnknownResolutionError, match="resolution 32 px is not in this base file"):
        copy.render(replace(values_of(1, 1)), 32)


def test_threads_never_get_a_model_of_two_tasks():
    count = 50
    copy = ModelCopy(bytes(8 + 4 * count), table_of(count))
    mixed: list[object] = []

    def render(bias: int) -> None:
        for _ in range(100):
            found = np.frombuffer(copy.render(values_of(bias, count), 0), "<i4")[2:]
            copy.restock()
            if (found != bias).any():
                mixed.append(bias)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places as often as Python lets them
    try:
        threads = [threading.Thread(target=render, args=(bias,)) for bias in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not mixed
