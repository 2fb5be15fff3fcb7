"""Cells are kept as soon as they are done, run once, and leave no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cell_cases import (
    NAME,
    measure_beside_another_run,
    measure_failing,
    measure_seed,
    measure_waiting,
    read_log,
    trial_cells,
)
from cells import Cell, results_path, run_cells

PATIENCE_S = 60  # a process starts in 1 to 2 s; a hang must still end


def kept_seeds() -> list[int]:
    path = results_path(NAME, quick=True)
    records = json.loads(path.read_text())["cells"].values() if path.exists() else []
    return sorted(record["seed"] for record in records)


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Also false for a process that has ended and that nobody has asked about."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Where cells say that they ran; results are kept below the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "log"


def test_what_is_there_is_not_run_again_and_other_settings_are_another_cell(log):
    first = run_cells(NAME, trial_cells(log, 2), measure_seed, jobs=1, quick=True)
    assert [record["test_top1"] for record in first.values()] == [0.0, 0.1]
    more = run_cells(NAME, trial_cells(log, 3), measure_seed, jobs=1, quick=True)
    assert read_log(log) == [0, 1, 2]
    assert {key: more[key] for key in first} == first
    other = run_cells(NAME, trial_cells(log, 1, rate=0.1), measure_seed, jobs=1, quick=True)
    assert read_log(log) == [0, 1, 2, 0]
    assert len(other) == 1
    assert kept_seeds() == [0, 0, 1, 2]


def test_a_record_says_where_it_stands_what_it_was_told_and_how_long_it_took(log):
    cells = trial_cells(log, 1, rate=0.1)
    (record,) = run_cells(NAME, cells, measure_seed, jobs=1, quick=True).values()
    assert record.pop("seconds") >= 0
    assert record == {
        "row": "row",
        "column": "column",
        "seed": 0,
        "settings": {"log": str(log), "rate": 0.1},
        "test_top1": 0.0,
    }


def test_the_order_of_settings_makes_no_other_cell():
    one = Cell("row", "column", 0, {"px": 32, "rate": 0.1})
    assert one.key == Cell("row", "column", 0, {"rate": 0.1, "px": 32}).key
    assert one.key != Cell("row", "column", 0, {"rate": 0.2, "px": 32}).key


def test_seeds_are_run_one_after_the_other_so_that_a_stop_leaves_whole_tables(log):
    seeds = (1, 0, 1, 0)
    cells = [Cell(f"row {k}", "column", seed, {"log": str(log)}) for k, seed in enumerate(seeds)]
    records = run_cells(NAME, cells, measure_seed, jobs=1, quick=True)
    assert read_log(log) == [0, 0, 1, 1]
    assert [record["row"] for record in records.values()] == [cell.row for cell in cells]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_or_ctrl_c_loses_only_the_running_cell_and_ends_its_process(log, number):
    program = Path(__file__).with_name("cell_cases.py")
    with Path("errors").open("w") as errors:
        parent = subprocess.Popen(
            [sys.executable, program, log], stdout=subprocess.DEVNULL, stderr=errors
        )
    try:
        pid_file = log.with_suffix(".pid")
        wait_until(lambda: pid_file.exists() and pid_file.read_text())
        wait_until(lambda: kept_seeds() == [0, 1])
        assert is_running(int(pid_file.read_text()))
        parent.send_signal(number)
        assert parent.wait(PATIENCE_S) != 0
    finally:
        parent.kill()
    wait_until(lambda: not is_running(int(pid_file.read_text())))
    assert kept_seeds() == [0, 1]

    log.with_suffix(".go").touch()
    run_cells(NAME, trial_cells(log), measure_waiting, jobs=1, quick=True)
    assert read_log(log) == [0, 1, 2, 2]
    assert kept_seeds() == [0, 1, 2]


def test_an_error_names_its_cell_and_ends_the_run_with_the_cells_before_it_kept(log):
    cells = trial_cells(log, 4)
    with pytest.raises(ValueError, match="this seed") as caught:
        run_cells(NAME, cells, measure_failing, jobs=1, quick=True)
    assert str(caught.value) == "this seed cannot be measured"
    assert caught.value.__notes__ == [
        f"in {NAME}, cell {cells[1].key}; the cells before it are kept"
    ]
    assert kept_seeds() == [0]
    # The next cell may have begun before the end reached it; it was not waited for.
    assert read_log(log) in ([0, 1], [0, 1, 2])


def test_cells_that_another_run_keeps_meanwhile_are_not_lost(log):
    cells = trial_cells(log, 1)
    run_cells(NAME, cells, measure_beside_another_run, jobs=1, quick=True)
    kept = json.loads(results_path(NAME, quick=True).read_text())["cells"]
    assert set(kept) == {"another run's 0", cells[0].key}


def test_a_run_that_another_table_has_in_the_same_place_is_copied_from_there(log):
    run_cells("other", trial_cells(log, 2), measure_seed, jobs=1, quick=True)
    assert read_log(log) == [0, 1]
    mine = [
        Cell(f"mine {cell.seed}", cell.column, cell.seed, cell.settings)
        for cell in trial_cells(log, 3)
    ]
    elsewhere = [Cell("row", "another column", 0, mine[0].settings)]
    elsewhere += trial_cells(log, 1, rate=0.1)
    records = run_cells(
        NAME, [*mine, *elsewhere], measure_seed, jobs=1, quick=True, alike=["none", "other"]
    )
    assert read_log(log)[2:] == [0, 0, 2]  # by seed; seeds 0 and 1 of ``mine`` were copied
    for cell in mine:
        record = records[cell.key]
        assert (record["row"], record["test_top1"]) == (cell.row, cell.seed / 10)
        assert record.get("copied_from") == ("other" if cell.seed < 2 else None)
    assert records[mine[0].key]["seconds"] == 0.0
    again = run_cells(NAME, mine, measure_seed, jobs=1, quick=True)
    assert again == {cell.key: records[cell.key] for cell in mine}
    assert len(read_log(log)) == 5


def test_quick_cells_stay_out_of_the_results(log):
    assert results_path(NAME, quick=True) == Path("out/paper/trial.quick.json")
    assert results_path(NAME, quick=False).parts[-4:] == (
        "benchmarks",
        "paper",
        "results",
        "trial.json",
    )


def test_cells_run_in_processes_of_their_own(log):
    log.with_suffix(".go").touch()
    cells = [Cell("row", "column", 2, {"log": str(log)})]
    run_cells(NAME, cells, measure_waiting, jobs=1, quick=True)
    assert int(log.with_suffix(".pid").read_text()) != os.getpid()
