"""Decoded patches stay in memory within a budget, and what is kept is what was read."""

import numpy as np
import pytest
from bundle_cases import make_bundle
from graph_cases import random_images

from patchdeploy.bundle import Bundle
from patchdeploy.runtime import Engine
from patchdeploy.runtime.engine import PATCH_BUDGET_BYTES
from patchdeploy.runtime.patches import Patches, value_bytes
from patchdeploy.slots import PatchValues


def values_of(rows: int) -> PatchValues:
    """``rows`` * 8 + 5 bytes."""
    return PatchValues(
        np.ones(rows, np.float32),
        np.ones(rows, np.int32),
        np.ones(1, np.float32),
        np.ones(1, np.int8),
        np.empty(0, np.int8),
    )


def test_a_patch_is_read_once_and_the_least_recently_used_goes_first():
    patches = Patches(budget_bytes=3 * 85)
    read: list[str] = []

    def get(task: str) -> PatchValues:
        return patches.get((task, 1), lambda: read.append(task) or values_of(10))

    for task in ("a", "b", "c", "a", "d", "a", "c", "b"):
        get(task)
    assert read == ["a", "b", "c", "d", "b"]
    assert patches.held_bytes == 3 * 85
    patches.clear()
    assert patches.held_bytes == 0
    get("a")
    assert read[-1] == "a"


def test_a_patch_larger_than_the_budget_is_not_kept_and_drives_no_other_out():
    patches = Patches(budget_bytes=100)
    assert value_bytes(values_of(10)) == 85
    small = patches.get(("small", 1), lambda: values_of(10))
    first = patches.get(("large", 1), lambda: values_of(12))
    assert patches.get(("large", 1), lambda: values_of(12)) is not first
    assert patches.get(("small", 1), lambda: values_of(10)) is small


def test_a_read_that_fails_is_raised_and_leaves_nothing():
    patches = Patches(budget_bytes=1000)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            patches.get(("a", 1), lambda: 1 // 0)
    assert patches.held_bytes == 0


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_a_task_comes_back_from_memory_or_with_no_budget_is_decoded_again(
    tmp_path, monkeypatch, runtime
):
    bundle = make_bundle(tmp_path / "b")
    decoded = []

    def decode(self, task, resolution):
        decoded.append((task, resolution))
        return real(self, task, resolution)

    real = Bundle.checked_patch
    monkeypatch.setattr(Bundle, "checked_patch", decode)
    images = {px: random_images(2, px) for px in (16, 24)}
    for budget, again in ((PATCH_BUDGET_BYTES, []), (0, [("first", 24)])):
        with Engine.open(bundle, runtime, patch_budget_bytes=budget) as engine:
            expected = engine.logits(images[24], "first", 24)
            engine.evict("first", 24)
            decoded.clear()
            assert np.array_equal(engine.logits(images[24], "first", 24), expected)
            assert decoded == again
            engine.logits(images[16], "first", 16)  # another resolution was not decoded before
            assert decoded[-1] == ("first", 16)
