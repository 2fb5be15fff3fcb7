"""Views are read off the file: what a file says, and files that say nothing of the kind."""

from dataclasses import replace

import pytest
from graph_cases import make_case
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.convert import load_converter
from patchdeploy.errors import SlotTableError
from patchdeploy.slots import Edit, check_table, select_view
from patchdeploy.slots_views import check_views, find_views

SIDES = (16, 24, 32)
BASE, VARIANTS = make_case("residual", SIDES, share_head=True)
WRITTEN = load_converter("tflite").write(BASE, VARIANTS)


def test_the_view_of_a_resolution_leaves_its_signature_alone_in_reach():
    for px in SIDES:
        seen = find_views(bytes(select_view(bytearray(WRITTEN.data), WRITTEN.table, px)), [px])
        assert set(seen) == {px}  # of the file that is left, which has no other


@pytest.mark.parametrize("sides", [(), (16,), (16, 24), (16, 24, 40), (*SIDES, 48)])
def test_other_resolutions_than_the_files_own_are_refused(sides):
    with pytest.raises(SlotTableError, match="with a signature for each of"):
        find_views(WRITTEN.data, sides)


@pytest.mark.parametrize(
    "change",
    [
        lambda views: {16: views[24], 24: views[16], 32: views[32]},
        lambda views: {px: views[px] for px in (16, 24)},
        lambda views: {**views, 16: views[16][:-1]},
        lambda views: {**views, 16: (*views[16], Edit(0, 0))},
        lambda views: {**views, 16: (replace(views[16][0], value=2), *views[16][1:])},
    ],
)
def test_a_view_that_is_not_the_files_own_is_refused(change):
    check_views(WRITTEN.data, WRITTEN.table)
    table = replace(WRITTEN.table, views=change(WRITTEN.table.views))
    with pytest.raises(SlotTableError, match="another view of"):
        check_views(WRITTEN.data, table)


def test_the_order_of_the_words_of_a_view_does_not_matter():
    views = {px: tuple(reversed(edits)) for px, edits in WRITTEN.table.views.items()}
    check_views(WRITTEN.data, replace(WRITTEN.table, views=views))


@pytest.mark.parametrize("length", [0, 7, 8, 100])
def test_a_file_that_is_cut_before_its_signatures_is_refused(length):
    with pytest.raises(SlotTableError):
        find_views(WRITTEN.data[:length], SIDES)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WRITTEN.data) - 4), st.integers(0, 2**32 - 1))
def test_a_changed_word_gives_a_typed_error_or_views_of_the_same_resolutions(place, word):
    data = bytearray(WRITTEN.data)
    data[place : place + 4] = word.to_bytes(4, "little")
    try:
        views = find_views(bytes(data), SIDES)
    except SlotTableError:
        return
    assert tuple(views) == SIDES


def test_a_view_may_not_reach_into_a_slot():
    slot = WRITTEN.table.slots[0]
    views = {**WRITTEN.table.views, 16: (Edit(slot.offset_bytes + 1, 0),)}
    with pytest.raises(SlotTableError, match="outside of slots"):
        check_table(replace(WRITTEN.table, views=views))
    with pytest.raises(SlotTableError, match="a view of 40 px"):
        check_table(replace(WRITTEN.table, views={40: ()}))
