"""Images and labels as uint8 RGB: everything of the stage "data" under one name.

In: image files, class folders, data sets of others, real images that ship inside Python packages.
Out: ``ImageDataset`` (images and integer labels) and ``Preprocessing`` (size, mean, std, resize).
None of it needs torch; pixels are uint8 RGB, NHWC, 0..255. What lies where: one image is decoded
by `data.decode` (with `formats`, `containers`, `tags`, `depth`, `pnm`) and resized by
`data.pixels`; `data.folders` finds the images of a folder, `data.sources` holds many, unread;
`data.load` (workers, cache), `data.labels` (data sets of others), `data.sets` (ImageDataset),
`data.overlap`, `data.packaged`, `data.idx`, `data.scenes`.
"""

from __future__ import annotations

from patchdeploy.data.decode import OneImage, image_pixels, is_file_like, load_image
from patchdeploy.data.folders import FolderImages, find_images
from patchdeploy.data.formats import readable_suffixes
from patchdeploy.data.idx import load_idx
from patchdeploy.data.load import LoadConfig
from patchdeploy.data.overlap import OverlapWarning, overlapping, warn_overlap
from patchdeploy.data.packaged import (
    ASSETS,
    PACKAGED_NAMES,
    SURFACES,
    load_packaged,
    package_file,
)
from patchdeploy.data.pixels import (
    Labels,
    Pixels,
    Preprocessing,
    normalize_batch,
    resize_batch,
    resize_image,
)
from patchdeploy.data.scenes import (
    Scene,
    compose_scenes,
    load_photographs,
    scene_classes,
)
from patchdeploy.data.sets import (
    ImageDataset,
    Skipped,
    check_classes,
    load_any_folder,
    load_image_folder,
    split,
    without_broken,
)
from patchdeploy.data.sources import ImageFiles, Images, MapImages

__all__ = [
    "ASSETS",
    "PACKAGED_NAMES",
    "SURFACES",
    "FolderImages",
    "ImageDataset",
    "ImageFiles",
    "Images",
    "Labels",
    "LoadConfig",
    "MapImages",
    "OneImage",
    "OverlapWarning",
    "Pixels",
    "Preprocessing",
    "Scene",
    "Skipped",
    "check_classes",
    "compose_scenes",
    "find_images",
    "image_pixels",
    "is_file_like",
    "load_any_folder",
    "load_idx",
    "load_image",
    "load_image_folder",
    "load_packaged",
    "load_photographs",
    "normalize_batch",
    "overlapping",
    "package_file",
    "readable_suffixes",
    "resize_batch",
    "resize_image",
    "scene_classes",
    "split",
    "warn_overlap",
    "without_broken",
]
