"""Images and labels as uint8 RGB: everything of the stage "data" under one name.

In: image files, class folders, data sets of others, real images that ship inside Python packages.
Out: ``ImageDataset`` (images and integer labels) and ``Preprocessing`` (size, mean, std, resize).
None of it needs torch; pixels are uint8 RGB, NHWC, 0..255. What lies where: `data.pixels` (one
image), `data.sources` (many, unread), `data.load` (workers, cache), `data.labels` (data sets of
others), `data.sets` (ImageDataset), `data.overlap`, `data.packaged`, `data.idx`, `data.scenes`.
"""

from __future__ import annotations

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
    IMAGE_SUFFIXES,
    Labels,
    Pixels,
    Preprocessing,
    image_pixels,
    load_image,
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
    load_image_folder,
    split,
    without_broken,
)
from patchdeploy.data.sources import ImageFiles, Images, MapImages

__all__ = [
    "ASSETS",
    "IMAGE_SUFFIXES",
    "PACKAGED_NAMES",
    "SURFACES",
    "ImageDataset",
    "ImageFiles",
    "Images",
    "Labels",
    "LoadConfig",
    "MapImages",
    "OverlapWarning",
    "Pixels",
    "Preprocessing",
    "Scene",
    "Skipped",
    "check_classes",
    "compose_scenes",
    "image_pixels",
    "load_idx",
    "load_image",
    "load_image_folder",
    "load_packaged",
    "load_photographs",
    "normalize_batch",
    "overlapping",
    "package_file",
    "resize_batch",
    "resize_image",
    "scene_classes",
    "split",
    "warn_overlap",
    "without_broken",
]
