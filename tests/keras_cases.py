"""A Keras MobileNetV2 file as h5py writes it, and files that no Keras wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from patchdeploy.base.keras import _layers, make_mobilenet_v2

CLASSES = 3
KERNEL = "model_weights/Conv1/Conv1/kernel"


def write_keras_file(path: Path, dtype: str = "f4") -> None:
    """Random values, every array in the layout that Keras gives it."""
    import h5py

    generator = np.random.default_rng(0)
    module = make_mobilenet_v2(CLASSES)
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = '{"name": "mobilenetv2_1.00_96"}'
        for place, name, norm in _layers():
            o, i, h, w = module.get_submodule(place).weight.shape  # type: ignore[misc,union-attr]
            shape = (h, w, o, 1) if name.endswith("depthwise") else (h, w, i, o)
            values = generator.standard_normal(shape) * np.sqrt(2 / (h * w * i))
            file[f"model_weights/{name}/{name}/kernel"] = values.astype(dtype)
            for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
                values = generator.uniform(0.5, 1.5, o)
                file[f"model_weights/{norm}/{norm}/{variable}"] = values.astype(dtype)
        head = generator.standard_normal((1280, CLASSES))
        file["model_weights/dense/dense/kernel"] = head.astype(dtype)
        file["model_weights/dense/dense/bias"] = np.zeros(CLASSES, dtype)


def _external_values(file: Any, folder: Path) -> None:
    (folder / "secret").write_bytes(os.urandom(4096))
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 3, 32), "f4", external=[(str(folder / "secret"), 0, 3456)])


def _virtual_values(file: Any, folder: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout((3, 3, 3, 32), "f4")
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones((3, 3, 3, 32), np.float32)
    layout[...] = h5py.VirtualSource(str(folder / "other.h5"), "x", (3, 3, 3, 32))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def _external_link(file: Any, folder: Path) -> None:
    import h5py

    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones((3, 3, 3, 32), np.float32)
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink(str(folder / "other.h5"), "x")


def _external_model(file: Any, folder: Path) -> None:
    import h5py

    del file["model_weights"]
    file["model_weights"] = h5py.ExternalLink(str(folder / "plain.h5"), "model_weights")


def _soft_link(file: Any, folder: Path) -> None:
    import h5py

    file.move(KERNEL, "elsewhere")
    file[KERNEL] = h5py.SoftLink("/elsewhere")


def _loop(file: Any, folder: Path) -> None:
    import h5py

    file["model_weights/Conv1/again"] = file["model_weights"]
    del file["model_weights/Conv1/Conv1"]
    file["model_weights/Conv1/Conv1"] = h5py.SoftLink("/model_weights/Conv1/Conv1")


def _huge_kernel(file: Any, folder: Path) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (2**30, 2**10), "f4", chunks=(2**10, 2**10))


def _huge_head(file: Any, folder: Path) -> None:
    for name, shape in (("kernel", (1280, 2**31)), ("bias", (2**31,))):
        del file[f"model_weights/dense/dense/{name}"]
        chunks = tuple(min(one, 2**10) for one in shape)
        file.create_dataset(f"model_weights/dense/dense/{name}", shape, "f4", chunks=chunks)


def _empty_kernel(file: Any, folder: Path) -> None:
    """Of the right shape, and nowhere: HDF5 reads it as zeros."""
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 3, 32), "f4", chunks=(3, 3, 3, 32))


def _texts(file: Any, folder: Path) -> None:
    import h5py

    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 3, 32), h5py.string_dtype())


def _whole_numbers(file: Any, folder: Path) -> None:
    del file[KERNEL]
    file[KERNEL] = np.ones((3, 3, 3, 32), np.int32)


def _scalar(file: Any, folder: Path) -> None:
    del file[KERNEL]
    file[KERNEL] = 3.0


def _no_bias(file: Any, folder: Path) -> None:
    del file["model_weights/dense/dense/bias"]


def _group_for_array(file: Any, folder: Path) -> None:
    del file[KERNEL]
    file.create_group(KERNEL)


def _array_for_group(file: Any, folder: Path) -> None:
    del file["model_weights"]
    file["model_weights"] = np.ones(3)


def _twice(file: Any, folder: Path) -> None:
    file["model_weights/other/Conv1/kernel"] = np.ones((3, 3, 3, 32), np.float32)


HOSTILE: dict[str, Callable[[Any, Path], None]] = {
    one.__name__.strip("_").replace("_", " "): one
    for one in (
        _external_values,
        _virtual_values,
        _external_link,
        _external_model,
        _soft_link,
        _loop,
        _huge_kernel,
        _huge_head,
        _empty_kernel,
        _texts,
        _whole_numbers,
        _scalar,
        _no_bias,
        _group_for_array,
        _array_for_group,
        _twice,
    )
}
"""Changes to a good file after which it must be refused."""


def write_hostile_file(name: str, folder: Path) -> Path:
    """A good file (``plain.h5``, written once) with the change ``name``."""
    import h5py

    plain, path = folder / "plain.h5", folder / f"{name.replace(' ', '-')}.h5"
    if not plain.exists():
        write_keras_file(plain)
    path.write_bytes(plain.read_bytes())
    with h5py.File(path, "r+") as file:
        HOSTILE[name](file, folder)
    return path
