"""A run of a handful of steps is told so before it begins."""

import pytest
from joint_cases import digits, small_base

from patchdeploy.training import TrainConfig, train_patch

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


def test_a_run_of_few_steps_gets_a_hint_and_a_longer_one_none(
    capfd: pytest.CaptureFixture[str],
) -> None:
    train, held = digits()
    few = TrainConfig(epochs=2, batch_size=len(train), device="cpu")
    name = f"{train.name}@16"
    train_patch(small_base(), train, few, resolutions=[16], validation=held)
    shown = capfd.readouterr().err
    assert shown.startswith(
        f"hint: {name}: 2 optimiser steps in this run (epochs = 2, {len(train)} training images, "
        f"batch_size = {len(train)}); a patch wants a few hundred; at least epochs = 20 or "
        f"batch_size = {2 * len(train) // 20} would help\n"
    )
    train_patch(small_base(), train, few, resolutions=[16], validation=held, quiet=True)
    many = TrainConfig(epochs=2, batch_size=3, device="cpu")
    train_patch(small_base(), train, many, resolutions=[16], validation=held)
    assert "hint" not in capfd.readouterr().err
