"""A task's tensors in place of the base's: statistics, explicit scales, threads, failures."""

import threading

import pytest
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import PatchError, UnknownTaskError
from patchdeploy.patch import Patch, PatchConfig, Statistics
from patchdeploy.patched_model import (
    PatchedModel,
    attach_patch,
    merge_tensors,
    reestimate_statistics,
)

EVERYTHING = PatchConfig(("scale_bias", "depthwise", "head"))
CLASSES = ("a", "b", "c")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    """A normalised convolution, a depthwise one without normalisation, dropout, a head."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 5),
    )
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return Base.from_module(module, Preprocessing(input_size=12), "small")


def images(count: int = 6, px: int = 12, seed: int = 0) -> Tensor:
    return 1 + 2 * torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def perturbed(base: Base, config: PatchConfig = EVERYTHING, seed: int = 1) -> PatchedModel:
    model = attach_patch(base, config, "fruit", CLASSES)
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.tensors().items():
        factor = 0.5 + torch.rand(value.shape, generator=generator)
        value.mul_(factor).add_(0 if key.endswith(("weight", "var", "scale")) else factor - 1)
    return model


@torch.no_grad()
def scores(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs)  # type: ignore[no-any-return]


def state_bytes(base: Base) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in base.module.state_dict().items()}


def test_merging_scales_the_patchs_own_kernel_whatever_the_order_of_its_tensors(base: Base) -> None:
    model = perturbed(base)
    expected = scores(model, images())
    tensors = model.tensors()
    assert {"3.weight", "3.patch_scale", "3.patch_bias"} <= set(tensors)
    kept = [
        scores(merge_tensors(base, {k: tensors[k] for k in order}).eval(), images())
        for order in (sorted(tensors), sorted(tensors, reverse=True))
    ]
    assert torch.equal(*kept)
    # (s W) x + s b + c against s (W x + b) + c: one rounding more for each of 9 products, and two
    # for the sums; three layers follow: (9 + 2 + 3) * 2**-24 = 8.4e-7 of the largest term. Terms
    # cancel to at least a tenth here: 8.4e-6 of the largest score.
    assert float((kept[0] - expected).abs().max()) < 8.4e-6 * float(expected.abs().max())
    without = {k: v for k, v in tensors.items() if "patch_" not in k}
    assert not torch.allclose(
        scores(merge_tensors(base, without), images()), expected, rtol=0.01, atol=0
    )


def test_a_patch_round_trip_through_a_file_merges_the_same(base: Base, tmp_path: object) -> None:
    model = perturbed(base)
    model.to_patch().save_pretrained(str(tmp_path))
    loaded = PatchedModel(base)
    loaded.load_patch(Patch.from_pretrained(str(tmp_path)))
    for one in (model, loaded):
        one.merge()
    assert torch.equal(scores(model, images()), scores(loaded, images()))


def test_train_mode_reaches_neither_the_base_nor_a_merged_task(base: Base) -> None:
    model = perturbed(base)
    before, state = scores(model.eval(), images()), state_bytes(base)
    assert torch.equal(scores(model.train(), images()), before)  # no dropout, no batch statistics
    model.merge()
    merged = scores(model, images())
    assert torch.equal(scores(model.train(), images()), merged)
    assert torch.equal(scores(model.eval(), images()), merged)
    assert state_bytes(base) == state


def test_statistics_are_frozen_measured_or_learned_as_their_name_says(base: Base) -> None:
    state, inputs = state_bytes(base), images(32)
    found: dict[Statistics, tuple[Tensor, Tensor]] = {}
    for statistics in ("frozen", "reestimated", "batch"):
        model = attach_patch(base, PatchConfig(statistics=statistics), "t", CLASSES)
        if statistics == "reestimated":
            assert reestimate_statistics(model, [inputs]) == 1
        for _ in range(3):
            model(inputs).sum().backward()
        found[statistics] = (model.tensors()["1.running_mean"], model.tensors()["1.running_var"])
    conv = base.module.get_submodule("0")
    with torch.no_grad():
        outputs = conv(inputs)
    mean, variance = outputs.mean((0, 2, 3)), outputs.var((0, 2, 3))
    original = base.module.state_dict()
    assert torch.equal(found["frozen"][0], original["1.running_mean"])
    assert torch.equal(found["frozen"][1], original["1.running_var"])
    # 32 * 144 = 4,608 terms summed in another order: below 4608 * 2**-24 = 2.8e-4 of their size.
    torch.testing.assert_close(found["reestimated"], (mean, variance), rtol=3e-4, atol=3e-4)
    kept = 0.9**3  # momentum 0.1, three batches that are the same
    expected = tuple(
        kept * original[f"1.running_{name}"] + (1 - kept) * batch
        for name, batch in (("mean", mean), ("var", variance))
    )
    torch.testing.assert_close(found["batch"], expected, rtol=3e-4, atol=3e-4)
    assert state_bytes(base) == state  # batch counters too


def test_batch_statistics_belong_to_training_alone(base: Base) -> None:
    model = attach_patch(base, PatchConfig(statistics="batch"), "t", CLASSES)
    for _ in range(5):
        model(images(16))
    learned = {key: value.clone() for key, value in model.tensors().items()}
    with torch.no_grad():
        evaluated = model(images())
    one_by_one = torch.cat([scores(model, one[None]) for one in images()])
    # The score of an image does not depend on its neighbours. Another batch size may choose
    # another order of the 27 terms of a sum: 27 * 2**-24 = 1.6e-6 a layer, three layers.
    torch.testing.assert_close(one_by_one, evaluated, rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(model.eval()(images()).detach(), evaluated, rtol=0, atol=0)
    assert all(torch.equal(value, learned[key]) for key, value in model.tensors().items())
    trained = model.train()(images()).detach()
    assert not torch.allclose(trained, evaluated, rtol=1e-3)
    after = scores(model, images())
    model.merge()  # with the statistics learned so far
    # An explicit scale in the kernel instead of behind it: 9 + 2 + 3 roundings, terms that cancel
    # to a tenth (see above).
    assert float((scores(model, images()) - after).abs().max()) < 8.4e-6 * float(after.abs().max())


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
def test_a_forward_pass_that_fails_leaves_everything_as_it_was(
    base: Base, statistics: Statistics
) -> None:
    config = PatchConfig(("scale_bias", "depthwise", "head"), statistics=statistics)
    model, state = perturbed(base, config), state_bytes(base)
    before = scores(model, images())
    for wrong in (torch.zeros(2, 4, 12, 12), torch.zeros(2, 3, 1, 1)):
        with pytest.raises(RuntimeError):
            model(wrong)
        with pytest.raises(RuntimeError):
            reestimate_statistics(model, [wrong])
    for module in (base.module, model.structure):
        assert not any(one.training for one in module.modules())
        assert not any(one._forward_hooks for one in module.modules())
    norm = model.structure.get_submodule("1")
    assert norm.momentum == 0.1
    assert norm.weight is base.module.get_submodule("1").weight
    assert state_bytes(base) == state
    if statistics == "frozen":  # a failed batch may have been counted
        assert torch.equal(scores(model, images()), before)


def test_two_models_over_one_base_run_in_two_threads_as_they_do_alone(base: Base) -> None:
    models = [perturbed(base, seed=seed) for seed in (1, 2)]
    expected = [scores(model, images()) for model in models]
    plain = scores(base.module, images())
    assert not torch.equal(*expected)
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(150):
            if not torch.equal(scores(models[index], images()), expected[index]):
                wrong.append(f"model {index}")

    def bare() -> None:
        for _ in range(150):
            if not torch.equal(scores(base.module, images()), plain):
                wrong.append("the base itself")

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    threads.append(threading.Thread(target=bare))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_each_resolution_of_a_task_has_the_same_classes_and_settings(base: Base) -> None:
    model = perturbed(base)
    with pytest.raises(PatchError) as caught:
        model.add_task("fruit", ("a", "b"), EVERYTHING, 16)
    assert str(caught.value) == (
        "task 'fruit' is attached with classes ('a', 'b', 'c'), not ('a', 'b'); every resolution "
        "of a task has the same; choose another name or detach it first"
    )
    with pytest.raises(PatchError, match="attached with settings"):
        model.add_task("fruit", CLASSES, PatchConfig(("head",)), 16)
    other = attach_patch(base, PatchConfig(("head",)), "fruit", CLASSES, 16)
    with pytest.raises(PatchError, match="attached with settings"):
        model.load_patch(other.to_patch())
    assert model.tasks == (("fruit", 12),)
    model.add_task("fruit", CLASSES, resolution=16)  # the task's settings
    assert model.config("fruit") == EVERYTHING
    with pytest.raises(PatchError) as lacking:
        model.add_task("fruit", CLASSES, resolution=20, start=other.tensors())
    assert str(lacking.value) == (
        "task 'fruit': start has no '1.weight' of shape [8]; it must hold what the patch owns; "
        "give another resolution's tensors"
    )


def test_asking_for_what_a_task_has_names_those_attached(base: Base) -> None:
    model = perturbed(base)
    for question in (model.config, model.classes, model.tensors, model.to_patch):
        with pytest.raises(UnknownTaskError, match=r"task 'cars'.* attached: fruit at 12 px"):
            question("cars")


def test_merging_twice_and_unmerging_nothing_are_refused(base: Base) -> None:
    model = perturbed(base)
    with pytest.raises(PatchError, match="no task is merged; merge one first"):
        model.unmerge()
    model.merge()
    with pytest.raises(PatchError, match="task 'fruit' is merged already; unmerge it first"):
        model.merge()
    model.detach_task("fruit")
    assert model.tasks == ()
    with pytest.raises(UnknownTaskError):
        model(images())


def test_a_plain_module_shares_nothing_with_base_or_task(base: Base) -> None:
    model, state = perturbed(base), state_bytes(base)
    plain = model.merge_and_unload()
    before = scores(model, images())
    with torch.no_grad():
        for value in (*plain.parameters(), *plain.buffers()):
            value.fill_(1)
    assert state_bytes(base) == state
    assert torch.equal(scores(model, images()), before)
