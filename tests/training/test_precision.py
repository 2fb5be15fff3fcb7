"""Training in bfloat16 autocast, which a processor has too: it learns what float32 learns."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from joint_cases import assert_equal, digits, odd_or_even, patch_arrays
from torch import nn

from patchdeploy.base import Base
from patchdeploy.patch import Patch
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.config import Precision
from patchdeploy.training.mixed import train_many_patches
from patchdeploy.training.objective import autocast

PX, EPOCHS = 32, 6
IMAGES = 48
# A quarter of the default rate: small steps, so that two runs that round differently stay near.
SHORT = TrainConfig(epochs=EPOCHS, batch_size=16, learning_rate=0.005, device="cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.embedded()


def settings(precision: Precision) -> TrainConfig:
    return TrainConfig(**{**vars(SHORT), "precision": precision})


def losses(folder: Path, run: str) -> np.ndarray:
    """Mean training loss of each epoch."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = np.array([row["loss"] for row in rows if row["run"] == run])
    assert found.shape == (EPOCHS,)
    return found


def rounding_share(base: Base) -> float:
    """How far a gradient in bfloat16 is off, as a share of it.

    A layer rounds its input, its kernel and its output to 8 bits, so each by 2^-8 of it at most, in
    the forward pass and in the backward pass; the roundings of so many layers add up like random
    signs.
    """
    layers = sum(isinstance(one, nn.Conv2d | nn.Linear) for one in base.module.modules())
    assert layers > 20
    return math.sqrt(2 * 3 * layers) * 2**-8


def check_learned_alike(base: Base, wide: np.ndarray, half: np.ndarray) -> None:
    """A step whose direction is off by a share of itself takes a share less or more off the loss;
    so after any epoch the losses differ by that share of what training has taken off in all. (Here
    they differ by less than a tenth of that.)"""
    taken = wide[0] - wide[-1]
    assert taken > 0.25 * wide[0]
    np.testing.assert_allclose(half, wide, rtol=0, atol=rounding_share(base) * taken)


def check_patches(wide: Mapping[str, np.ndarray], half: Mapping[str, np.ndarray]) -> None:
    """Trained in another precision, and kept in float32 all the same."""
    for key, value in half.items():
        assert value.dtype == wide[key].dtype == np.float32, key
        if "running" in key:  # frozen: the base's own
            continue
        assert not np.array_equal(value, wide[key]), key  # else nothing ran in bfloat16
        rounded = torch.tensor(value).bfloat16().float().numpy()
        # One float32 in 2^16 has a bfloat16's bits by chance; a scale that a bound holds, or one
        # that hardly moves, may too.
        assert np.mean(rounded == value) < 0.5, key


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)],
)
def test_a_forward_pass_on_a_processor_runs_in_the_precision_of_its_name(
    precision: Precision, dtype: torch.dtype
) -> None:
    x, weight = torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)
    with autocast(settings(precision), torch.device("cpu")):
        assert nn.functional.linear(x, weight).dtype == dtype


def test_a_patch_learns_in_bfloat16_what_it_learns_in_float32(base: Base, tmp_path: Path) -> None:
    train, held = digits(IMAGES, 24)
    found: dict[Precision, Patch] = {}
    for precision in ("float32", "bfloat16", "auto"):
        found[precision] = train_patch(
            base,
            train,
            settings(precision),
            resolutions=[PX],
            validation=held,
            run_dir=tmp_path / precision,
            quiet=True,
        )
    wide, half, auto = (patch_arrays(one) for one in found.values())
    run = f"{train.name}@{PX}"
    check_learned_alike(base, losses(tmp_path / "float32", run), losses(tmp_path / "bfloat16", run))
    check_patches(wide, half)
    assert_equal(auto, wide)  # on a processor


def test_many_patches_learn_in_bfloat16_what_they_learn_in_float32(
    base: Base, tmp_path: Path
) -> None:
    pairs = {"digit": digits(IMAGES, 24), "parity": odd_or_even(IMAGES)}
    found = {}
    for precision in ("float32", "bfloat16"):
        found[precision] = train_many_patches(
            base,
            {task: train for task, (train, _) in pairs.items()},
            settings(precision),  # type: ignore[arg-type]
            resolution=PX,
            validation={task: held for task, (_, held) in pairs.items()},
            run_dir=tmp_path / precision,
            quiet=True,
        )
    for task in pairs:
        check_learned_alike(
            base, losses(tmp_path / "float32", task), losses(tmp_path / "bfloat16", task)
        )
        check_patches(*(patch_arrays(found[one][task]) for one in found))
