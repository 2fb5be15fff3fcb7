"""What the probe of Table 6 writes into a network, and what it measures over its features."""

import copy
import math

import numpy as np
import pytest
import statistics_probe
import torch
from notes import ALL_NEW, EARLY, LATE, OLD, ONE_FACTOR
from statistics_probe import choose_layers, effective_rank, fit_last_layer, renormalize

from patchdeploy.base import Base


@pytest.fixture(scope="module")
def module():
    return Base.embedded().module


def norms_of(module):
    return {
        path: one for path, one in module.named_modules() if isinstance(one, torch.nn.BatchNorm2d)
    }


def outputs_of_norms(module, inputs):
    """What each normalisation gives, before its scale and bias: float64 [C, values]."""
    found = {}

    def keep(path):
        def hook(layer, _, out):
            plain = (out - layer.bias[:, None, None]) / layer.weight[:, None, None]
            found[path] = plain.transpose(0, 1).flatten(1).double()

        return hook

    handles = [one.register_forward_hook(keep(path)) for path, one in norms_of(module).items()]
    with torch.no_grad():
        module(inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_each_layer_is_measured_on_what_the_new_layers_before_it_give(module, inputs):
    new = copy.deepcopy(module)
    with torch.no_grad():
        renormalize(new, choose_layers(new, ALL_NEW), inputs, one_factor=False)
    eps = {path: one.eps for path, one in norms_of(new).items()}
    for path, values in outputs_of_norms(new, inputs).items():
        variance = new.get_submodule(path).running_var.double()
        # float32 sums of at most 16 * 32 * 32 values: 2^14 half units of 2^-24, 1e-3 at worst.
        assert values.mean(1).abs().max() < 2e-3, path
        expected = variance / (variance + eps[path])
        assert torch.allclose(values.var(1, correction=0), expected, rtol=1e-2, atol=1e-3), path


def test_one_factor_keeps_the_balance_of_the_channels_of_a_layer(module, inputs):
    new = copy.deepcopy(module)
    path = choose_layers(new, ONE_FACTOR)[3]
    with torch.no_grad():
        renormalize(new, [path], inputs, one_factor=True)
        every = copy.deepcopy(module)
        renormalize(every, [path], inputs, one_factor=False)
    old, one, own = (net.get_submodule(path) for net in (module, new, every))
    factors = one.running_var / old.running_var
    assert torch.allclose(factors, factors[0].expand_as(factors), rtol=1e-5)  # float32 products
    ratios = (own.running_var + own.eps) / (old.running_var + old.eps)
    assert math.isclose(factors[0], math.exp(torch.log(ratios).mean()), rel_tol=1e-5)
    assert torch.equal(one.running_mean, own.running_mean)


def test_rows_say_which_layers_are_measured_and_the_others_stay(module, inputs):
    every = choose_layers(module, ALL_NEW)
    assert choose_layers(module, OLD) == []
    assert choose_layers(module, EARLY) + choose_layers(module, LATE) == every
    assert len(every) == len(norms_of(module)) == 2 * len(choose_layers(module, EARLY))
    new = copy.deepcopy(module)
    with torch.no_grad():
        renormalize(new, choose_layers(new, LATE), inputs, one_factor=False)
    before, after = module.state_dict(), new.state_dict()
    late = tuple(f"{path}.running_" for path in choose_layers(module, LATE))
    for key, value in before.items():
        assert torch.equal(after[key], value) != key.startswith(late), key


def test_the_effective_rank_counts_directions_of_equal_variance():
    generator = np.random.default_rng(0)
    left = generator.normal(size=(200, 7))
    left -= left.mean(0)
    left = np.linalg.qr(left)[0]  # seven orthonormal directions without a mean
    right = np.linalg.qr(generator.normal(size=(50, 7)))[0]
    assert math.isclose(effective_rank(left @ right.T + 3.0), 7.0, rel_tol=1e-6)


def test_the_last_layer_is_fitted_on_training_features_alone():
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = np.eye(3)[labels] + 0.01 * generator.normal(size=(90, 3))
    parts = {"train": (features, labels), "held": (features, labels), "test": (-features, labels)}
    found = fit_last_layer(parts, 1.0)
    assert found["held"] == 1.0
    assert found["test"] == 0.0


def test_the_probes_cells_are_those_of_its_note():
    cells = statistics_probe.list_cells(3)
    assert len({cell.key for cell in cells}) == len(cells) == 3 * 3 * (5 + 2)
    assert {cell.row for cell in cells} == {OLD, ALL_NEW, ONE_FACTOR, EARLY, LATE}
