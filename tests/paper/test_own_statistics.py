"""Statistics measured again change nothing else, and see random parts of the training images."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import shared_tables
import torch
from own_statistics import BATCH, with_own_statistics
from shared_tables import measure_sides, table5_cells
from transfer_cell import draw

from patchdeploy.base import Base
from patchdeploy.base.layers import NORMS
from patchdeploy.data import load_packaged, normalize_batch
from patchdeploy.patch import PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training.preparation import make_samples
from patchdeploy.training.statistics import draw_statistics_batches

PX = 32


@pytest.fixture(scope="module")
def images():
    """200 digits, which lie class by class."""
    return draw(load_packaged("digits")[0], 200, 0)


@pytest.fixture(scope="module")
def base():
    return Base.embedded()


@pytest.fixture(scope="module")
def patch(base, images):
    """A head that is not the one a new task starts with."""
    model = PatchedModel(base)
    model.add_task("digits", images.classes, PatchConfig(("head",)), PX)
    made = model.to_patch()
    variants = {key: value + 0.1 for key, value in made.tensors(PX).items()}
    return replace(made, variants={PX: variants})


@torch.no_grad()
def measured_by_torch(base, images, seed):
    """The base's module with torch's own cumulative statistics of the batches that ``seed`` draws:
    momentum None, the mean over batches of each one's mean and unbiased variance."""
    module = copy.deepcopy(base.module).eval()
    for norm in (one for one in module.modules() if isinstance(one, NORMS)):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    device = torch.device("cpu")
    for batch in draw_statistics_batches(
        make_samples(images, PX, base, device), BATCH, seed, device
    ):
        module(batch)
    return module.eval()


def test_the_network_answers_as_the_base_with_measured_statistics_and_the_patchs_head(
    base, images, patch
):
    model = with_own_statistics(base, patch, images, PX, seed=5)
    pixels = images.at(PX, base.preprocessing)
    module = measured_by_torch(base, images, 5)
    features = torch.from_numpy(normalize_batch(pixels[:20], base.preprocessing))
    head = module.get_submodule(base.head_name)
    seen = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module(features)
        handle.remove()
        weight, bias = (
            torch.from_numpy(np.array(patch.tensors(PX)[f"{base.head_name}.{name}"]))
            for name in ("weight", "bias")
        )
        expected = seen[0] @ weight.T + bias
        got = model(features)
        plain = PatchedModel(base)
        plain.load_patch(patch)
        before = plain(features)
        other = with_own_statistics(base, patch, images, PX, seed=6)(features)
    # The same float32 operations, the last product summed in another order: about a thousand
    # terms, each rounded at 6e-8 of values below 10.
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)
    assert (got - before).abs().max() > 0.1
    assert not torch.allclose(other, expected, rtol=1e-4, atol=1e-3)


def test_the_base_is_left_as_it_was(base, images, patch):
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    with_own_statistics(base, patch, images, PX, seed=0)
    after = base.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_all_shared_is_tested_with_the_shared_statistics_and_with_those_of_each_resolution(
    monkeypatch,
):
    """A row of Table 5 in its quick form; measuring statistics changes nothing that is trained."""
    (cell,) = (one for one in table5_cells(True, 1) if one.row == "all shared")
    both = measure_sides(cell.settings, 0)
    assert both["top1"].keys() == both["top1_own_statistics"].keys() == {"48 px", "32 px"}
    assert both["top1"] != both["top1_own_statistics"]

    def untouched(base, patch, images, px, seed):
        model = PatchedModel(base)
        model.load_patch(patch)
        model.set_active_task(patch.task, px)
        return model

    monkeypatch.setattr(shared_tables, "with_own_statistics", untouched)
    same = measure_sides(cell.settings, 0)
    assert same["top1_own_statistics"] == same["top1"] == both["top1"]
    assert same["parameters"] == both["parameters"]
