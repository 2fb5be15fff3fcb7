"""Several tasks over one base: attach, switch, merge, take off, and never touch the base."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import (
    AlreadyAttachedError,
    PatchError,
    UnknownLayerError,
    UnknownTaskError,
    WrongBaseError,
)
from patchdeploy.patch import Kind, Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel, attach_patch, reestimate_statistics

EVERYTHING = PatchConfig(("scale_bias", "depthwise", "head"))
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.embedded()


@pytest.fixture(scope="module")
def squeezenet() -> Base:
    """No normalisation at all: every convolution gets an explicit scale and bias."""
    return Base.from_torchvision("squeezenet1_1", preprocessing=Preprocessing(input_size=32))


def images(count: int = 4, px: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(seed))


# One set of kinds serves every network; SqueezeNet's has no depthwise convolution.
pytestmark = pytest.mark.filterwarnings(
    "ignore:patch kind 'depthwise' selects:patchdeploy.patch.reach.ReachWarning"
)


@torch.no_grad()
def perturb(model: PatchedModel, seed: int) -> None:
    """Move every tensor of the active task: scales and variances by a factor, the rest by a sum."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.tensors().items():
        noise = torch.rand(value.shape, generator=generator)
        if key.endswith(("running_var", "patch_scale")) or f"{key[:-6]}running_mean" in key:
            value.mul_(0.7 + 0.6 * noise)
        elif value.ndim == 1 and key.endswith(".weight"):
            value.mul_(0.8 + 0.4 * noise)
        else:
            value.add_(0.1 * (noise - 0.5))


def perturbed(base: Base, config: PatchConfig = EVERYTHING, seed: int = 1) -> PatchedModel:
    model = attach_patch(base, config, "fruit", CLASSES, 32)
    perturb(model, seed)
    return model


def state_bytes(base: Base) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in base.module.state_dict().items()}


@torch.no_grad()
def scores(model: Any, inputs: Tensor) -> Tensor:
    result = model(inputs)
    assert isinstance(result, Tensor)
    return result


def test_a_fresh_patch_computes_the_bases_features(base: Base) -> None:
    model = attach_patch(base, PatchConfig(("scale_bias",)), "fruit", CLASSES)
    features: list[Tensor] = []
    for network in (model.structure, base.module):
        head = network.get_submodule(base.head_name)
        handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        scores(model if network is model.structure else network, images())
        handle.remove()
    assert torch.equal(*features)


@pytest.mark.parametrize("kinds", [("scale_bias",), ("depthwise",), ("head",)])
def test_perturbing_any_kind_changes_the_output(base: Base, kinds: tuple[Kind, ...]) -> None:
    model = attach_patch(base, PatchConfig(kinds), "fruit", CLASSES, 32)
    before = scores(model, images())
    assert before.shape == (4, 3)
    perturb(model, 1)
    after = scores(model, images())
    assert float((after - before).abs().max()) > 1e-3 * float(before.abs().max())


def test_explicit_scales_and_biases_follow_their_formula(squeezenet: Base) -> None:
    model = perturbed(squeezenet, PatchConfig(("scale_bias",)))
    path = next(iter(squeezenet.norms))
    tensors = model.tensors()
    conv = squeezenet.module.get_submodule(path)
    seen: list[Tensor] = []
    following = model.structure.get_submodule(path.replace("0", "1"))  # the ReLU after it
    handle = following.register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    scores(model, images(1))
    handle.remove()
    scale, bias = tensors[f"{path}.patch_scale"], tensors[f"{path}.patch_bias"]
    expected = conv(images(1)) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    assert torch.equal(seen[0], expected)
    assert not torch.equal(seen[0], conv(images(1)))


def test_tasks_share_one_base_and_do_not_disturb_each_other(base: Base) -> None:
    before = state_bytes(base)
    model = PatchedModel(base)
    answers = {}
    for index, (task, px) in enumerate([("a", 32), ("a", 48), ("b", 32)]):
        model.add_task(task, CLASSES[: 2 + (task == "b")], EVERYTHING, px)
        perturb(model, index)
        answers[(task, px)] = scores(model, images())
    for key in [("b", 32), ("a", 48), ("a", 32), ("b", 32)]:
        model.set_active_task(*key)
        assert torch.equal(scores(model, images()), answers[key])
    assert model.base.module is base.module
    assert not list(model.parameters())  # the base's parameters belong to no task
    assert state_bytes(base) == before
    assert answers[("a", 32)].shape == (4, 2)
    assert answers[("b", 32)].shape == (4, 3)


def test_gradients_reach_what_the_patch_trains_and_nothing_else(base: Base) -> None:
    config = PatchConfig(("scale_bias",))
    model = perturbed(base, config)
    model(images()).square().sum().backward()
    for key, value in model.tensors().items():
        trained = not key.endswith(("running_mean", "running_var")) and "classifier" not in key
        assert (value.grad is not None) == trained, key
    assert all(parameter.grad is None for parameter in base.module.parameters())


def test_an_untrained_head_is_the_same_for_every_task_of_as_many_classes(base: Base) -> None:
    config = PatchConfig(("scale_bias",), head_seed=5)
    heads = []
    for task, classes in (("x", ("a", "b", "c")), ("y", ("d", "e", "f"))):
        model = attach_patch(base, config, task, classes)
        heads.append(model.tensors()[f"{base.head_name}.weight"])
    assert torch.equal(*heads)
    other = attach_patch(base, PatchConfig(("scale_bias",), head_seed=6), "z", CLASSES)
    assert not torch.equal(heads[0], other.tensors()[f"{base.head_name}.weight"])


@pytest.mark.parametrize("which", ["embedded", "squeezenet"])
def test_merged_equals_attached_and_unmerge_restores_every_bit(
    which: str, base: Base, squeezenet: Base
) -> None:
    chosen = base if which == "embedded" else squeezenet
    model = perturbed(chosen)
    before_base, before = state_bytes(chosen), scores(model, images())
    model.merge()
    merged = scores(model, images())
    with pytest.raises(PatchError, match="merged"):
        model.set_active_task("fruit")
    model.unmerge()
    assert torch.equal(scores(model, images()), before)
    plain = scores(model.merge_and_unload(), images())
    assert torch.equal(plain, merged)
    if which == "embedded":
        assert torch.equal(merged, before)  # the same operations on the same values
    else:
        # s * (W x + b) against (s W) x + s b: two roundings a value more, over the sums of 26
        # layers of at most 9 * 64 terms; errors of a sum grow with sqrt(576) = 24 half-ulps, so
        # 26 * 24 * 2**-24 = 4e-5 of the largest score.
        assert float((merged - before).abs().max()) < 4e-5 * float(before.abs().max())
    assert state_bytes(chosen) == before_base


@pytest.mark.parametrize("which", ["embedded", "squeezenet"])
def test_a_patch_saved_and_loaded_gives_the_same_scores(
    which: str, base: Base, squeezenet: Base, tmp_path: Any
) -> None:
    chosen = base if which == "embedded" else squeezenet
    model = perturbed(chosen)
    model.add_task("fruit", CLASSES, resolution=48)
    perturb(model, 2)
    model.to_patch().save_pretrained(tmp_path)
    loaded = PatchedModel(chosen)
    loaded.load_patch(Patch.from_pretrained(tmp_path))
    for px in (32, 48):
        model.set_active_task("fruit", px)
        loaded.set_active_task("fruit", px)
        assert torch.equal(scores(loaded, images()), scores(model, images()))


def test_attaching_twice_is_refused_and_leaves_the_first(base: Base) -> None:
    model = perturbed(base)
    before = scores(model, images())
    for attach in (
        lambda: model.add_task("fruit", CLASSES, resolution=32),
        lambda: model.load_patch(model.to_patch()),
    ):
        with pytest.raises(AlreadyAttachedError, match="task 'fruit' is attached at 32 px already"):
            attach()
    assert torch.equal(scores(model, images()), before)


def test_a_patch_of_another_base_is_refused(base: Base, squeezenet: Base) -> None:
    patch = perturbed(base).to_patch()
    model = PatchedModel(squeezenet)
    with pytest.raises(WrongBaseError) as caught:
        model.load_patch(patch)
    assert str(caught.value) == (
        f"patch 'fruit' was trained on base {base.sha256[:16]}, this base is "
        f"{squeezenet.sha256[:16]}; attach it to the base that it was trained on"
    )
    assert model.tasks == ()


@pytest.mark.parametrize("damage", ["unknown", "shape", "missing"])
def test_a_patch_whose_tensors_do_not_fit_is_refused_before_anything_is_attached(
    base: Base, damage: str
) -> None:
    patch = perturbed(base).to_patch()
    tensors = dict(patch.tensors(32))
    key = "features.0.1.weight"
    if damage == "unknown":
        tensors["features.99.weight"] = np.zeros(3, np.float32)
    elif damage == "shape":
        tensors[key] = np.ones(5, np.float32)
    else:
        del tensors[f"{base.head_name}.weight"]
    wrong = Patch("fruit", base.sha256, patch.config, patch.classes, {32: tensors})
    model = PatchedModel(base)
    with pytest.raises((UnknownLayerError, PatchError), match="fruit"):
        model.load_patch(wrong)
    assert model.tasks == ()


def test_an_unknown_task_lists_those_attached(base: Base) -> None:
    model = perturbed(base)
    for action in (model.set_active_task, model.detach_task):
        with pytest.raises(UnknownTaskError) as caught:
            action("cars")
        assert str(caught.value) == (
            "task 'cars' is not attached; attached: fruit at 32 px; add or load it first"
        )
    with pytest.raises(UnknownTaskError, match="task 'fruit' at 96 px is not attached"):
        model.set_active_task("fruit", 96)
    with pytest.raises(UnknownTaskError, match="no task is attached"):
        scores(PatchedModel(base), images())


def test_a_detached_task_is_gone_and_can_be_attached_anew(base: Base) -> None:
    model = perturbed(base)
    model.add_task("cars", CLASSES, EVERYTHING, 32)
    model.detach_task("cars")
    assert model.tasks == (("fruit", 32),)
    assert model.active == ("fruit", 32)
    model.add_task("cars", ("x", "y"), EVERYTHING, 32)
    assert scores(model, images()).shape == (4, 2)


def test_statistics_are_the_mean_over_batches(base: Base) -> None:
    before = state_bytes(base)
    model = attach_patch(base, PatchConfig(("scale_bias",), statistics="reestimated"), "t", CLASSES)
    batches = [3 + 2 * images(8, seed=seed) for seed in (1, 2, 3)]
    assert reestimate_statistics(model, batches) == 3
    conv = base.module.get_submodule("features.0.0")
    with torch.no_grad():
        outputs = [conv(batch) for batch in batches]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    tensors = model.tensors()
    # Sums of 8 * 16 * 16 = 2,048 float32 values, pairwise in both: far below 1e-5 relative.
    torch.testing.assert_close(tensors["features.0.1.running_mean"], mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tensors["features.0.1.running_var"], variance, rtol=1e-5, atol=1e-5)
    assert state_bytes(base) == before


def test_learning_statistics_with_the_batch_moves_the_tasks_and_not_the_bases(base: Base) -> None:
    before = state_bytes(base)
    model = attach_patch(base, PatchConfig(statistics="batch"), "t", CLASSES, 32)
    start = model.tensors()["features.0.1.running_mean"].clone()
    model(images(8))
    assert not torch.equal(model.tensors()["features.0.1.running_mean"], start)
    assert state_bytes(base) == before
    assert not any(module.training for module in base.module.modules())
