"""Decode and resize a whole data set: in parallel, with progress, kept on disk.

In: a sequence of images, a size, a `Preprocessing` and a `LoadConfig`. Out: uint8
[N, px, px, 3], in memory, or memory-mapped from a cache so that a set may be larger than memory.
Why: decoding is the slow part of small trainings and is the same in each of them.

Workers are threads: Pillow lets go of Python's lock while it decodes and resizes, and threads need
no second interpreter, no pickling and no ``__main__`` guard.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import PIL

from patchdeploy.data.decode import DECODER_VERSION, image_pixels
from patchdeploy.data.pixels import Pixels, Preprocessing, resize_image
from patchdeploy.data.sources import Images, image_paths, images_key
from patchdeploy.errors import ConfigError, UnreadableImageError
from patchdeploy.storage import open_atomic, write_atomic
from patchdeploy.storage_temporary import remove_leftovers

Progress = Callable[[int, int], None]
Result = TypeVar("Result")
CHUNK = 128  # images between two reports of progress and two writes


@dataclass(frozen=True)
class LoadConfig:
    """How images are decoded and resized.

    Attributes:
        workers: threads that decode and resize; 0 and 1: none beside the caller's.
        cache: a folder for the resized images. The file's name holds a digest of the images (file
            names, lengths and times of change, or pixels), the size and the way of resizing, so
            that changed images are never taken for those in the cache. None: in memory.
        on_broken: "error" raises UnreadableImageError when an image is first read. "skip" decodes
            every image once when the data set is made, leaves out those that are unreadable, and
            counts them in ``ImageDataset.skipped``.
        progress: called with (images done, images in all) now and then, for a progress bar.
    """

    workers: int = 0
    cache: Path | None = None
    on_broken: Literal["error", "skip"] = "error"
    progress: Progress | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        checks = (
            (self.workers >= 0, "workers", self.workers, "0 or more"),
            (self.on_broken in ("error", "skip"), "on_broken", self.on_broken, "error or skip"),
        )
        for good, key, value, rule in checks:
            if not good:
                raise ConfigError(f"load {key}={value!r}; it must be {rule}; correct it")


def load_resized(
    images: Images, size_px: int, preprocessing: Preprocessing, load: LoadConfig, name: str
) -> Pixels:
    """Every image resized: uint8 [N, size_px, size_px, 3], read-only.

    Args:
        name: of the data set, for the name of the file in the cache.

    Raises:
        UnreadableImageError: an image that cannot be decoded, with its name.
        StorageError: the cache cannot be written; nothing of it stays behind.
    """
    if load.cache is not None and len(images):
        return _cached(images, size_px, preprocessing, load, name)
    shape = (len(images), size_px, size_px, 3)
    kept = isinstance(images, np.ndarray) and not images.flags.writeable
    if kept and preprocessing.resize == "squash" and cast(Pixels, images).shape == shape:
        return cast(Pixels, images)  # nothing to resize, and nobody can change it
    batch = np.empty(shape, np.uint8)
    done = 0
    for chunk in _resized_chunks(images, size_px, preprocessing, load):
        batch[done : done + len(chunk)] = chunk
        done += len(chunk)
    batch.flags.writeable = False
    return batch


def _resized_chunks(
    images: Images, size_px: int, preprocessing: Preprocessing, load: LoadConfig
) -> Iterator[Pixels]:
    sequence, what = cast(Sequence[Pixels], images), "an image of the data set"

    def resized(index: int) -> Pixels:
        return resize_image(image_pixels(sequence[index], what), size_px, preprocessing)

    for chunk in _in_chunks(resized, len(images), load):
        yield np.stack(chunk)


def _in_chunks(
    work: Callable[[int], Result], count: int, load: LoadConfig
) -> Iterator[list[Result]]:
    """``work`` of 0 to ``count`` - 1, in order, up to `CHUNK` at a time, by the workers."""
    with _mapper(load.workers) as mapper:
        for start in range(0, count, CHUNK):
            end = min(start + CHUNK, count)
            yield list(mapper(work, range(start, end)))
            if load.progress is not None:
                load.progress(end, count)


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[Result]]]:
    if workers < 2:
        yield map
        return
    with ThreadPoolExecutor(workers, "patchdeploy-load") as pool:
        yield pool.map


def _cached(
    images: Images, size_px: int, preprocessing: Preprocessing, load: LoadConfig, name: str
) -> Pixels:
    """The cache's array, memory-mapped; written first where it is not there or not whole."""
    assert load.cache is not None
    decoder = [PIL.__version__, DECODER_VERSION]
    settings = [size_px, preprocessing.resize, preprocessing.crop_fraction, *decoder]
    digest = hashlib.sha256(json.dumps([images_key(images), settings]).encode()).hexdigest()
    path = load.cache / f"{_file_stem(name)}-{size_px}px-{digest[:24]}.npy"
    shape = (len(images), size_px, size_px, 3)
    found = _open_array(path, shape)
    if found is not None:
        return found
    remove_leftovers(load.cache)
    with open_atomic(path, int(np.prod(shape, dtype=np.int64))) as file:
        file.write(_array_header(shape))
        for chunk in _resized_chunks(images, size_px, preprocessing, load):
            file.write(chunk.data)
    written = _open_array(path, shape)
    assert written is not None
    return written


def _array_header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of uint8 begins with (numpy.lib.format, version 1.0)."""
    file = BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def _open_array(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """The array in ``path``, mapped read-only; None where it is missing, damaged or another.

    Its header is compared, not read: NumPy evaluates it as Python, and fails in as many ways.
    """
    header = _array_header(shape)
    try:
        with path.open("rb") as file:
            whole = os.fstat(file.fileno()).st_size == len(header) + math.prod(shape)
            if not whole or file.read(len(header)) != header:
                return None
        return np.memmap(path, np.uint8, "r", len(header), shape)
    except (OSError, ValueError):
        return None


def _file_stem(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]


def find_broken(images: Images, load: LoadConfig, name: str) -> list[int]:
    """Indices of the images that cannot be decoded, ascending; every image is decoded once.

    With a cache the answer for files is kept there and holds until one of them changes.

    Raises:
        StorageError: the cache cannot be written.
    """
    if load.cache is None or not image_paths(images):
        return _decode_all(images, load)
    key = hashlib.sha256(
        f"{images_key(images)} {PIL.__version__} {DECODER_VERSION}".encode()
    ).hexdigest()
    path = load.cache / f"{_file_stem(name)}-checked-{key[:24]}.json"
    try:
        return [int(index) for index in json.loads(path.read_text())["broken"]]
    except (OSError, ValueError, KeyError, TypeError):
        broken = _decode_all(images, load)
    write_atomic(path, json.dumps({"images": len(images), "broken": broken}).encode())
    return broken


def _decode_all(images: Images, load: LoadConfig) -> list[int]:
    sequence = cast(Sequence[Pixels], images)

    def readable(index: int) -> bool:
        try:
            sequence[index]
        except UnreadableImageError:
            return False
        return True

    flags = [flag for chunk in _in_chunks(readable, len(images), load) for flag in chunk]
    return [index for index, flag in enumerate(flags) if not flag]
