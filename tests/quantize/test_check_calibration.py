"""Calibration images that show no ranges are refused, few are said, constant values are named."""

import logging

import numpy as np
import pytest
from graph_cases import GRAPH_CASES, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchdeploy.errors import ThinCalibrationError
from patchdeploy.fold import fold_patch
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.check_calibration import check_pictures, check_ranges, count_pictures

PX = 8


def flat(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.full((PX, PX, 3), colour, np.uint8) for colour in colours])


REAL = random_images(40, PX)
THIN = {
    "black": flat((0, 0, 0)),
    "many colours, each picture of one": flat((0, 0, 0), (255, 255, 255), (9, 200, 31)),
    "one picture": REAL[:1],
    "one picture, thirty times": np.repeat(REAL[:1], 30, axis=0),
    "one picture among flat ones": np.concatenate([flat((3, 3, 3), (9, 9, 9)), REAL[:1]]),
}


@pytest.mark.parametrize("name", THIN)
def test_pictures_that_show_no_ranges_are_refused(name):
    count = len(THIN[name])
    pictures = 0 if "one picture" not in name else 1
    with pytest.raises(ThinCalibrationError) as caught:
        check_pictures("digits", THIN[name])
    assert str(caught.value) == (
        f"task 'digits': {count} calibration images hold {pictures} different pictures, those of a "
        "single colour not counted; activation ranges come from them and need at least 2 (64 to "
        "512 are usual); pass the task's training images"
    )


def test_a_few_pictures_are_said_and_enough_are_not(caplog):
    with caplog.at_level(logging.WARNING, "patchdeploy.export"):
        check_pictures("digits", REAL[:32])
        assert not caplog.messages
        check_pictures("digits", np.concatenate([REAL[:31], REAL[:31]]))
    assert caplog.messages == [
        "task 'digits': 31 different calibration images; ranges from fewer than 32 may cut what "
        "other images reach (64 to 512 are usual)"
    ]


@given(arrays(np.uint8, (5, 2, 2, 3), elements=st.integers(0, 1)))
@settings(max_examples=80, deadline=None)
def test_pictures_are_counted_as_sets_count_them(images):
    expected = {one.tobytes() for one in images if len(np.unique(one.reshape(-1, 3), axis=0)) > 1}
    assert count_pictures(images) == len(expected)


def test_values_that_never_change_are_named(caplog):
    graph = GRAPH_CASES["conv_stack"]()
    ranges = calibrate(fold_patch(graph), random_images(4, 16))
    with caplog.at_level(logging.WARNING, "patchdeploy.export"):
        check_ranges("digits", graph, ranges)
        assert not caplog.messages
        value = next(iter(graph.convolutions())).output
        check_ranges("digits", graph, {**ranges, value: (0.0, 0.0), graph.input: (1.0, 1.0)})
    assert caplog.messages == [
        f"task 'digits': 1 of {len(ranges)} values are the same at every point of every "
        f"calibration image ({value!r} first); if other images change them, they are cut; look at "
        "the patch, or pass more images"
    ]
