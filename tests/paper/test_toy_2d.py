"""Appendix A's network of two inputs: stacked training, what each column may change, folding."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "paper"))
toy = importlib.import_module("toy_2d")

KINDS = ("weight", "bias", "scale", "head")


# Appendix A, by column; "all" is (d).
LEARNED = {
    "(d)": {"weight", "bias", "scale", "head"},
    "(A)": {"bias"},
    "(B)": {"scale"},
    "(C)": {"bias", "scale"},
    "(D)": {"bias", "scale", "head"},
    "(E)": {"head"},
}


def kind_of(name):
    return next(kind for kind in KINDS if name.startswith(kind))


def double(parameters):
    return {key: value.double() for key, value in parameters.items()}


def mirrored(points):
    return points * torch.tensor([-1.0, 1.0])


def folded_networks(count):
    """Networks of |x| and y alone: the units of the first layer come in mirrored pairs."""
    made = toy.make_networks(count, 2, seed=5)
    made["weight0"][:, 0, 4:] = -made["weight0"][:, 0, :4]
    made["weight0"][:, 1, 4:] = made["weight0"][:, 1, :4]
    made["bias0"][:, :, 4:] = made["bias0"][:, :, :4]
    made["weight1"][:, 4:] = made["weight1"][:, :4]
    return made


def test_a_network_computes_scale_times_product_plus_bias_with_relu_between():
    parameters = double(toy.make_networks(3, 4, seed=1))
    generator = torch.Generator().manual_seed(2)
    for key, value in parameters.items():
        if key.startswith(("scale", "bias")):
            value += torch.randn(value.shape, generator=generator, dtype=torch.float64)
    x = toy.grid(5).double()
    found = toy.logits(parameters, x)
    for n in range(3):
        y = x
        for k in range(5):
            y = parameters[f"scale{k}"][n] * (y @ parameters[f"weight{k}"][n])
            y = y + parameters[f"bias{k}"][n]
            y = y.clamp(min=0) if k < 4 else y
        y = y @ parameters["head_weight"][n] + parameters["head_bias"][n]
        # float64, six products of at most 16 terms and values below 1e4: 6 * 17 * 1e4 * 2^-53
        # is 1.2e-10.
        assert torch.allclose(found[n], y, rtol=0, atol=2e-10)


@given(st.integers(0, 3), st.floats(0.25, 4.0), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_scale_that_the_next_layer_divides_out_changes_nothing(layer, factor, seed):
    parameters = double(toy.make_networks(2, 2, seed=seed))
    x = toy.grid(4).double()
    before = toy.logits(parameters, x)
    parameters[f"scale{layer}"] *= factor  # ReLU(c z) = c ReLU(z) for c > 0
    parameters[f"bias{layer}"] *= factor
    changed = toy.logits(parameters, x)
    parameters[f"weight{layer + 1}"] /= factor
    after = toy.logits(parameters, x)
    # float64 as above: six layers, values below 1e4.
    assert torch.allclose(after, before, rtol=0, atol=2e-10)
    if abs(factor - 1) > 0.01:
        assert not torch.allclose(changed, before, rtol=0, atol=1e-6)


def test_each_column_changes_its_own_parameters_and_no_others():
    seeds, points = 2, toy.grid(8)
    starts = toy.make_networks(seeds, 4, seed=3)
    tuned = toy.fine_tune(starts, points, toy.targets_b(points), steps=3)
    assert [column[:3] for column in toy.SETS] == list(LEARNED)
    for k, (column, kinds) in enumerate(LEARNED.items()):
        for n in range(seeds):
            changed = {
                kind_of(key)
                for key, value in tuned.items()
                if not torch.equal(value[k * seeds + n], starts[key][n])
            }
            assert changed == kinds, column


def test_fine_tuning_leaves_its_start_as_it_was():
    starts = toy.make_networks(1, 2, seed=4)
    kept = {key: value.clone() for key, value in starts.items()}
    points = toy.grid(6)
    toy.fine_tune(starts, points, toy.targets_b(points), steps=2)
    assert all(torch.equal(starts[key], value) for key, value in kept.items())


def test_networks_trained_together_learn_what_each_learns_alone():
    points = toy.grid(8).double()
    targets = toy.targets_a(toy.grid(8)).double()
    together = double(toy.make_networks(3, 2, seed=6))
    alone = [toy.choose(together, [n]) for n in range(3)]
    steps = 5
    toy.train(together, points, targets, toy.all_kinds(3), steps)
    for n, network in enumerate(alone):
        toy.train(network, points, targets, toy.all_kinds(1), steps)
        for key, value in network.items():
            # Sums in another order differ by about 1e-16; Adam divides by |gradient| + 1e-8, so an
            # update differs by at most rate * 1e-8 = 2e-10, five updates by 1e-9; room for 10.
            assert torch.allclose(together[key][n], value[0], rtol=0, atol=1e-8), key


def test_the_discs_are_mirror_images_and_the_new_classes_keep_one():
    points = toy.grid(toy.SHOW_SIDE)
    left, right = toy.inside(points, 0), toy.inside(points, 1)
    assert torch.equal(left, toy.inside(mirrored(points), 1))
    assert not (left & right).any()
    assert torch.equal(toy.targets_a(points)[:, 0].bool(), left | right)
    assert torch.equal(toy.targets_b(points)[:, 0].bool(), left)
    # The disc covers pi r^2 / 4 of the square. Its edge, 2 pi r long, passes at most about
    # 2 sqrt(2) * 2 pi r / h cells of side h, and half of each at most is counted wrongly.
    share, cell = 3.141593 * toy.RADIUS**2 / 4, 2 / toy.SHOW_SIDE
    bound = 2**0.5 * 2 * 3.141593 * toy.RADIUS * cell / 4
    assert float(left.double().mean()) == pytest.approx(share, abs=bound)


def test_the_last_layer_cannot_unfold_what_the_network_folded():
    points = toy.grid(20)
    targets = toy.targets_b(points)
    networks = folded_networks(3)
    masks = {kind: torch.full((3, 1, 1), float(kind == "head")) for kind in KINDS}
    toy.train(networks, points, targets, masks, steps=200)
    scores = toy.logits(networks, points)
    # Exact in real numbers; in float32 six layers of sums below 100 in another order differ by
    # less than 6 * 17 * 100 * 2^-24 = 6e-4.
    assert torch.allclose(scores, toy.logits(networks, mirrored(points)), rtol=0, atol=1e-3)
    # Of a point in the left disc and its image in the right one, one answer is wrong.
    most = 1 - float(toy.inside(points, 0).double().mean())
    assert max(toy.accuracy(networks, points, targets)) <= most


def test_biases_and_scales_unfold_what_the_network_folded():
    points = toy.grid(20)
    targets = toy.targets_b(points)
    networks = folded_networks(4)
    masks = {kind: torch.full((4, 1, 1), float(kind in ("bias", "scale"))) for kind in KINDS}
    toy.train(networks, points, targets, masks, steps=400)
    most_when_folded = 1 - float(toy.inside(points, 0).double().mean())
    assert max(toy.accuracy(networks, points, targets)) > most_when_folded + 0.02


def test_a_quick_run_writes_every_column_and_picture(tmp_path, monkeypatch):
    command = ["toy_2d.py", "--quick", "--seeds", "2", "--out", str(tmp_path / "pictures")]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        toy.main()
    finally:
        torch.set_num_threads(threads)
    document = json.loads((tmp_path / "toy_2d.json").read_text())
    assert document["quick"] is True
    assert [one["embedding"] for one in document["dimensions"]] == [2, 4, 8]
    for one in document["dimensions"]:
        for start in ("pretrained", "random"):
            assert {f"{start} {name}" for name in toy.SETS} <= set(one)
            assert all(len(one[f"{start} {name}"]) == 2 for name in toy.SETS)
    page = (tmp_path / "pictures" / "toy_2d.md").read_text()
    assert all(name in page for name in toy.SETS)
    for name in ("toy_2d_m2", "toy_2d_m4", "toy_2d_m8", "toy_2d_embedding"):
        assert (tmp_path / "pictures" / f"{name}.png").stat().st_size > 10_000
        assert f"(paper/{name}.png)" in page


def test_one_seed_is_refused_for_it_has_no_spread(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy_2d.py", "--seeds", "1"])
    with pytest.raises(SystemExit) as caught:
        toy.main()
    assert caught.value.code == 2
    assert "--seeds must be 2 or more: the page shows a spread" in capsys.readouterr().err
