"""The probe of the number of classes: its cells, its joined task, what its note says of them."""

import classes_probe
import notes
import numpy as np
import pytest
from notes import BOTH, MANY_CLASSES, PATCH

from patchdeploy.base import Base
from patchdeploy.data import load_packaged
from patchdeploy.patch import PatchConfig, count_parameters


def test_all_sets_together_and_each_alone_take_the_same_number_of_steps():
    cells = classes_probe.list_cells(3)
    assert len({cell.key for cell in cells}) == len(cells) == 2 * 2 * (3 + 1) * 3
    for network, steps in (("imagenet", 3 * 1000 * 4), ("random", 3 * 1500 * 10)):
        own = [cell.settings for cell in cells if cell.row.startswith(f"{network}: ")]
        assert {len(one["dataset"]) * one["images"] * one["epochs"] for one in own} == {steps}
        assert {one["batch"] for one in own} == {32}


def test_joined_sets_keep_every_image_with_its_own_class():
    parts = [load_packaged(name)[1] for name in ("optical_digits", "surfaces")]
    joined = classes_probe.join(parts)
    assert joined.name == "optical_digits-surfaces"
    assert len(joined) == sum(map(len, parts))
    assert len(set(joined.classes)) == 20
    for part, start in ((parts[0], 0), (parts[1], len(parts[0]))):
        for k in (0, len(part) - 1):
            assert np.array_equal(joined.images[start + k], part.images[k])
            name = f"{part.name}/{part.classes[part.labels[k]]}"
            assert joined.classes[joined.labels[start + k]] == name


def test_a_cell_trains_and_tests_on_the_images_of_all_its_sets():
    settings = {
        "network": "embedded",
        "dataset": ["optical_digits", "surfaces"],
        "images": 60,
        "tests": 20,
        "px": 32,
        "epochs": 1,
        "batch": 16,
        "kinds": ["scale_bias", "head"],
        "statistics": "frozen",
        "rate": 0.01,
    }
    found = classes_probe.measure_classes(settings, 0)
    assert found["test_images"] == 2 * 20
    config = PatchConfig(("scale_bias", "head"))
    assert found["parameters"] == count_parameters(Base.embedded(), config, 10 + 10)["trained"]


def records(many, few):
    """Three seeds; a learned last layer is worth ``many`` and ``few`` (by seed) more."""
    found = {}
    for column, worth in ((MANY_CLASSES, many), ("digits", few), ("fashion", few)):
        for row, added in ((BOTH, worth), (PATCH, (0.0, 0.0, 0.0))):
            for seed in range(3):
                found[f"{row} {column} {seed}"] = {
                    "row": f"random: {row}",
                    "column": column,
                    "seed": seed,
                    "test_top1": 0.5 + added[seed],
                }
    return found


@pytest.mark.parametrize(
    ("many", "few", "said"),
    [
        ((0.10, 0.11, 0.12), (0.03, 0.04, 0.05), "+11.0 ± 1.0, with each alone, ten classes, and "
         "as many steps +4.0 ± 1.0, so more classes do ask more of it (+7.0 ± 0.0 between them"),
        ((0.03, 0.04, 0.05), (0.10, 0.11, 0.12), "so more classes do not ask more of it here"),
        ((0.10, 0.00, 0.05), (0.03, 0.04, 0.05), "which does not decide whether more classes"),
    ],
)  # fmt: skip
def test_the_note_says_what_the_gap_between_the_gaps_allows(monkeypatch, many, few, said):
    monkeypatch.setattr(notes, "read_probes", lambda name: records(many, few))
    assert said in notes.explain_classes("random")
    assert notes.explain_classes("imagenet") == "That this is the reason was not measured."
