"""What a run records: lines, curves, TensorBoard, and what a terminal or a log shows of it."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchdeploy.errors import StorageError
from patchdeploy.training.curves import (
    draw_curves,
    draw_sweep,
    read_metrics,
    write_curves,
    write_sweep,
)
from patchdeploy.training.loop import EpochRecord
from patchdeploy.training.records import open_recorder


def record(run: str, epoch: int, top1: float = 0.5, loss: float = 1.0) -> EpochRecord:
    return EpochRecord(run, epoch, loss, top1, 0.01 / epoch, 2.0, 480.0)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def lines(*records: EpochRecord) -> list[dict]:
    return [vars(one) for one in records]


@pytest.mark.parametrize("rate", [0.01, 1.0000000000000001e29, 1e300])
def test_a_run_of_one_epoch_is_drawn_without_a_warning(rate: float) -> None:
    """matplotlib finds the ends of an axis of such a rate alone equal."""
    line = {**vars(record("a", 1)), "learning_rate": rate}
    assert pixels(draw_curves([line])).std() > 0
    near = {**vars(record("b", 1)), "learning_rate": rate * (1 + 1e-15)}
    assert pixels(draw_curves([line, near])).std() > 0


def test_a_sweeps_curve_shows_each_rate_and_a_run_that_failed(tmp_path: Path) -> None:
    points = [(0.01, 0.5), (0.1, 0.7), (1.0, None)]
    png = draw_sweep(points)
    assert draw_sweep(points) == png
    for changed in ([(0.01, 0.5), (0.1, 0.9), (1.0, None)], [(0.01, 0.5), (0.1, 0.7)]):
        assert draw_sweep(changed) != png
    draw_sweep([(0.1, None)])  # a picture even where every run failed
    assert write_sweep(tmp_path, points)
    assert (tmp_path / "sweep.png").read_bytes() == png
    assert not write_sweep(tmp_path, [])


def test_curves_show_what_was_recorded_and_nothing_of_the_clock() -> None:
    some = lines(record("a", 1), record("a", 2, 0.7), record("b", 1, 0.2))
    png = draw_curves(some)
    height, width, _ = pixels(png).shape
    assert width > 2 * height  # three panels side by side
    assert draw_curves(some) == png
    for changed in (
        lines(record("a", 1), record("a", 2, 0.9), record("b", 1, 0.2)),
        lines(record("a", 1), record("a", 2, 0.7, 3.0), record("b", 1, 0.2)),
        lines(record("a", 1), record("a", 2, 0.7), record("c", 1, 0.2)),
    ):
        assert draw_curves(changed) != png


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_a_gap(loss: float) -> None:
    assert pixels(draw_curves(lines(record("a", 1), record("a", 2, loss=loss)))).std() > 0


def test_many_runs_have_a_legend_in_columns() -> None:
    one = pixels(draw_curves(lines(record("a", 1))))
    many = pixels(draw_curves(lines(*(record(f"task-{k}", 1) for k in range(45)))))
    assert many.shape[1] > one.shape[1]


def test_a_run_without_lines_has_no_curves(tmp_path: Path) -> None:
    assert not write_curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert not write_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()


# Each key of a record, and what a kill may leave of its line.
@given(st.integers(0, 200))
def test_half_a_line_is_passed_over(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    folder = tmp_path_factory.mktemp("half")
    whole = json.dumps(vars(record("a", 1)))
    (folder / "metrics.jsonl").write_text(f"{whole}\n{whole[: min(length, len(whole) - 1)]}")
    assert read_metrics(folder) == [json.loads(whole)]


def test_metrics_that_cannot_be_read_are_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError) as caught:
        read_metrics(tmp_path)
    assert str(caught.value) == (
        f"cannot read {tmp_path / 'metrics.jsonl'}: Is a directory; it must be a file that may be "
        "read; correct its rights"
    )


def test_lines_that_no_run_writes_are_passed_over_and_a_name_is_no_formula(tmp_path: Path) -> None:
    lines = [
        '{"run": "a$\\\\frac{$", "epoch": 1, "loss": 0.5}',
        '{"run": "a", "epoch": 1e999}',
        "5",
    ]
    lines += [
        '{"run": "a", "epoch": 1' + "0" * 5000 + "}",
        "[" * 50_000,
        '{"run": "a", "epoch": -1}',
    ]
    lines += ['{"run": "a", "epoch": 2, "loss": 1' + "0" * 400 + "}"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [one["epoch"] for one in read_metrics(tmp_path)] == [1, 2]
    assert write_curves(tmp_path)


def test_a_recorder_writes_lines_curves_and_tensorboard(tmp_path: Path) -> None:
    with open_recorder(2, tmp_path, quiet=True) as recorder:
        recorder.step(0.5, 32)
        recorder(record("a", 1))
        recorder(record("a", 2, 0.75))
    assert [one["validation_top1"] for one in read_metrics(tmp_path)] == [0.5, 0.75]
    assert (tmp_path / "curves.png").stat().st_size > 0
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    for tag in (b"a/loss", b"a/top1", b"a/learning_rate"):
        assert data.count(tag) == 2


def test_resume_keeps_lines_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    with open_recorder(2, tmp_path, quiet=True) as recorder:
        recorder(record("a", 1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"run": "a", "epo')
    with open_recorder(2, tmp_path, quiet=True, resume=True) as recorder:
        recorder(record("a", 1))  # killed between this line and its checkpoint
        recorder(record("a", 2))
    assert [one["epoch"] for one in read_metrics(tmp_path)] == [1, 2]
    with open_recorder(2, tmp_path, quiet=True) as recorder:
        recorder(record("a", 1))
    assert [one["epoch"] for one in read_metrics(tmp_path)] == [1]


def test_a_log_gets_a_line_an_epoch_and_quiet_gets_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_recorder(1, None) as recorder:
        recorder.step(0.5, 32)
        recorder(record("digits@32", 1))
    shown = capsys.readouterr()
    assert shown.err == "digits@32 epoch 1: loss 1.000, validation 50.0 %, 480 img/s\n"
    assert shown.out == ""
    with open_recorder(1, tmp_path, quiet=True) as recorder:
        recorder(record("digits@32", 1))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with open_recorder(2, None) as recorder:
        recorder(record("digits@32", 1))
    shown = capsys.readouterr().err
    assert "digits@32 epoch 1: loss 1.000, validation 50.0 %" in shown
    assert "480 img/s" in shown
    assert "left" in shown


def test_what_stops_a_run_is_not_hidden_by_a_disk_that_fills_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "curves.png").mkdir()  # a picture cannot be put there

    def stopped(error: BaseException | None) -> None:
        with open_recorder(2, tmp_path, quiet=True) as recorder:
            recorder(record("a", 1))
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        stopped(KeyboardInterrupt())
    with pytest.raises(StorageError, match=r"cannot write .*curves\.png"):
        stopped(None)
