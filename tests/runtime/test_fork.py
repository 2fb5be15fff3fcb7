"""A forked child: an error that says what to do, an engine of its own, and nothing that hangs.

Each case runs in a process of its own, because a fork takes all of this process with it.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from bundle_cases import make_bundle

PROGRAM = Path(__file__).resolve().parent.parent / "fork_program.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("fork") / "b")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize(
    ("runtime", "mode", "threads", "busy"),
    [
        ("litert", "resident", 2, 3),
        ("onnxruntime", "resident", 2, 0),
        ("onnxruntime", "resident", 1, 3),
        ("onnxruntime", "per_run", 2, 3),
    ],
)
def test_a_forked_child_gets_an_error_or_opens_its_own_and_never_hangs(
    bundle, runtime, mode, threads, busy
):
    command = [sys.executable, PROGRAM, bundle.path, runtime, mode, threads, busy, 1]
    done = subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]
