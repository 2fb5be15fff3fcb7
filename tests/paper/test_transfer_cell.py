"""A cell whose run failed: chance where the loss was not finite, no cell for any other reason."""

import pytest
import transfer_cell
from transfer_cell import measure_transfer

from patchdeploy.errors import TrainingError

SETTINGS = {
    "network": "embedded",
    "dataset": "optical_digits",
    "images": 64,
    "tests": 20,
    "px": 32,
    "epochs": 1,
    "batch": 16,
    "kinds": ["scale_bias", "head"],
    "statistics": "frozen",
    "rate": 3e38,
}


def test_a_loss_that_is_not_finite_counts_as_chance_and_says_so():
    found = measure_transfer(SETTINGS, 0)
    assert (found["test_top1"], found["validation_top1"], found["parameters"]) == (0.1, 0.1, 0)
    assert found["test_images"] == 20
    assert found["failed"].startswith("counted as chance, one in 10: optical_digits@32: the loss")


def test_any_other_reason_stops_the_cell(monkeypatch):
    def stop(*arguments):
        raise TrainingError("another rank has stopped")

    monkeypatch.setattr(transfer_cell, "_train", stop)
    with pytest.raises(TrainingError, match="another rank has stopped"):
        measure_transfer(SETTINGS, 0)
