"""The idx files of MNIST, Fashion-MNIST and their like, from a folder.

In: a folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two ``t10k-``
files, each plain or ``.gz`` (as the authors publish them, and as Debian's dataset-fashion-mnist
installs them). Out: `ImageDataset`.

The format (Yann LeCun, "The MNIST database"): bytes 0, 0, type (8: uint8), number of dimensions;
then each dimension as a big-endian uint32; then the values, row by row.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data.load import LoadConfig
from patchdeploy.data.sets import ImageDataset
from patchdeploy.errors import ConfigError, DataError, FileFormatError

PREFIXES = {"train": "train", "test": "t10k"}
UINT8 = 8
MOST_VALUES = 1 << 31
"""Of a file; EMNIST by class, the largest of its kind, has 2^29. A gzip of 2 MB can say 2^31."""


def load_idx(
    folder: Path | str,
    part: Literal["train", "test"],
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    load: LoadConfig | None = None,
) -> ImageDataset:
    """The training or the test part, grey images as uint8 [N, H, W, 3].

    Args:
        name: by default the folder's name.
        classes: by default "0", "1", ... up to the largest label.

    Raises:
        DataError: a file is not there, or images, labels and classes do not fit together.
        FileFormatError: a file that is truncated or no idx file of uint8.
        ConfigError: another part.
    """
    if part not in PREFIXES:
        raise ConfigError(f"idx part={part!r}; it must be train or test; correct it")
    folder = Path(folder)
    grey = read_idx(_find(folder, f"{PREFIXES[part]}-images", 3), 3)
    labels = read_idx(_find(folder, f"{PREFIXES[part]}-labels", 1), 1).astype(np.int64)
    count = int(labels.max(initial=-1)) + 1
    names = tuple(str(label) for label in range(count)) if classes is None else tuple(classes)
    images = np.repeat(grey[..., None], 3, axis=-1)
    return ImageDataset(name or folder.resolve().name, images, labels, names, load or LoadConfig())


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """One idx file of uint8 with ``dimensions`` dimensions, plain or gzip.

    What is read is what the header says, never what an archive inflates to.

    Raises:
        FileFormatError: another type or shape, more than MOST_VALUES, or fewer or more bytes than
            its header says.
    """
    header_bytes = 4 + 4 * dimensions
    wanted = bytes((0, 0, UINT8, dimensions))
    with _opened(path) as file:
        header = file.read(header_bytes)
        if header[:4] != wanted or len(header) < header_bytes:
            raise FileFormatError(
                f"{path} begins with {header[:4].hex(' ') or 'nothing'}; an idx file of uint8 with "
                f"{dimensions} dimensions begins with {wanted.hex(' ')} and has {header_bytes} "
                "bytes of header; copy the right file again"
            )
        shape = struct.unpack(f">{dimensions}I", header[4:])
        expected = math.prod(shape)
        if expected > MOST_VALUES:
            raise FileFormatError(
                f"{path} says that it holds {list(shape)}, which is {expected} values; at most "
                f"{MOST_VALUES} are read; split it, or copy the right file again"
            )
        data = file.read(expected + 1)  # where it ends there, gzip checks its sum
    if len(data) != expected:
        found = str(len(data)) if len(data) < expected else f"more than {expected}"
        raise FileFormatError(
            f"{path} holds {found} values; its header says {list(shape)}, which is {expected}; "
            "copy it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    name = f"{stem}-idx{dimensions}-ubyte"
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx")):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(
        f"{folder} holds neither {name} nor {name}.gz; both parts of an idx data set are two "
        "files, images and labels; copy them there or correct the folder"
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """The file's bytes, inflated as they are read: a header says how many are worth it."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(
            f"cannot read {path}: {error}; it must be a whole idx file, plain or gzip; copy it "
            "again"
        ) from error
