"""Scenes with boxes: repeatable, tight, apart, and made of the objects that were given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.data import (
    ImageDataset,
    compose_scenes,
    load_packaged,
    load_photographs,
    scene_classes,
)
from patchdeploy.data.scenes import INSIDE, MOST_COVERED, PHOTOGRAPHS, _fit, covered_share
from patchdeploy.errors import ConfigError, DataError

BLACK = [np.zeros((40, 50, 3), np.uint8)]


def plates(name: str, light: int, backdrop: int, sides: tuple[int, int] = (10, 6)) -> ImageDataset:
    """Two classes, wide and high: a plate of one light on a backdrop of 28 x 28 px."""
    images = np.full((2, 28, 28, 3), backdrop, np.uint8)
    images[0, 5 : 5 + sides[1], 7 : 7 + sides[0]] = light
    images[1, 5 : 5 + sides[0], 7 : 7 + sides[1]] = light
    return ImageDataset(name, images, np.array([0, 1]), ("wide", "high"))


@pytest.fixture(scope="module")
def sources() -> list[ImageDataset]:
    return [load_packaged(name)[0] for name in ("fashion", "faces")]


def test_a_scene_depends_on_its_seed_and_index_alone(sources: list[ImageDataset]) -> None:
    longer, shorter = compose_scenes(6, 64, 3, sources), compose_scenes(4, 64, 3, sources)
    for one, other in zip(longer, shorter, strict=False):
        for value, again in zip(one, other, strict=True):
            np.testing.assert_array_equal(value, again)
    other_seed = compose_scenes(4, 64, 4, sources)
    assert not any(
        np.array_equal(a.image, b.image) for a, b in zip(shorter, other_seed, strict=True)
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size_px=st.integers(16, 120),
    objects=st.sampled_from([(1, 1), (1, 3), (2, 5)]),
)
def test_boxes_lie_inside_apart_and_have_the_types_of_a_detector(
    sources: list[ImageDataset], seed: int, size_px: int, objects: tuple[int, int]
) -> None:
    for image, boxes, labels in compose_scenes(3, size_px, seed, sources, objects=objects):
        assert (image.shape, image.dtype) == ((size_px, size_px, 3), np.uint8)
        assert (boxes.dtype, labels.dtype) == (np.float32, np.int64)
        assert boxes.shape == (len(labels), 4)
        assert 1 <= len(labels) <= objects[1]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= size_px).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (labels < len(scene_classes(sources))).all()
        for k, one in enumerate(boxes.tolist()):
            assert all(covered_share(one, other) <= MOST_COVERED for other in boxes[:k].tolist())


def test_a_box_is_tight_round_the_object_and_the_label_is_its_class() -> None:
    # On black photographs all light belongs to the object. Bilinear resizing blurs its edge; the
    # box counts what is at least half opaque, at most one pixel inside of any light at all.
    for image, boxes, labels in compose_scenes(
        40, 80, 0, [plates("x", 200, 0)], photographs=BLACK, objects=(1, 1)
    ):
        rows = np.flatnonzero(image.max(axis=(1, 2)) > 0)
        columns = np.flatnonzero(image.max(axis=(0, 2)) > 0)
        seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(seen - boxes[0]).max() <= 1
        wide, high = boxes[0, 2] - boxes[0, 0], boxes[0, 3] - boxes[0, 1]
        assert labels[0] == (0 if wide > high else 1)
        # 10 x 6 px keep their ratio; each rounded side is at most half a pixel off, and the box may
        # lose a blurred pixel at both ends.
        assert abs(min(wide, high) - 0.6 * max(wide, high)) <= 3
        assert 0.25 * 80 - 2.5 <= max(wide, high) <= 0.6 * 80 + 0.5


@pytest.mark.parametrize("side_px", [5, 12, 40])
def test_each_side_of_a_resized_object_touches_what_is_seen_of_it(side_px: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        cut = np.zeros((28, 28, 4), np.uint8)
        cut[8:20, 4:24, 3] = 255 * (generator.random((12, 20)) < 0.3)  # frayed at every edge
        cut[11:17, 8:20, 3] = 255
        fitted = _fit(cut, side_px)
        seen = fitted[..., 3] >= INSIDE
        assert all(edge.any() for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))
        assert max(fitted.shape[:2]) <= side_px


def test_a_dark_backdrop_is_cut_away_and_any_other_is_pasted_whole() -> None:
    behind = [np.full((40, 40, 3), (0, 0, 255), np.uint8)]
    for source, whole in ((plates("dark", 200, 0), False), (plates("grey", 200, 90), True)):
        for image, boxes, _ in compose_scenes(
            10, 64, 1, [source], photographs=behind, objects=(1, 1)
        ):
            left, top, right, bottom = boxes[0].astype(int)
            red = image[..., 0]
            outside = np.ones(red.shape, bool)
            outside[top:bottom, left:right] = False
            # Outside of the box is the photograph, but for a blurred edge of 1 px below half.
            assert np.count_nonzero(red[outside] > 100) == 0
            if whole:
                assert right - left == bottom - top  # 28 x 28 px, backdrop and all
                assert (np.abs(red[top:bottom, left:right].astype(int) - 90) <= 110).all()
                assert np.median(red[top:bottom, left:right]) == 90
            else:
                # The tint takes at most 60 % of 200; only the blurred rim is darker.
                inner = red[top + 2 : bottom - 2, left + 2 : right - 2]
                assert inner.min() >= 0.4 * 200 - 1


def test_labels_of_the_second_source_come_after_those_of_the_first() -> None:
    sets = [plates("bright", 250, 0), plates("grey", 200, 90)]
    assert scene_classes(sets) == ("bright/wide", "bright/high", "grey/wide", "grey/high")
    seen = set()
    for image, boxes, labels in compose_scenes(40, 64, 0, sets, photographs=BLACK, objects=(1, 1)):
        left, top, right, bottom = boxes[0].astype(int)
        has_backdrop = np.median(image[top:bottom, left:right, 0]) == 90
        assert has_backdrop == (labels[0] >= 2)
        seen.add(int(labels[0]))
    assert seen == {0, 1, 2, 3}


def test_photographs_to_test_on_share_no_column_with_those_to_train_on() -> None:
    train, test = load_photographs("train"), load_photographs("test")
    assert len(train) == len(test) == len(PHOTOGRAPHS)
    for left, right in zip(train, test, strict=True):
        assert left.shape[0] == right.shape[0]
        # 60 % and 30 % of one width, each rounded down to a whole pixel
        assert abs(left.shape[1] - 2 * right.shape[1]) <= 2
        assert left.std() > 10
        assert not np.array_equal(left[:, : right.shape[1]], right)
    with pytest.raises(ConfigError) as caught:
        load_photographs("both")  # type: ignore[arg-type]
    assert str(caught.value) == "photographs part='both'; it must be train or test; correct it"


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0),
        ((0, 0, 4, 4), (9, 9, 12, 12), 0.0),
        ((0, 0, 4, 4), (2, 2, 6, 6), 4 / 16),
        ((0, 0, 10, 10), (1, 1, 3, 3), 1.0),
        ((0, 0, 2, 8), (1, 0, 9, 2), 2 / 16),
    ],
)
def test_the_covered_share_is_of_the_smaller_box(one, other, share: float) -> None:
    assert covered_share(one, other) == covered_share(other, one) == share


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"count": -1}, "0 or more"),
        ({"size_px": 8}, "at least 16"),
        ({"objects": (0, 3)}, "least and most, from 1 up"),
        ({"objects": (3, 2)}, "least and most, from 1 up"),
        ({"side_fraction": (0.0, 0.5)}, "least and most, in (0, 1]"),
        ({"side_fraction": (0.5, 1.5)}, "least and most, in (0, 1]"),
    ],
)
def test_settings_out_of_range_are_config_errors(wrong: dict, rule: str) -> None:
    ((key, value),) = wrong.items()
    settings = {"count": 1, "size_px": 32, "seed": 0, "sources": [plates("x", 200, 0)], **wrong}
    with pytest.raises(ConfigError) as caught:
        compose_scenes(**settings)
    assert str(caught.value) == f"scenes {key}={value!r}; it must be {rule}; correct it"


def test_empty_sources_blank_images_and_no_photograph_are_refused() -> None:
    full = plates("x", 200, 0)
    for sources, empty in (([], 0), ([full, full.subset([])], 1)):
        with pytest.raises(DataError) as caught:
            compose_scenes(1, 32, 0, sources)
        assert str(caught.value) == (
            f"scenes from {len(sources)} sources, of which {empty} are empty; at least 1 source of "
            "images is needed, and each needs an image; pass data sets such as "
            'load_packaged("fashion")[0]'
        )
    with pytest.raises(DataError) as caught:
        compose_scenes(1, 32, 0, [plates("x", 0, 0)], photographs=BLACK, objects=(1, 1))
    assert str(caught.value) == (
        "no object was seen in 20 images of x; an object must be brighter than 32 of 255 in front "
        "of a dark backdrop; leave blank images out"
    )
    with pytest.raises(DataError) as caught:
        compose_scenes(1, 32, 0, [full], photographs=[])
    assert str(caught.value) == (
        "scenes before 0 photographs; at least 1 is needed; leave photographs out to take those "
        "that ship with scikit-image and scikit-learn"
    )
