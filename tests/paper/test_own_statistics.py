"""Statistics measured again change nothing else, and see all classes in each batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from own_statistics import BATCH, mixed_batches, with_own_statistics
from transfer_cell import draw

from patchdeploy.base import Base
from patchdeploy.base.statistics import measure_statistics
from patchdeploy.data import load_packaged, normalize_batch
from patchdeploy.patch import PatchConfig
from patchdeploy.patched_model import PatchedModel

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


def test_each_batch_spans_the_set_and_all_images_are_seen_once(base, images):
    batches = list(mixed_batches(base, images, PX))
    assert [len(one) for one in batches] == [50, 50, 50, 50]
    assert max(len(one) for one in batches) <= BATCH
    expected = normalize_batch(images.at(PX, base.preprocessing), base.preprocessing)
    assert np.array_equal(batches[1].numpy(), expected[1::4])
    for first in range(4):
        assert len(set(images.labels[first::4])) == len(images.classes)


def test_the_network_answers_as_the_base_with_measured_statistics_and_the_patchs_head(
    base, images, patch
):
    model = with_own_statistics(base, patch, images, PX)
    pixels = images.at(PX, base.preprocessing)
    module = measure_statistics(base.module, base.preprocessing, pixels)
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
    # The same float32 operations, the last product summed in another order: about a thousand
    # terms, each rounded at 6e-8 of values below 10.
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)
    assert (got - before).abs().max() > 0.1


def test_the_base_is_left_as_it_was(base, images, patch):
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    with_own_statistics(base, patch, images, PX)
    after = base.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
