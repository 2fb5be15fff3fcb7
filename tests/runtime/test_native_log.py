"""LiteRT's greeting is not shown; all else on standard error is."""

import subprocess
import sys

PROGRAM = """
import os
from patchdeploy.runtime.native_log import DROPPED, without_greeting
for number in range(2):
    with without_greeting():
        os.write(2, b"before %d\\n" % number + DROPPED + b"\\nWARNING: odd\\n")
    os.write(2, b"after\\n")
try:
    with without_greeting():
        raise ValueError
except ValueError:
    os.write(2, b"raised\\n")
"""


def test_one_line_is_dropped_once_and_the_rest_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    greeting = "INFO: Created TensorFlow Lite XNNPACK delegate for CPU."
    assert done.stderr.splitlines() == [
        *("before 0", "WARNING: odd", "after"),
        *("before 1", greeting, "WARNING: odd", "after", "raised"),
    ]
