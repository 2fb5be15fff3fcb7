"""Row 22 of the fault table: bundles that someone hands over, and writers that are killed.

Documents: `hostile_bundles` has the cases. Files: each name of a bundle is a link, a pipe, a
device, a circle of links, a folder or 20 GB of nothing. Writers: one that replaces a task and one
that makes a bundle are killed at each of their steps; the next writer must leave what the manifest
names and nothing else. Control: the bundle that was not changed is taken, and answers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import case_folders  # adds the folders of the cases
import numpy as np
from bundle_cases import KILLED, make_bundle
from hostile_bundles import MANIFEST, list_cases, make_good, make_judge, write_manifest
from tried import Progress, Told, in_processes, scaled

from patchdeploy.bundle import open_bundle, remove_task
from patchdeploy.errors import FileFormatError, IntegrityError

CASES = 4000
"""Of about 25,000; each run tries the same ones."""
BATCH = 250
SLOWEST_SECONDS = 2.0
STEPS = 40
"""More than the writers have."""


def try_documents(scale: float, progress: Progress) -> Told:
    """One value of one document is another, and every hash is right again."""
    count = scaled(CASES, scale)
    seen: Counter[str] = Counter()
    for one in in_processes(judge_cases, count, 1, progress, BATCH):
        seen += one
    return Told(
        f"{count:,} manifests, slot tables, coding tables and references that are consistent and "
        "of which one value is missing, new, there twice, of another type, out of range, nested up "
        "to 100,000 deep or 100,000 long",
        f"{seen['refused']:,} typed errors before a model ran; {seen['same']:,} gave the answers "
        "of the good bundle (names that only people read)",
        count,
    )


def judge_cases(count: int, seed: int) -> Counter[str]:
    """Verdicts on ``count`` cases that ``seed`` draws."""

    with tempfile.TemporaryDirectory() as folder:
        good, verdict = make_judge(Path(folder))
        cases = list_cases(good)
        drawn = np.random.default_rng(seed).choice(len(cases), count, replace=False)
        return Counter(verdict(cases[index]) for index in drawn)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _folder(path: Path) -> None:
    path.mkdir()


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 << 30)


def _outside(path: Path) -> None:
    path.symlink_to("/etc/hostname")


STRANGE: tuple[Callable[[Path], None], ...] = (_pipe, _device, _circle, _folder, _sparse, _outside)


def try_files(scale: float, folder: Path, progress: Progress) -> Told:
    """A name of the bundle is no regular file of its length; a folder of it is a link."""
    good = make_good(folder / "good")
    names = [MANIFEST, *open_bundle(good).manifest.files]
    count = 0
    for name in names:
        for make in STRANGE:
            place = Path(shutil.copytree(good, folder / "strange"))
            (place / name).unlink()
            make(place / name)
            if make is _sparse and name != MANIFEST:
                _record_length(place, name)
            _expect_refusal(lambda: open_bundle(place), f"{name}, {make.__name__}")  # noqa: B023
            shutil.rmtree(place)
            count += 1
        progress(count / (len(names) * len(STRANGE)))
    count += _try_links(good, folder)
    return Told(
        f"{count} bundles in which a file is a pipe, a device, a folder, 20 GB of nothing (also "
        "where the manifest says so), a link out of it or in a circle, or its folder is a link, "
        "with a reader and a writer",
        "typed errors, none waited; nothing outside was read, written or removed",
        count,
    )


def _record_length(place: Path, name: str) -> None:
    import json

    document = json.loads((place / MANIFEST).read_text())
    document["files"][name]["bytes"] = 20 << 30
    write_manifest(place, document)


def _try_links(good: Path, folder: Path) -> int:
    """A folder of the bundle leads outside: a file there has the name of the task's."""
    place, outside = Path(shutil.copytree(good, folder / "linked")), folder / "outside"
    (place / "patches").rename(outside)
    (place / "patches").symlink_to(outside)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    for act in (lambda: open_bundle(place), lambda: remove_task(place, "first")):
        _expect_refusal(act, "patches is a link")
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    return 2


def _expect_refusal(act: Callable[[], object], what: str) -> None:
    start = time.perf_counter()
    try:
        act()
    except (FileFormatError, IntegrityError):
        seconds = time.perf_counter() - start
        assert seconds < SLOWEST_SECONDS, f"{what}: refused after {seconds:.1f} s"
        return
    raise AssertionError(f"{what}: taken")


def try_killed_writers(scale: float, folder: Path, progress: Progress) -> Told:
    """What a writer that was killed has left is gone after the next one."""
    good = make_bundle(folder / "good").path
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(case_folders.HERE.parent), *sys.path]),
    }
    left = killed = 0
    for step in range(1, STEPS, 1 if scale >= 1 else 5):
        place = folder / f"killed-{step}"
        path = Path(shutil.copytree(good, place / "bundle"))
        command = [sys.executable, "-c", KILLED, str(path), str(step)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.stdout.strip() == "done":
            break
        assert done.returncode == -9, done.stderr[-2000:]
        killed += 1
        left += _surplus(place, path) > 0
        remove_task(path, "second")
        assert _surplus(place, path) == 0, f"killed at step {step}: something is left"
        progress(step / STEPS)
    assert left, "no kill left anything: the control"
    return Told(
        f"{killed} kills of a writer that replaces a task and one that makes a bundle, at each "
        f"fsync, rename and unlink; {left} left files or folders behind",
        "after the next writer nothing is left but what the manifest names",
        killed,
    )


def _surplus(place: Path, path: Path) -> int:
    """Files of a bundle that its manifest does not name, and what lies beside it."""
    named = {MANIFEST, ".lock", *open_bundle(path).manifest.files}
    files = {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()}
    beside = {one.name for one in place.iterdir()} - {"bundle", "new"}
    return len(files - named) + len(beside)
