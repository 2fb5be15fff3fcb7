"""The rate of a run that names none: by what learns and over which base."""

import pytest
import torch

from patchdeploy.base import Base
from patchdeploy.data import load_packaged
from patchdeploy.patch import PatchConfig
from patchdeploy.training import TrainConfig, loop, train_baseline, train_patch
from patchdeploy.training.config import LARGE_BASE
from patchdeploy.training.joint import Member, make_joint
from patchdeploy.training.mixed import train_many_patches
from patchdeploy.training.optimizer import choose_scope

SHORT = TrainConfig(epochs=1, batch_size=16, device="cpu")


@pytest.fixture(scope="module", params=["embedded", "mobilenet_v2"])
def base(request: pytest.FixtureRequest) -> Base:
    if request.param == "embedded":
        return Base.embedded()
    return Base.from_torchvision("mobilenet_v2", None)


class PeakError(Exception):
    """Ends a run with the peak rates that its optimiser was made with."""


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch):
    """Runs what trains, up to its optimiser; returns the rates."""

    def stop(groups, config):
        raise PeakError({config.rate(scope) for scope in groups})

    monkeypatch.setattr(loop, "make_optimizer", stop)

    def run(train) -> set[float]:
        with pytest.raises(PeakError) as stopped:
            train()
        return stopped.value.args[0]

    return run


def test_what_learns_over_a_large_base_learns_at_smaller_rates(base: Base, peaks) -> None:
    images = load_packaged("optical_digits")[0].subset(range(0, 300, 5))
    head = PatchConfig(("head",))
    large = base.name.startswith("torchvision")
    patch_rate, head_rate = (0.01, 0.003) if large else (0.02, 0.1)

    def train(config: PatchConfig, settings: TrainConfig = SHORT):
        return lambda: train_patch(base, images, settings, config, resolutions=[32], quiet=True)

    assert peaks(train(PatchConfig())) == {patch_rate}
    assert peaks(train(head)) == {head_rate}
    tasks = {"a": images, "b": images}
    many = lambda config: lambda: train_many_patches(base, tasks, SHORT, config, resolution=32)  # noqa: E731
    assert peaks(many(PatchConfig())) == {patch_rate}
    assert peaks(many(head)) == {head_rate}
    given = TrainConfig(epochs=1, batch_size=16, device="cpu", learning_rate=0.5)
    assert peaks(train(PatchConfig(), given)) == {0.5}
    every = lambda: train_baseline(base, images, "all", SHORT, resolution=32, quiet=True)  # noqa: E731
    assert peaks(every) == {3e-4 if large else 2e-3}
    frozen = make_joint(
        base, [Member("a", 3, PatchConfig())], torch.device("cpu"), learn_shared=False
    )
    assert {SHORT.rate(scope) for scope in frozen.groups()} == {patch_rate}


def test_a_large_base_is_told_by_its_weights_without_the_last_layer() -> None:
    """width 0.5 has 687,680 and a thousand classes' head 1,281,000 beside them."""
    small = Base.from_torchvision("mobilenet_v2", None, width_mult=0.5)
    every = sum(value.numel() for value in small.module.parameters())
    assert every > LARGE_BASE
    assert choose_scope(small, "patch") == "patch"
    assert choose_scope(small, "head") == "head"
    assert choose_scope(small, "all") == "all"


def test_the_papers_recipe_has_one_rate_whatever_the_base() -> None:
    paper = TrainConfig(recipe="paper")
    scopes = ("patch", "head", "large_patch", "large_head", "shared", "private")
    assert {paper.rate(scope) for scope in scopes} == {0.045}  # type: ignore[arg-type]
