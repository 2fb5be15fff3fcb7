"""What cannot be exported is refused before the first step, in export's own words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joint_cases import small_base
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing
from patchdeploy.errors import ConfigError, PatchdeployError, UnsupportedOperatorError
from patchdeploy.export import export_bundle
from patchdeploy.training import TaskImages, TrainConfig, train_patch, train_tasks
from patchdeploy.training import loop as training_loop
from patchdeploy.training.exportable import check_exportable
from patchdeploy.training.int8_retune import retune_patch_int8
from patchdeploy.training.mixed import train_many_patches
from patchdeploy.training.resolutions import train_resolutions

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

PX = 16
SETTINGS = Preprocessing((0.5,) * 3, (0.5,) * 3, PX)
SHORT = TrainConfig(epochs=1, batch_size=8, device="cpu")
ANYWAY = TrainConfig(epochs=1, batch_size=8, device="cpu", check_export=False)


def grouped() -> Base:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    return Base.from_module(module, SETTINGS, "grouped")


def images(name: str = "toy", classes: tuple[str, ...] = ("a", "b")) -> ImageDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (16, PX, PX, 3), np.uint8)
    return ImageDataset(name, pixels, np.arange(16) % len(classes), classes)


Train = Callable[[Base, ImageDataset, TrainConfig], Any]
METHODS: dict[str, Train] = {
    "transfer": lambda base, one, config: train_patch(
        base, one, config, resolutions=[PX], quiet=True
    ),
    "tasks": lambda base, one, config: train_tasks(base, [TaskImages(one)], config, quiet=True),
    "resolutions": lambda base, one, config: train_resolutions(
        base, one, [PX, 2 * PX], config, quiet=True
    ),
    "many": lambda base, one, config: train_many_patches(
        base, {one.name: one}, config, resolution=PX, quiet=True
    ),
}
REFUSED: dict[str, tuple[Callable[[], Base], ImageDataset, str]] = {
    "base": (grouped, images(), "aten.group_norm.default at module '2' (GroupNorm): no lowering"),
    "name": (small_base, images("My Photos"), "task name 'My Photos'; it must be 1 to 64 of a-z"),
    "label": (small_base, images(classes=("a", "\udcff")), "label '\\udcff' is not Unicode text"),
    "long labels": (small_base, images(classes=("a", "b" * 70_000)), "labels of 70001 bytes"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::patchdeploy.patch.reach.ReachWarning")  # the GroupNorm of base
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_exported_is_refused_before_the_first_step_or_trained_when_asked_for(
    method: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make, one, words = REFUSED[what]
    base, steps = make(), []
    apply = training_loop._Run._apply_gradients

    def count(self: Any) -> None:
        steps.append(self)
        apply(self)

    monkeypatch.setattr(training_loop._Run, "_apply_gradients", count)
    with pytest.raises(PatchdeployError) as caught:
        METHODS[method](base, one, SHORT)
    assert steps == []
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith(
        ", or set check_export to false, to train what cannot be exported"
    )
    if method == "transfer":  # export says the same, after all the work
        patch = METHODS[method](base, one, ANYWAY)
        assert steps
        with pytest.raises(type(caught.value)) as later:
            export_bundle(tmp_path / "b", base, [patch], {one.name: one}, unsigned=True)
        assert str(later.value).startswith(words)


def test_a_network_that_serves_one_resolution_alone_is_trained_at_that_one() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)
            self.head = nn.Linear(4 * 8 * 8, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.head(self.conv(inputs).flatten(1))
            return found

    base = Base.from_module(Flat(), SETTINGS, "flat")
    check_exportable(base, {"t": ("a", "b")}, [PX], SHORT)
    with pytest.raises(PatchdeployError):
        check_exportable(base, {"t": ("a", "b")}, [PX, 2 * PX], SHORT)


@pytest.mark.parametrize("sides", [[8192], list(range(16, 34))])
def test_sides_that_no_patch_file_holds_are_refused(sides: list[int]) -> None:
    with pytest.raises(ConfigError, match="a patch file holds at most 16, each of at most 4096 px"):
        check_exportable(small_base(), {"t": ("a", "b")}, sides, SHORT)


def test_a_patch_to_train_further_is_looked_at_too() -> None:
    one = images("My Photos")
    patch = train_patch(small_base(), one, ANYWAY, resolutions=[PX], quiet=True)
    with pytest.raises(ConfigError, match="task name 'My Photos'"):
        retune_patch_int8(small_base(), patch, one, quiet=True)


def test_two_bases_of_the_same_weights_are_not_taken_for_one() -> None:
    """The first is remembered as sound; the second computes with an operator that has no rule."""

    class Odd(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = super().forward(inputs).cumsum(1)
            return found

    def layers() -> list[nn.Module]:
        return [nn.Conv2d(3, 2, 16), nn.Flatten()]

    plain, odd = nn.Sequential(*layers()), Odd(*layers())
    odd.load_state_dict(plain.state_dict())
    first, second = (Base.from_module(one, SETTINGS, "x") for one in (plain, odd))
    check_exportable(first, {"t": ("a", "b")}, [PX], SHORT)
    with pytest.raises(UnsupportedOperatorError):
        check_exportable(second, {"t": ("a", "b")}, [PX], SHORT)
