"""Where the pixels of a data set come from: files, an array, a list, or a torchvision data set.

In: paths, or any map-style data set of (image, label). Out: sequences of `Pixels` that decode on
access, and for any such sequence a name per image, the files behind it where there are some, and a
content key. Why: loading, caching and comparing data sets must not care where images lie.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchdeploy.data.decode import image_pixels, load_image
from patchdeploy.data.pixels import Pixels
from patchdeploy.errors import DataError, PatchdeployError, UnreadableImageError

Images = Sequence[Pixels] | Pixels
DECODER_ERRORS = (
    *(OSError, ValueError, TypeError, SyntaxError, EOFError, AttributeError, RuntimeError),
    *(MemoryError, struct.error, Image.DecompressionBombError),
)
"""What a data set of another's making raises on damaged bytes (torchvision.io: RuntimeError)."""


class ImageFiles(Sequence[Pixels]):
    """Image files decoded on access; a broken one raises UnreadableImageError with its name."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImageFiles(self.paths[index])
        return load_image(self.paths[index])


class MapImages(Sequence[Pixels]):
    """The images of a map-style data set of (image, label), read on access.

    The data set's own transform applies at every access, so it should be repeatable. With workers
    it is called from several threads at once. Files that it reads as they are, without a transform,
    are decoded here, as everywhere: torchvision's own loader neither turns nor lays over white.

    Attributes:
        dataset: what ``dataset[i]`` reads.
        name: of the data set, in errors.
        indices: positions in ``dataset``.
        paths: the file of each image where the data set is one of torchvision's that lists its
            files (ImageFolder and its like) and changes nothing in them; else empty.
    """

    def __init__(self, dataset: Any, name: str, indices: Sequence[int] | None = None) -> None:
        self.dataset, self.name = dataset, name
        self.indices = range(len(dataset)) if indices is None else tuple(indices)
        self._files = _listed_files(dataset)
        known = self._files if _reads_files_as_they_are(dataset) else ()
        self.paths = tuple(known[i] for i in self.indices) if known else ()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return MapImages(self.dataset, self.name, self.indices[index])
        return load_image(self.paths[index]) if self.paths else self.item(index)[0]

    def item(self, index: int) -> tuple[Pixels, Any]:
        """Image and label.

        Raises:
            UnreadableImageError: the data set cannot read it; its file is named where it is known.
            DataError: the item is no (image, label).
        """
        position = self.indices[index]
        what = self.image_name(index)
        try:
            item = self.dataset[position]
            if not isinstance(item, tuple | list) or len(item) < 2:
                raise DataError(
                    f"{what} is a {type(item).__name__}; each item must be (image, integer label); "
                    "wrap the data set"
                )
            return image_pixels(item[0], what), item[1]
        except PatchdeployError:
            raise
        except DECODER_ERRORS as error:
            raise UnreadableImageError(
                f"cannot read {what}: {error}; it must be a whole image that the data set reads; "
                "convert it again or leave it out"
            ) from error

    def image_name(self, index: int) -> str:
        """The image's file, or its position in the data set."""
        position = self.indices[index]
        return str(self._files[position]) if self._files else f"image {position} of {self.name}"


def _listed_files(dataset: Any) -> tuple[Path, ...]:
    """The files that a torchvision data set lists under the attributes that its classes use."""
    if is_subset(dataset):
        inner = _listed_files(dataset.dataset)
        return tuple(inner[i] for i in dataset.indices) if inner else ()
    for attribute in ("samples", "_samples", "imgs", "_image_files", "_images"):
        listed = getattr(dataset, attribute, None)
        if not isinstance(listed, list | tuple) or len(listed) != len(dataset):
            continue
        files = [one[0] if isinstance(one, tuple | list) and one else one for one in listed]
        if files and all(isinstance(one, str | Path) for one in files):
            return tuple(Path(one) for one in files)
    return ()


def _reads_files_as_they_are(dataset: Any) -> bool:
    """Whether the pixels follow from the files alone: no transform, no reader but torchvision's."""
    if is_subset(dataset):
        return _reads_files_as_they_are(dataset.dataset)
    readers = (type(dataset), getattr(dataset, "loader", type(dataset)))
    known = all(one.__module__.startswith("torchvision.datasets.") for one in readers)
    return known and not any(getattr(dataset, key, None) for key in ("transform", "transforms"))


def is_subset(dataset: Any) -> bool:
    """torch.utils.data.Subset, or what looks like it."""
    return hasattr(dataset, "dataset") and hasattr(dataset, "indices")


def image_name(images: Images, index: int, name: str) -> str:
    """The file of an image, or its position in the data set ``name``."""
    if isinstance(images, ImageFiles):
        return str(images.paths[index])
    return images.image_name(index) if isinstance(images, MapImages) else f"image {index} of {name}"


def image_paths(images: Images) -> tuple[Path, ...]:
    """The file behind every image, or nothing where pixels do not come from files as they are."""
    return images.paths if isinstance(images, ImageFiles | MapImages) else ()


def as_images(images: Any, name: str) -> Images:
    """What a caller gives as images: files stay files, anything else becomes pixels.

    Raises:
        DataError, UnreadableImageError: an item that is no image (`image_pixels`).
    """
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise DataError(
            f"{name}: images are a {type(images).__name__}; they must be a list or an array; use "
            "ImageDataset.from_iterable for a stream"
        )
    is_pixels = getattr(images, "dtype", None) == np.uint8 and images.shape[3:] == (3,)
    is_tensor = hasattr(images, "detach")
    if not (isinstance(images, list | tuple | np.ndarray) or is_tensor) or is_pixels:
        return cast(Images, images)  # pixels already, or decoded on access
    listed = [images[index] for index in range(len(images))]
    if listed and all(isinstance(one, str | Path) for one in listed):
        return ImageFiles([Path(one) for one in listed])
    return [image_pixels(one, f"image {index} of {name}") for index, one in enumerate(listed)]


def select_images(images: Images, chosen: NDArray[np.int64]) -> Images:
    """The images at ``chosen``, in that order; files stay undecoded."""
    if isinstance(images, np.ndarray):
        return images[chosen]
    if isinstance(images, ImageFiles):
        return ImageFiles([images.paths[i] for i in chosen])
    if isinstance(images, MapImages):
        return MapImages(images.dataset, images.name, [images.indices[i] for i in chosen])
    return [images[i] for i in chosen]


def images_key(images: Images) -> str:
    """SHA-256 of what the images are, 64 hexadecimal digits.

    Of files: path, length in bytes and time of the last change, which needs no reading. Of anything
    else: shape and pixels, which reads every image once.
    """
    digest = hashlib.sha256()
    paths = image_paths(images)
    for path in paths:
        digest.update(_file_facts(path).encode(errors="surrogateescape"))
    if not paths:
        for index in range(len(images)):
            digest.update(pixels_digest(cast(Sequence[Pixels], images)[index]))
    return digest.hexdigest()


def _file_facts(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return f"{path.absolute()}\0missing\n"  # decoding it raises the error that names it
    return f"{path.absolute()}\0{facts.st_size}\0{facts.st_mtime_ns}\n"


def pixels_digest(image: Pixels) -> bytes:
    """SHA-256 of shape and pixels."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()
