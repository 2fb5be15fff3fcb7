"""A run at several learning rates: compared on validation, gone on with; the best is tested."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from joint_cases import digits, odd_or_even, small_base

from patchdeploy.errors import ConfigError, TrainingError
from patchdeploy.patch import Patch
from patchdeploy.training import TrainConfig, run_sweep
from patchdeploy.training.run_config import RunConfig, TaskConfig
from patchdeploy.training.run_folder import check_run_folder, make_run_folder
from patchdeploy.training.run_methods import Job, TaskData
from patchdeploy.training.run_sweep import mean_top1, rate_folder, sweep_job
from patchdeploy.training.sweep import SweepConfig
from patchdeploy.training.workers import SINGLE, Workers

RATES = (1e-5, 0.02, 3e38)
SHORT = TrainConfig(epochs=2, batch_size=16, device="cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def make_job(folder: Path, *, resume: bool = False, workers: Workers = SINGLE) -> Job:
    """Two tasks, each on its own, over a tiny network; one has images to test with."""
    (train, held), (other, other_held) = digits(), odd_or_even()
    names = ("digits", "parity")
    configs = [TaskConfig(name, "in memory") for name in names]
    config = RunConfig(
        "transfer",
        out=str(folder),
        resolutions=(16,),
        training=SHORT,
        sweep=SweepConfig(RATES),
        tasks=tuple(configs),
    )
    tasks = (
        TaskData(configs[0], train, held, held.subset(range(0, 48, 2))),
        TaskData(configs[1], other, other_held, None),
    )
    return Job(config, small_base(), tasks, workers, folder, resume, quiet=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(folder, summary) of a sweep that ran to its end."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    return folder, dict(sweep_job(make_job(folder)))


def test_the_best_rate_is_kept_and_tested_once(swept: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = swept
    found = summary["sweep"]
    assert [one["rate"] for one in found["results"]] == list(RATES)
    assert (found["best_rate"], found["at_edge"]) == (0.02, False)
    small, best, large = found["results"]
    assert best["validation_top1"] > small["validation_top1"]
    assert "the loss is" in large["failed"]
    # A mean of two tasks, each rounded to four digits.
    assert mean_top1(summary) == pytest.approx(best["validation_top1"], abs=1e-12)
    assert summary["tasks"]["digits"]["test_images"] == 24
    assert "test_top1" not in summary["tasks"]["parity"]
    for name, report in summary["tasks"].items():
        assert report["patch"] == f"rate-0.02/patches/{name}"
        assert (
            Patch.from_pretrained(folder / report["patch"]).metrics["validation_top1"]
            == (report["validation_top1"])
        )
    document = json.loads((folder / "sweep.json").read_text())
    assert document["results"] == found["results"]
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_test_images_are_not_looked_at_while_rates_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float | None, bool]] = []

    def method(job: Job) -> dict[str, Any]:
        seen.append((job.config.training.learning_rate, any(one.test for one in job.tasks)))
        rate = job.config.training.learning_rate or 0.0
        return {"tasks": {"digits": {"validation_top1": {"16": min(rate, 0.5)}}}}

    monkeypatch.setattr(run_sweep, "METHODS", {"transfer": method})
    sweep_job(make_job(tmp_path / "run"))
    assert seen == [(1e-5, False), (0.02, False), (3e38, False), (3e38, True)]


def test_a_sweep_goes_on_with_the_rates_that_are_missing(
    swept: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, summary = swept
    lines = (folder / rate_folder(0.02) / "digits" / "metrics.jsonl").read_text()
    job = make_job(folder, resume=True)
    assert sweep_job(job) == summary
    wider = replace(job, config=replace(job.config, sweep=SweepConfig((1e-5, 0.02, 0.05))))
    found = sweep_job(wider)["sweep"]
    assert found["results"][:2] == summary["sweep"]["results"][:2]
    assert found["results"][2]["rate"] == 0.05
    assert (folder / rate_folder(0.02) / "digits" / "metrics.jsonl").read_text() == lines


def test_a_run_that_stops_for_another_reason_stops_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def method(job: Job) -> dict[str, Any]:
        raise TrainingError("a rank stopped")

    monkeypatch.setattr(run_sweep, "METHODS", {"transfer": method})
    with pytest.raises(TrainingError, match="a rank stopped"):
        sweep_job(make_job(tmp_path / "run"))


def test_only_the_first_rank_writes_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def method(job: Job) -> dict[str, Any]:
        return {"tasks": {"digits": {"validation_top1": {"16": 0.5}}}}

    monkeypatch.setattr(run_sweep, "METHODS", {"transfer": method})
    found = sweep_job(make_job(tmp_path / "run", workers=Workers(1, 2)))
    assert found["sweep"]["best_rate"] == 1e-5
    assert not (tmp_path / "run").exists()


def test_resume_may_try_other_rates_but_makes_no_sweep_of_another_run(tmp_path: Path) -> None:
    config = make_job(tmp_path / "run").config
    folder = make_run_folder(config)
    (folder / "metrics.jsonl").write_text("{}\n")
    check_run_folder(replace(config, sweep=SweepConfig((0.1, 0.2))), True)
    with pytest.raises(ConfigError) as caught:
        check_run_folder(replace(config, sweep=SweepConfig()), True)
    assert str(caught.value) == (
        f"{folder} holds a run with sweep.rates = {RATES}, not (); --resume goes on with the same "
        "settings; use them, or name another folder with --out"
    )
