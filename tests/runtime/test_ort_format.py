"""The file that onnxruntime opens faster holds the same network, with slots at other places."""

import numpy as np
import onnxruntime
import pytest
from bundle_cases import make_bundle
from graph_cases import random_images
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.runtime.ort_format import find_ort_initializers, make_ort_model, move_table
from patchdeploy.slots import apply_values, check_table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    bundle = make_bundle(tmp_path_factory.mktemp("ort") / "b")
    base, table = bundle.base_file("onnx"), bundle.table("onnx")
    found = make_ort_model(onnxruntime, base, table)
    assert found is not None
    return bundle, base, table, *found


def scores(model: bytes, images) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(bytes(model), options, providers=providers)
    return session.run(None, {"image": images})[0]


def test_every_slot_is_in_the_new_file_with_the_bytes_of_the_old_one(made):
    _, base, table, model, moved = made
    check_table(moved)
    assert moved.base_bytes == len(model)
    old = {slot.name: slot for slot in table.slots}
    assert {slot.name for slot in moved.slots} == set(old)
    for slot in moved.slots:
        before = old[slot.name].offset_bytes
        assert model[slot.offset_bytes :][: slot.length_bytes] == base[before:][: slot.length_bytes]


def test_a_patch_gives_the_same_scores_in_both_files(made):
    bundle, base, table, model, moved = made
    for px in (16, 24):
        images = random_images(3, px)
        found = []
        for task in ("first", "second"):
            values = bundle.patch(task).values[px]
            expected = scores(apply_values(bytearray(base), table, {px: values}), images)
            found.append(scores(apply_values(bytearray(model), moved, {px: values}), images))
            assert np.array_equal(found[-1], expected)
        assert not np.array_equal(*found)


def test_slots_that_are_not_there_byte_for_byte_give_no_table(made):
    _, base, table, model, moved = made
    changed = bytearray(model)
    changed[moved.slots[-1].offset_bytes] ^= 1
    assert move_table(base, table, bytes(changed)) is None
    name = moved.slots[0].name.encode()
    assert move_table(base, table, model.replace(name, b"?" * len(name))) is None
    assert move_table(base, table, model) == moved


def test_a_model_that_onnxruntime_cannot_write_gives_none(made):
    assert make_ort_model(onnxruntime, b"no model", made[2]) is None


@given(st.data())
def test_a_cut_or_changed_file_is_never_read_outside_itself(made, data):
    _, base, table, model, moved = made
    cut = data.draw(st.integers(0, len(model) - 1))
    found = move_table(base, table, model[:cut])
    last = moved.slots[-1]
    assert found is None or cut >= last.offset_bytes + last.length_bytes
    place = data.draw(st.integers(0, len(model) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    changed = move_table(base, table, model[:place] + byte + model[place + 1 :])
    assert changed is None or changed.slots == moved.slots


def test_a_file_without_the_identifier_is_refused():
    with pytest.raises(ValueError, match=r"bytes 4 to 8 are b'efgh'; the format has b'ORTM'"):
        find_ort_initializers(b"abcdefghijkl")
