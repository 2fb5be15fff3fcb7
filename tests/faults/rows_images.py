"""The row of hostile images: whatever a person is sent is decoded or refused.

Mutants of sound images of every promised format, files of other formats under their names, files
made to cost much, and names that lead to no file. Each must end as uint8 RGB or as an
UnreadableImageError, in bounded time and memory.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from container_cases import mutant
from image_cases import dear_files, foreign_files, sound_images, suffix
from PIL import EpsImagePlugin, Image
from tried import Progress, Told, in_processes, scaled

from patchdeploy.data import image_pixels, load_image
from patchdeploy.errors import UnreadableImageError

MUTANTS = 200_000
MOST_CPU_SECONDS = 10.0
"""Of one image. The largest that is decoded takes some 5 s; the rest is for the machine."""
MOST_BYTES = 2**30
"""What decoding may hold beside the file; the largest image that is decoded takes 0.85 of it."""


@dataclass
class Outcomes:
    """What came of many images.

    Attributes:
        codes: how often "read" and "refused".
        slowest_seconds: processor time of the slowest.
        growth_bytes: how much the peak of a process's memory grew.
    """

    codes: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    growth_bytes: int = 0

    def add(self, other: Outcomes) -> None:
        """Both together."""
        self.codes += other.codes
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)
        self.growth_bytes = max(self.growth_bytes, other.growth_bytes)

    def check(self) -> None:
        """That time and memory stayed within what an image may cost."""
        assert self.slowest_seconds < MOST_CPU_SECONDS, f"{self.slowest_seconds} s"
        assert self.growth_bytes < MOST_BYTES, f"memory grew by {self.growth_bytes} bytes"


class NamedBytes(io.BytesIO):
    """An open file in memory that has a name, as one on a disk has."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def decode(data: bytes, end: str) -> str:
    """ "read" or "refused"; anything else is raised."""
    try:
        pixels = load_image(NamedBytes(data, f"image{end}"))
    except UnreadableImageError:
        return "refused"
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == 3, pixels.shape
    assert pixels.shape[2] == 3, pixels.shape
    return "read"


def decode_opened(data: bytes) -> str:
    """As `decode`, of an image that a caller has opened with Pillow."""
    try:
        image = Image.open(io.BytesIO(data))
    except Exception:  # the caller's own, before we see anything
        return "not opened"
    try:
        image_pixels(image)
    except UnreadableImageError:
        return "refused"
    return "read"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def try_mutants(count: int, seed: int) -> Outcomes:
    """Mutants of each sound image in turn; every eighth as a Pillow image as well."""
    rng = np.random.default_rng(seed)
    sound = list(sound_images().items())
    assert all(decode(data, suffix(name)) == "read" for name, data in sound)
    found, before = Outcomes(), _peak_bytes()
    for number in range(count):
        name, data = sound[number % len(sound)]
        changed = mutant(rng, data) or b"\0"
        start = time.thread_time()
        found.codes[decode(changed, suffix(name))] += 1
        if number % 8 == 0:
            found.codes[f"opened by Pillow: {decode_opened(changed)}"] += 1
        found.slowest_seconds = max(found.slowest_seconds, time.thread_time() - start)
    found.growth_bytes = _peak_bytes() - before
    return found


def try_foreign(folder: Path) -> int:
    """Files of other formats, under each suffix that is read; how many were tried.

    No program is run for one: a Ghostscript is planted that would leave a mark.
    """
    mark, program = folder / "mark", folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    kept, EpsImagePlugin.gs_binary = EpsImagePlugin.gs_binary, str(program)
    tried = 0
    try:
        for name, data in foreign_files().items():
            for end in (".jpg", ".png", ".tif", ".tga", ".eps", ""):
                assert decode(data, end) == "refused", f"{name} as {end}"
                tried += 1
            assert decode_opened(data) in ("refused", "not opened"), name
    finally:
        EpsImagePlugin.gs_binary = kept
    assert not mark.exists(), "Ghostscript was run"
    return tried


def try_places(folder: Path) -> int:
    """Names that lead to no file that can be read: none may be waited for or read for ever."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    (folder / "folder.jpg").mkdir()
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(20 << 30)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "s.jpg"))
    names = sorted(path.name for path in folder.glob("*.jpg"))
    for name in names:
        try:
            load_image(folder / name)
        except UnreadableImageError:
            continue
        raise AssertionError(f"{name} was read")
    listener.close()
    return len(names)


def try_dear(number: int, scale: int = 1) -> Outcomes:
    """One of the files that would cost much, `READ_ALL_THE_SAME` or refused."""
    what, make, end = next(islice(dear_files(scale), number, None))
    data = make()
    before, start = _peak_bytes(), time.thread_time()
    outcome = decode(data, end)
    seconds = time.thread_time() - start
    assert outcome == ("read" if what in READ_ALL_THE_SAME else "refused"), f"{what}: {outcome}"
    assert seconds < MOST_CPU_SECONDS, f"{what} took {seconds} s"
    return Outcomes(Counter({outcome: 1}), seconds, _peak_bytes() - before)


def see_dear_files(scale: int) -> Outcomes:
    """All of them, in this process; at a greater ``scale`` with smaller files."""
    found = Outcomes()
    for number in range(sum(1 for _ in dear_files(scale))):
        found.add(try_dear(number, scale))
    return found


READ_ALL_THE_SAME = frozenset(
    ("PNG of a long comment", "PNG of a profile", "TIFF of shared tags", "TIFF in a circle")
)
"""Their pixels are whole and cheap, and the rest is not looked at."""


def try_images(scale: float, folder: Path, progress: Progress) -> Told:
    """The row: mutants, other formats, names, and files made to cost much."""
    total = Outcomes()
    for one in in_processes(try_mutants, scaled(MUTANTS, scale), 9000, progress):
        total.add(one)
    total.check()
    foreign, places = try_foreign(folder), try_places(folder)
    dear = Outcomes()
    count = sum(1 for _ in dear_files(50))
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for one in pool.map(try_dear, range(count)):
            dear.add(one)
    dear.check()
    told = ", ".join(f"{code} {number:,}" for code, number in total.codes.most_common())
    return Told(
        f"{total.codes.total():,} mutants of {len(sound_images())} images of every promised "
        f"format; {foreign} times a file of another format under a name that is read; {places} "
        f"pipes, devices and links; {count} files made to cost much",
        f"mutants: {told}; slowest {total.slowest_seconds:.1f} s of processor time, a process grew "
        f"by {total.growth_bytes / 2**20:.0f} MiB; costly files: {dear.codes['refused']} refused, "
        f"{dear.codes['read']} read without what was costly in them, slowest "
        f"{dear.slowest_seconds:.1f} s, {dear.growth_bytes / 2**20:.0f} MiB; no program was run",
        total.codes.total() + foreign + places + count,
    )
