"""The report of branches that no test reaches."""

import pytest
from branches import missed_lines

ROWS = """patchdeploy.patchkit.json.Reader 7 1 2
patchdeploy.patchkit.json.Reader 8 0 4
patchdeploy.patchkit.json.ReaderTest 9 1 2
patchdeploy.patchkit.engine.Engine 3 1 2
"""


def test_lines_of_the_readers_are_named_and_neither_tests_nor_other_packages(tmp_path):
    for name in ("json/Reader", "engine/Engine"):
        path = tmp_path / f"patchdeploy/patchkit/{name}.class"
        path.parent.mkdir(parents=True)
        path.touch()
    assert missed_lines(ROWS, tmp_path) == ["patchdeploy.patchkit.json.Reader:7, 1 of 2 branches"]


def test_an_empty_report_is_no_success(tmp_path):
    with pytest.raises(SystemExit, match="nothing of"):
        missed_lines("", tmp_path)
