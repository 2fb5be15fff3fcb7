"""The harness: results are kept, a stopped run goes on, a row that fails is told."""

import json

import pytest
import rows
from case_folders import ROOT
from faults_page import make_page
from rows import ROWS, Row
from run_faults import main, source_sha256
from tried import Told, Verdicts


def attempt(scale, folder, progress):
    progress(1.0)
    (folder / "scratch").write_bytes(b"")
    return Told("one thing", "it held", 1)


def fail(scale, folder, progress):
    raise AssertionError("this was taken")


@pytest.fixture
def one_row(monkeypatch):
    def use(function):
        monkeypatch.setattr(rows, "ROWS", (Row(1, "a fault", "an error", (("part", function),)),))

    return use


def test_a_row_that_held_is_written_and_not_tried_again(one_row, tmp_path, capsys):
    one_row(attempt)
    assert main(["--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "row-01-part.json").read_text())
    assert (result["result"], result["tried"], result["count"]) == ("held", "one thing", 1)
    assert "held: it held" in capsys.readouterr().out
    one_row(fail)
    assert main(["--out", str(tmp_path)]) == 0
    assert "held before" in capsys.readouterr().out
    assert main(["--out", str(tmp_path), "--again"]) == 1


def test_a_row_that_fails_ends_in_status_1_and_is_tried_again(one_row, tmp_path, capsys):
    one_row(fail)
    assert main(["--out", str(tmp_path), "--rows", "1"]) == 1
    assert "AssertionError: this was taken" in capsys.readouterr().out
    one_row(attempt)
    assert main(["--out", str(tmp_path)]) == 0


def test_a_short_run_does_not_stand_for_a_long_one(one_row, tmp_path):
    one_row(attempt)
    assert main(["--out", str(tmp_path), "--scale", "0.1"]) == 0
    one_row(fail)
    assert main(["--out", str(tmp_path), "--scale", "0.05"]) == 0
    assert main(["--out", str(tmp_path)]) == 1


def test_a_row_of_other_sources_is_tried_again(one_row, tmp_path):
    one_row(attempt)
    assert main(["--out", str(tmp_path)]) == 0
    path = tmp_path / "row-01-part.json"
    path.write_text(path.read_text().replace(source_sha256(rows.ROWS[0]), "0" * 64))
    one_row(fail)
    assert main(["--out", str(tmp_path)]) == 1


def test_a_row_of_another_machine_is_tried_again(one_row, tmp_path):
    one_row(attempt)
    assert main(["--out", str(tmp_path)]) == 0
    path = tmp_path / "row-01-part.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"device": "another machine"}))
    one_row(fail)
    assert main(["--out", str(tmp_path)]) == 1


def test_every_row_names_sources_that_exist():
    for row in ROWS:
        for pattern in row.sources:
            assert list((ROOT / "patchdeploy").glob(pattern)), (row.number, pattern)


def test_rows_that_were_not_asked_for_are_not_tried(one_row, tmp_path):
    one_row(fail)
    assert main(["--out", str(tmp_path), "--rows", "2,3"]) == 0
    assert not list(tmp_path.iterdir())


def test_the_page_has_every_row_and_says_what_was_not_run():
    result = {
        "row": 9,
        "scale": 0.5,
        "result": "held",
        "tried": "a | b",
        "held": "values 3",
        "count": 1234,
        "seconds": 1.5,
        "date": "2026-01-01",
        "device": "a machine",
        "versions": {"python": "3.11"},
        "source_sha256": "another",
    }
    page = make_page({"row-09-values": result}, [], source_sha256)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert sum("| not run |" in line for line in lines) == sum(
        len(row.parts) for row in ROWS if row.number not in (9, 21)
    )
    assert (
        "| 9 | NaN, infinity, zero or negative scale, int8 -128 | typed error | a / b | 1,234 | "
        "values 3 | 1.5 | held (scale 0.5) |"
    ) in lines
    assert "Rows 9 ran on an earlier state of the sources." in page
    assert "- Rows 9: 2026-01-01, a machine; python 3.11." in page


def test_a_verdict_that_is_not_the_one_expected_fails_with_its_case():
    seen = Verdicts()
    seen.expect("base", {"base", "ok"}, "a case")
    with pytest.raises(AssertionError, match="another case: verdict ok, not base"):
        seen.expect("ok", "base", "another case")
    assert (seen.count, seen.listed()) == (1, "base 1")
