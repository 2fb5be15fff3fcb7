"""Binary deltas between two files: what a team could ship instead of patches.

In: an old and a new file's bytes. Out: the delta's length, after checking that the old file and
the delta give the new one. bsdiff (bsdiff4 from PyPI, bzip2 inside) and zstd's --patch-from at
its highest ordinary level.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

ZSTD = shutil.which("zstd")
ZSTD_LEVEL = ("-19", "--long=27")


def bsdiff_bytes(old: bytes, new: bytes) -> int | None:
    """Length of bsdiff's delta; None where bsdiff4 is not installed."""
    try:
        import bsdiff4
    except ImportError:
        return None
    delta = bsdiff4.diff(old, new)
    assert bsdiff4.patch(old, delta) == new
    return len(delta)


def zstd_bytes(old: bytes, new: bytes) -> int | None:
    """Length of ``zstd --patch-from=old new``; None where the program is not installed."""
    if ZSTD is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        places = {name: Path(scratch) / name for name in ("old", "new", "delta", "again")}
        places["old"].write_bytes(old)
        places["new"].write_bytes(new)
        common = [ZSTD, "-q", "-f", "--long=27", f"--patch-from={places['old']}"]
        _run([*common, *ZSTD_LEVEL, str(places["new"]), "-o", str(places["delta"])])
        _run([*common, "-d", str(places["delta"]), "-o", str(places["again"])])
        assert places["again"].read_bytes() == new
        return places["delta"].stat().st_size


def zstd_alone_bytes(data: bytes) -> int | None:
    """Length of ``data`` compressed with zstd on its own; None where it is not installed."""
    if ZSTD is None:
        return None
    command = [ZSTD, "-q", "-c", *ZSTD_LEVEL]
    return len(subprocess.run(command, input=data, capture_output=True, check=True).stdout)


def delta_bytes(old: bytes, new: bytes) -> dict[str, int | None]:
    """Both deltas' lengths by method."""
    return {"bsdiff": bsdiff_bytes(old, new), "zstd": zstd_bytes(old, new)}


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True)
