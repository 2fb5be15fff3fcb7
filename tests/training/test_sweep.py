"""A sweep over learning rates: finds the best on validation, goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from patchdeploy.base import Base
from patchdeploy.data import load_packaged
from patchdeploy.errors import ConfigError, FileFormatError, TrainingError
from patchdeploy.patch import PatchConfig
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.sweep import SWEEP_FILE, RateResult, SweepResult, sweep_rates

CONFIG = TrainConfig(epochs=2, batch_size=32, device="cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_sweep_over_real_runs_finds_that_a_rate_can_be_too_small_and_too_large() -> None:
    base = Base.embedded()
    images = load_packaged("optical_digits")[0].subset(range(0, 1196, 6))

    def train(config: TrainConfig) -> float:
        patch = train_patch(base, images, config, PatchConfig(), resolutions=[32], quiet=True)
        return float(patch.metrics["validation_top1"]["32"])

    found = sweep_rates(train, CONFIG, (1e-5, 2e-2, 1e30, 3e38))
    assert [one.rate for one in found.results] == [1e-5, 2e-2, 1e30, 3e38]
    assert found.best.rate == 2e-2
    assert not found.at_edge
    # 30 images are held out; guessing gets 3 right, spread 1.6: five of those.
    assert found.best.validation_top1 > (3 + 5 * 1.6) / 30
    assert "the loss of validation images is" in found.results[2].failed  # all are finite
    assert "the loss is" in found.results[3].failed


def test_between_equal_rates_the_smaller_one_is_best_and_an_edge_says_so() -> None:
    equal = SweepResult((RateResult(0.01, 0.5), RateResult(0.1, 0.5), RateResult(1.0, 0.2)))
    assert equal.best.rate == 0.01
    assert equal.at_edge
    with pytest.raises(TrainingError) as caught:
        _ = SweepResult((RateResult(0.01, 0.0, "no"), RateResult(0.1, 0.0, "no"))).best
    assert str(caught.value) == (
        "no rate of the sweep (0.01, 0.1) gave a finite loss; at least 1 must; sweep smaller rates"
    )


def test_a_sweep_that_was_stopped_runs_the_missing_rates_alone(tmp_path: Path) -> None:
    ran: list[float] = []

    def train(config: TrainConfig) -> float:
        assert config.learning_rate is not None
        ran.append(config.learning_rate)
        if config.learning_rate == 0.1 and len(ran) == 2:
            raise KeyboardInterrupt
        return config.learning_rate

    with pytest.raises(KeyboardInterrupt):
        sweep_rates(train, CONFIG, (0.01, 0.1, 0.5), run_dir=tmp_path)
    assert len(json.loads((tmp_path / SWEEP_FILE).read_text())["results"]) == 1
    found = sweep_rates(train, CONFIG, (0.01, 0.1, 0.5), run_dir=tmp_path, resume=True)
    assert ran == [0.01, 0.1, 0.1, 0.5]
    assert found.best == RateResult(0.5, 0.5)
    with pytest.raises(ConfigError) as caught:
        sweep_rates(train, replace(CONFIG, epochs=9), (0.01, 0.1), run_dir=tmp_path, resume=True)
    assert str(caught.value) == (
        f"{tmp_path / SWEEP_FILE} is of a sweep with other settings; resume needs the same; use "
        "them, or another folder"
    )
    (tmp_path / SWEEP_FILE).write_text("{")
    with pytest.raises(FileFormatError, match="cannot be read"):
        sweep_rates(train, CONFIG, (0.01, 0.1), run_dir=tmp_path, resume=True)


def test_a_run_that_stops_for_another_reason_stops_the_sweep(tmp_path: Path) -> None:
    def train(config: TrainConfig) -> float:
        raise TrainingError("another rank has stopped")

    with pytest.raises(TrainingError, match="another rank has stopped"):
        sweep_rates(train, CONFIG, (0.01, 0.1), run_dir=tmp_path)
    assert not (tmp_path / SWEEP_FILE).exists()


NOT_NUMBERS = (float("nan"), float("inf"))


@pytest.mark.parametrize("rates", [(), (0.1,), (0.0, 0.1), (-1.0, 1.0), NOT_NUMBERS])
def test_a_sweep_of_one_rate_or_of_none_above_zero_is_refused(rates: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_rates(lambda config: 0.0, CONFIG, rates)
    assert str(caught.value) == (
        f"sweep rates {list(rates)}; a sweep compares at least 2 positive rates; give for instance "
        "0.001, 0.01, 0.1"
    )
