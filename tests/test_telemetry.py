"""onnxruntime sends nothing: its telemetry is off before it is imported, whoever imports it.

Where telemetry starts, onnxruntime leaves an identifier of the machine and a database below
~/.cache: their absence is what is looked at, in processes with an empty home folder.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_cases import make_bundle

ROOT = Path(__file__).resolve().parent.parent
SWITCH = "ORT_DISABLE_TELEMETRY"
NO_WAY_OUT = {"https_proxy": "http://127.0.0.1:9", "SSL_CERT_FILE": os.devnull}
"""The one process that starts telemetry on purpose reaches nobody."""
SUPPRESSING = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_RUNNING_UNIT_TESTS")
"""Variables that keep onnxruntime quiet, too: a test must not pass because of them."""


def traces(home: Path, program: str, *arguments: object, value: str | None = None) -> list[str]:
    """What ``program`` leaves below an empty ``home``, with the switch at ``value`` or unset."""
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in (SWITCH, *SUPPRESSING)}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **NO_WAY_OUT}
    if value is not None:
        environment[SWITCH] = value
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return sorted(path.name for path in home.rglob("*") if path.is_file())


@pytest.fixture(scope="module", autouse=True)
def seen(tmp_path_factory):
    """Telemetry that is on leaves traces, or nothing would be shown by their absence."""
    home = tmp_path_factory.mktemp("on") / "home"
    found = traces(home, "import onnxruntime, os; os._exit(0)", value="0")
    if "deviceid" not in found:
        pytest.skip(f"this build of onnxruntime leaves no trace of telemetry, only {found}")


ENGINE = """
import sys
import numpy as np
from patchdeploy import Engine, verify_bundle
with Engine.open(sys.argv[1], "onnxruntime") as engine:
    engine.logits(np.zeros((1, 24, 24, 3), np.uint8), "first", 24)
assert verify_bundle(sys.argv[1]).ok
"""
CONVERTER = """
import patchdeploy_onnx, onnxruntime
patchdeploy_onnx.OnnxConverter()
"""


# A program that imports onnxruntime after the package, by itself.
IMPORT_AFTER = """
import sys, patchdeploy
assert "onnxruntime" not in sys.modules
import onnxruntime
"""


@pytest.mark.parametrize(
    ("program", "value"),
    [(ENGINE, None), (CONVERTER, None), (IMPORT_AFTER, None), (IMPORT_AFTER, "")],
    ids=["engine and verify", "converter", "imported after", "imported after, set to nothing"],
)
def test_nothing_that_loads_onnxruntime_leaves_a_trace_of_telemetry(tmp_path, program, value):
    make_bundle(tmp_path / "b")
    assert traces(tmp_path / "home", program, tmp_path / "b", value=value) == []


def test_who_has_switched_it_on_has_it_on(tmp_path):
    program = f"{IMPORT_AFTER}\nfrom patchdeploy.runtime.ort import load_onnxruntime\n"
    program += "load_onnxruntime()\nimport os; os._exit(0)"
    assert "deviceid" in traces(tmp_path / "home", program, value="0")


def test_the_tests_themselves_and_what_they_start_have_it_off():
    assert os.environ[SWITCH] == "1"


@pytest.mark.parametrize(
    ("value", "calls"),
    [(None, 1), ("1", 1), ("TRUE", 1), ("on", 1), ("0", 0), ("off", 0)],
)
def test_what_a_program_started_before_it_imported_patchdeploy_is_ended(monkeypatch, value, calls):
    """Unless it was switched on: onnxruntime takes "off" for that, too."""
    import onnxruntime

    from patchdeploy.runtime.ort import load_onnxruntime

    made = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: made.append("off"))
    monkeypatch.delenv(SWITCH)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    assert load_onnxruntime() is onnxruntime
    assert len(made) == calls


IMPORT = re.compile(r"^\s*(import onnxruntime|from onnxruntime)", re.MULTILINE)


def test_a_script_outside_the_package_switches_it_off_before_the_import():
    """Programs in strings are run by scripts that have imported patchdeploy: they inherit it."""
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").glob("faults/*.py")]
    importing = {}
    for path in scripts:
        text = path.read_text()
        found = IMPORT.search(re.sub(r'"""(?:.|\n)*?"""', "", text))
        if found is not None:
            importing[path.name] = SWITCH in text[: text.index(found[0].strip())]
    assert importing
    assert all(importing.values()), importing
