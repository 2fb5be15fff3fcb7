import pytest
from planted_bugs import BUGS, Bug, prove_bug


def test_there_are_at_least_twelve_planted_bugs():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 12


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_the_proofs_notice_a_planted_bug(bug: Bug, tmp_path, monkeypatch):
    prove_bug(bug, tmp_path, monkeypatch)
