"""The Python of README.md runs as it stands there, in order, in one empty folder."""

import re
import shutil
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_examples_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = BLOCK.findall(README.read_text())
    assert len(blocks) == 2
    train, store = blocks
    assert "epochs=6" in train
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    # one epoch on a tenth of the images: what it learns is looked at elsewhere
    short = train.replace("epochs=6", "epochs=1").replace(
        'load_packaged("digits")',
        'map(lambda s: s.subset(range(0, len(s), 10)), load_packaged("digits"))',
    )
    exec(short, names)
    answer = capsys.readouterr().out
    assert re.fullmatch(r"\(\('\d', 0\.\d+\), \('\d', 0\.\d+\), \('\d', 0\.\d+\)\)\n", answer), (
        answer
    )
    shutil.copy("bundle/patches/digits.pdp", "digits.pdp")
    exec(store, names)
    with names["engine"] as engine:  # type: ignore[attr-defined]
        assert engine.tasks == ("digits",)
        assert names["store"].active()["digits"] == engine.versions["digits"]  # type: ignore[attr-defined]
