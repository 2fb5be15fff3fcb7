"""What tests of runs share."""

import pytest

from patchdeploy.training import records


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no pictures, which take longer than the runs of these tests."""
    monkeypatch.setattr(records, "write_curves", lambda folder: None)
