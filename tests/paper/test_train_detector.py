"""The small detector of Table 3: its measure by hand, and that what is saved is what is opened."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from patchdeploy.patch import PatchConfig, find_sites

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "paper"))
from train_detector import (
    QUICK,
    Detection,
    DetectorConfig,
    average_precisions,
    open_detector_base,
    save_detector,
    train_detector,
)

LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
SHIFTED = [5.0, 0.0, 15.0, 10.0]  # 50 of 150 px of the union with LEFT: IoU 1/3
NEAR = [0.0, 0.0, 10.0, 20.0 / 3]  # two thirds of LEFT: IoU 2/3


def things(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detection:
    return Detection(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores))


def truth(*boxes: list[float], label: int = 0) -> Detection:
    return things(list(boxes), [label] * len(boxes), [1.0] * len(boxes))


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([LEFT, RIGHT], [0.9, 0.8], 1.0),
        ([NEAR, RIGHT], [0.9, 0.8], 1.0),
        ([LEFT], [0.9], 0.5),  # half of the boxes, all right
        ([SHIFTED], [0.9], 0.0),
        ([], [], 0.0),
        # Wrong, right, right: precisions 0, 1/2, 2/3 at recalls 0, 1/2, 1; made non-increasing 2/3.
        ([SHIFTED, LEFT, RIGHT], [0.9, 0.8, 0.7], 2 / 3),
        # A second claim of LEFT is wrong: right, wrong, right: 1/2 * 1 + 1/2 * 2/3.
        ([LEFT, NEAR, RIGHT], [0.9, 0.8, 0.7], 5 / 6),
        ([LEFT, RIGHT, SHIFTED], [0.9, 0.8, 0.1], 1.0),  # a late mistake costs nothing
    ],
)
def test_average_precision_is_the_area_that_is_worked_out_by_hand(
    boxes: list[list[float]], scores: list[float], expected: float
) -> None:
    found = things(boxes, [0] * len(boxes), scores)
    # A few additions in float64.
    assert average_precisions([found], [truth(LEFT, RIGHT)], 1)[0] == pytest.approx(
        expected, abs=1e-12
    )


def test_a_box_counts_for_its_own_class_and_image_only() -> None:
    truths = [truth(LEFT), truth(RIGHT, label=1)]
    swapped = [things([RIGHT], [1], [0.9]), things([LEFT], [0], [0.9])]
    assert average_precisions(swapped, truths, 2).tolist() == [0.0, 0.0]
    other_class = [things([LEFT], [1], [0.9]), things([RIGHT], [0], [0.9])]
    assert average_precisions(other_class, truths, 2).tolist() == [0.0, 0.0]
    right = [things([LEFT], [0], [0.9]), things([RIGHT], [1], [0.9])]
    precisions = average_precisions(right, truths, 3)
    assert precisions[:2].tolist() == [1.0, 1.0]
    assert np.isnan(precisions[2])  # a class of no box has no precision


def test_a_trained_detector_is_opened_as_the_base_of_its_features(tmp_path: Path) -> None:
    config = replace(QUICK, scenes=8, held_scenes=2, epochs=1, batch_size=4, size_px=64)
    detector, facts = train_detector(config)
    assert len(facts["epoch_losses"]) == 1
    assert len(facts["classes"]) == 10
    save_detector(tmp_path, detector, facts)
    base = open_detector_base(tmp_path)
    assert len(find_sites(base, PatchConfig()).norms) == 52
    assert base.preprocessing.input_size == 64
    state = detector.backbone.features.state_dict()  # type: ignore[union-attr]
    kernel = base.module.get_submodule("features.0.0.0").weight
    assert torch.equal(kernel, state["0.0.0.weight"])  # type: ignore[arg-type]
    written = json.loads((tmp_path / "detector.json").read_text())
    assert DetectorConfig(**written["settings"]).size_px == 64


def test_a_folder_without_a_detector_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_detector_base(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no detector.json; it holds the detector that Table 3 starts from; run: "
        "python benchmarks/paper/train_detector.py"
    )
