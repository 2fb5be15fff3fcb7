"""The self-test of a patch: thumbnails enlarged in integers, scores compared as integers."""

from dataclasses import replace

import numpy as np
import pytest
import slow_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.errors import ConfigError, PatchRefusedError
from patchdeploy.patchfile.golden import Golden, check_golden, enlarge, golden_bytes, read_golden

RUNTIMES, SIDES, CLASSES = ("tflite", "onnx"), (24, 16), 5


def random_golden(images: int = 2, seed: int = 1, runtimes=RUNTIMES, sides=SIDES) -> Golden:
    rng = np.random.default_rng(seed)
    return Golden(
        rng.integers(0, 256, (images, 8, 8, 3), np.uint8),
        {
            name: {px: rng.integers(-128, 128, (images, CLASSES), np.int8) for px in sides}
            for name in runtimes
        },
        tolerance_lsb=3,
    )


# -- enlarge ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_thumbnails_are_enlarged_as_the_page_says(px, seed):
    thumbnails = np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 3), np.uint8)
    large = enlarge(thumbnails, px)
    assert large.shape == (2, px, px, 3)
    assert large.dtype == np.uint8
    for one, found in zip(thumbnails, large, strict=True):
        assert found.tobytes() == slow_decoder.enlarge(one.tobytes(), px)


@pytest.mark.parametrize("px", [2, 8, 15, 64, 96, 224, 4096])
def test_corners_are_exact_at_every_size(px):
    thumbnails = np.random.default_rng(2).integers(0, 256, (1, 8, 8, 3), np.uint8)
    large = enlarge(thumbnails, px)
    for i, a in ((0, 0), (-1, 7)):
        for j, b in ((0, 0), (-1, 7)):
            np.testing.assert_array_equal(large[0, i, j], thumbnails[0, a, b])


@pytest.mark.parametrize("px", [8, 15, 22, 225])
def test_pixels_that_lie_on_a_thumbnails_are_exact(px):
    thumbnails = np.random.default_rng(3).integers(0, 256, (1, 8, 8, 3), np.uint8)
    each = (px - 1) // 7
    assert each * 7 == px - 1
    np.testing.assert_array_equal(enlarge(thumbnails, px)[:, ::each, ::each], thumbnails)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_flat_thumbnail_stays_flat(value):
    flat = np.full((1, 8, 8, 3), value, np.uint8)
    assert (enlarge(flat, 61) == value).all()


def test_enlarging_follows_bilinear_interpolation_within_its_rounding():
    thumbnails = np.random.default_rng(4).integers(0, 256, (1, 8, 8, 3), np.uint8)
    px = 50
    at = np.arange(px) * 7 / (px - 1)
    low = np.minimum(at.astype(int), 6)
    part = at - low
    wide = thumbnails[0].astype(np.float64)
    rows = wide[low] * (1 - part)[:, None, None] + wide[low + 1] * part[:, None, None]
    both = rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]
    # A weight is cut to 1/256 along either axis, of a difference of at most 255; then half a level.
    assert np.abs(enlarge(thumbnails, px)[0] - both).max() <= 2 * 255 / 256 + 0.5


def test_images_are_enlarged_one_by_one_and_left_alone():
    thumbnails = np.random.default_rng(5).integers(0, 256, (3, 8, 8, 3), np.uint8)
    before = thumbnails.copy()
    large = enlarge(thumbnails, 20)
    np.testing.assert_array_equal(thumbnails, before)
    np.testing.assert_array_equal(large[1:2], enlarge(thumbnails[1:2], 20))


# -- compare ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0, 3, 254])
def test_a_difference_of_the_tolerance_passes_and_one_more_is_refused(tolerance):
    low = np.full((2, CLASSES), -128, np.int8)
    golden = replace(random_golden(), tolerance_lsb=tolerance, scores={"onnx": {16: low, 24: low}})
    for image, row in ((0, 0), (1, 4)):
        moved = low.astype(np.int32)
        moved[image, row] += tolerance
        measured = {24: low, 16: moved.astype(np.int8)}
        assert check_golden(golden, "onnx", measured, "it") == tolerance
        moved[image, row] += 1
        with pytest.raises(PatchRefusedError) as caught:
            check_golden(
                golden, "onnx", {24: low, 16: moved.astype(np.int8)}, "LiteRT 2 on 'birds'"
            )
        assert caught.value.code == "self_test"
        assert str(caught.value) == (
            f"patch refused (self_test): LiteRT 2 on 'birds' at 16 px is {tolerance + 1} LSB away; "
            f"it must be within {tolerance} LSB of the scores that travel with the patch; keep the "
            "patch that is active and pack this task again"
        )


def test_a_difference_of_255_does_not_wrap():
    low, high = np.full((1, 2), -128, np.int8), np.full((1, 2), 127, np.int8)
    golden = Golden(np.zeros((1, 8, 8, 3), np.uint8), {"onnx": {16: low}}, 254)
    with pytest.raises(PatchRefusedError, match="is 255 LSB away"):
        check_golden(golden, "onnx", {16: high}, "it")
    assert check_golden(replace(golden, tolerance_lsb=255), "onnx", {16: high}, "it") == 255


def test_each_runtime_and_resolution_is_compared_with_its_own_scores():
    golden = replace(random_golden(), tolerance_lsb=0)
    for name in RUNTIMES:
        assert check_golden(golden, name, golden.scores[name], "it") == 0
        assert check_golden(golden, name, {16: golden.scores[name][16]}, "it") == 0
    with pytest.raises(PatchRefusedError):
        check_golden(golden, "onnx", golden.scores["tflite"], "it")
    swapped = {24: golden.scores["onnx"][16], 16: golden.scores["onnx"][24]}
    with pytest.raises(PatchRefusedError):
        check_golden(golden, "onnx", swapped, "it")


@pytest.mark.parametrize("shape", [(1, CLASSES), (2, 1), (3, CLASSES), (2, CLASSES + 1)])
def test_scores_of_another_shape_are_refused_not_spread(shape):
    same = np.zeros((2, CLASSES), np.int8)
    golden = replace(random_golden(), scores={"onnx": {16: same}})
    with pytest.raises(PatchRefusedError) as caught:
        check_golden(golden, "onnx", {16: np.zeros(shape, np.int8)}, "it")
    assert str(caught.value) == (
        f"patch refused (self_test): scores of it at 16 px is {shape}; it must be (2, {CLASSES}): "
        "one for each image and class; keep the patch that is active and pack this task again"
    )


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2, 8])
def test_a_self_test_survives_its_bytes(images):
    golden = random_golden(images)
    data = golden_bytes(golden, RUNTIMES, SIDES, CLASSES)
    found = read_golden(data, RUNTIMES, SIDES, CLASSES)
    assert found.tolerance_lsb == golden.tolerance_lsb
    np.testing.assert_array_equal(found.thumbnails, golden.thumbnails)
    assert list(found.scores) == sorted(RUNTIMES)
    for name in RUNTIMES:
        assert list(found.scores[name]) == list(SIDES)
        for px in SIDES:
            np.testing.assert_array_equal(found.scores[name][px], golden.scores[name][px])


def test_bytes_are_those_of_the_page():
    golden = random_golden(1)
    data = golden_bytes(golden, RUNTIMES, SIDES, CLASSES)
    ordered = [golden.scores[name][px] for name in ("onnx", "tflite") for px in SIDES]
    scores = b"".join(one.tobytes() for one in ordered)
    assert data == b"\1\3" + golden.thumbnails.tobytes() + scores


def test_no_self_test_is_two_zeros():
    assert golden_bytes(None, RUNTIMES, SIDES, CLASSES) == b"\0\0"
    assert read_golden(b"\0\0", RUNTIMES, SIDES, CLASSES) is None


def changes() -> dict[str, Golden]:
    good = random_golden()
    scores = {name: dict(by_side) for name, by_side in good.scores.items()}
    wide = {
        name: {px: one.astype(np.int16) for px, one in by.items()} for name, by in scores.items()
    }
    return {
        "no image": random_golden(0),
        "nine images": random_golden(9),
        "another side": replace(good, thumbnails=np.zeros((2, 8, 9, 3), np.uint8)),
        "floats": replace(good, thumbnails=good.thumbnails.astype(np.float32)),
        "a runtime missing": replace(good, scores={"onnx": scores["onnx"]}),
        "a runtime too many": replace(good, scores={**scores, "coreml": scores["onnx"]}),
        "a resolution missing": random_golden(sides=(24,)),
        "a resolution too many": random_golden(sides=(24, 16, 12)),
        "an image too many": replace(good, thumbnails=np.zeros((3, 8, 8, 3), np.uint8)),
        "wide scores": replace(good, scores=wide),
        "tolerance -1": replace(good, tolerance_lsb=-1),
        "tolerance 256": replace(good, tolerance_lsb=256),
    }


CHANGES = changes()


@pytest.mark.parametrize("name", CHANGES)
def test_a_self_test_that_does_not_fit_the_patch_is_refused_when_packed(name):
    golden = CHANGES[name]
    with pytest.raises(ConfigError) as caught:
        golden_bytes(golden, RUNTIMES, SIDES, CLASSES)
    assert str(caught.value) == (
        f"golden inputs {golden.thumbnails.shape} with scores of {sorted(golden.scores)}; they "
        "must be 1 to 8 thumbnails [n, 8, 8, 3] with scores [n, 5] of ['onnx', 'tflite'] at [16, "
        "24] px; make them with GoldenInputs"
    )
    golden_bytes(random_golden(), RUNTIMES, SIDES, CLASSES)  # the others' own fault
