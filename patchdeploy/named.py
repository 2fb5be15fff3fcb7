"""What a name on the command line stands for: a base network, a set of images.

Bases: ``embedded``; ``torchvision:NAME`` (random weights) or ``torchvision:NAME@WEIGHTS``;
``keras:FILE.h5``; ``checkpoint:NAME:FILE`` (torchvision architecture NAME, weights from FILE);
``detector:NAME``, ``detector:NAME@WEIGHTS`` and ``detector:NAME:FILE`` (the feature extractor of a
torchvision SSD, FILE a checkpoint of the whole detector);
``trained:FOLDER`` (a network that a training run has left).
Images: a folder with one folder per class, or ``packaged:NAME:train`` and ``packaged:NAME:test``.
Where labels do not matter (calibration) any folder of images does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchdeploy.data import (
    ImageDataset,
    LoadConfig,
    load_any_folder,
    load_image_folder,
    load_packaged,
)
from patchdeploy.errors import ConfigError, DataError, EmptyCalibrationError, MissingExtraError
from patchdeploy.errors_keys import suggest_nearest

if TYPE_CHECKING:
    from patchdeploy.base import Base

BASE_HELP = (
    "embedded, torchvision:NAME, torchvision:NAME@WEIGHTS, keras:FILE.h5, checkpoint:NAME:FILE, "
    "detector:NAME, detector:NAME@WEIGHTS, detector:NAME:FILE or trained:FOLDER (NAME is a "
    "torchvision architecture)"
)
BASE_KINDS = ("embedded", "torchvision", "keras", "checkpoint", "detector", "trained")
_PACKAGED = "packaged:"


def open_base(name: str) -> Base:
    """The base that ``name`` stands for.

    Raises:
        ConfigError: the name follows none of the forms.
        MissingExtraError: torch is not installed.
    """
    try:
        from patchdeploy.base import Base
    except ImportError as error:
        raise MissingExtraError(
            f"a base network needs {error.name}, which is not installed; "
            "run: pip install 'patchdeploy[train]'"
        ) from error
    kind, _, rest = name.partition(":")
    if name == "embedded":
        return Base.embedded()
    if kind == "torchvision" and rest:
        architecture, _, weights = rest.partition("@")
        return Base.from_torchvision(architecture, weights=weights or None)
    if kind == "detector" and ":" in rest:
        from patchdeploy.base import read_state
        from patchdeploy.base.detector import checkpoint_arguments

        architecture, _, file = rest.partition(":")
        arguments: dict[str, Any] = checkpoint_arguments(read_state(Path(file)))
        return Base.from_detector(architecture, checkpoint=Path(file), **arguments)
    if kind == "detector" and rest:
        architecture, _, weights = rest.partition("@")
        return Base.from_detector(architecture, weights or None)
    if kind == "keras" and rest:
        return Base.from_keras_mobilenet_v2(Path(rest))
    if kind == "checkpoint" and ":" in rest:
        architecture, _, file = rest.partition(":")
        return _open_checkpoint(architecture, Path(file))
    if kind == "trained" and rest:
        from patchdeploy.named_trained import open_network

        return open_network(Path(rest), open_architecture)
    remedy = "correct it" if kind in BASE_KINDS else suggest_nearest(kind, BASE_KINDS, "correct it")
    raise ConfigError(f"base {name!r} is none of the forms {BASE_HELP}; {remedy}")


def open_architecture(name: str) -> Base:
    """A base with the layers of the one that ``name`` stands for, whatever its weights: no file of
    weights is read and nothing is downloaded, for ``name`` may be another's choice.

    Raises:
        ConfigError: the name follows none of the forms.
        BaseError: torchvision has no such architecture.
    """
    from patchdeploy.base import Base

    kind, _, rest = name.partition(":")
    architecture = rest.replace("@", ":").partition(":")[0]
    if kind in ("torchvision", "checkpoint") and rest:
        return Base.from_torchvision(architecture, weights=None)
    if kind == "detector" and rest:
        return Base.from_detector(architecture)
    if kind == "keras":
        return Base.keras_structure()
    if name == "embedded":
        return Base.embedded()
    raise ConfigError(
        f"base {name!r} is none of the forms {BASE_HELP}; a trained network names the base that it "
        "was made from; train again"
    )


def _open_checkpoint(architecture: str, file: Path) -> Base:
    """Of as many classes as the file's last layer has; every patch brings its own."""
    from patchdeploy.base import Base, read_state

    initial = Base.from_torchvision(architecture, weights=None)
    expected = initial.module.state_dict()
    head = read_state(file, expected).get(f"{initial.head_name}.weight")
    rows = len(expected[f"{initial.head_name}.weight"])
    if head is not None and head.ndim > 0 and len(head) not in (0, rows):
        initial = Base.from_torchvision(architecture, weights=None, num_classes=len(head))
    return Base.from_checkpoint(file, initial.module, initial.preprocessing)


def open_images(name: str, load: LoadConfig | None = None) -> ImageDataset:
    """The labelled images that ``name`` stands for.

    Args:
        load: how files are read; packaged images have none.

    Raises:
        ConfigError: ``packaged:`` without a set and a part.
        DataError: no such folder or packaged set.
    """
    if not is_packaged(name):
        return load_image_folder(Path(name), load)
    packaged, _, part = name.removeprefix(_PACKAGED).partition(":")
    if part not in ("train", "test"):
        raise ConfigError(
            f"images {name!r}: the part is {part!r}; it must be train or test; "
            f"write packaged:{packaged or 'digits'}:train"
        )
    train, test = load_packaged(packaged)
    return train if part == "train" else test


def open_calibration(name: str) -> ImageDataset:
    """The images that ``name`` stands for. Any folder of images does.

    Where every image lies in a folder of ``name``, those folders are its classes: coding steps are
    chosen by the accuracy. Else there is one class without a name.

    Raises:
        EmptyCalibrationError: a folder that is not there or holds no image.
        ConfigError, DataError: see `open_images`.
    """
    if is_packaged(name):
        return open_images(name)
    root = Path(name)
    try:
        return load_any_folder(root)
    except DataError as error:
        raise EmptyCalibrationError(
            f"calibration images: {error}; activation ranges need at least 1 image (64 to 512 are "
            "usual) of a folder of training images"
        ) from error


def is_packaged(name: str) -> bool:
    """Whether ``name`` means images that ship inside a Python package."""
    return name.startswith(_PACKAGED)
