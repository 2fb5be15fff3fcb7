"""Appendix A's network of two inputs: stacked training, what each column may change, folding."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind

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


def test_more_units_before_the_embedding_leave_the_layers_before_them_as_they_are():
    narrow, wide = (toy.make_networks(2, 4, seed=7, units=units) for units in (8, 16))
    default = toy.make_networks(2, 4, seed=7)
    assert all(torch.equal(default[key], value) for key, value in narrow.items())
    assert wide["weight3"].shape == (2, 16, 16)
    assert wide["weight4"].shape == (2, 16, 4)
    assert all(torch.equal(wide[key], narrow[key]) for key in ("weight0", "weight1", "weight2"))
    assert toy.logits(wide, toy.grid(3)).shape == (2, 9, 2)


def test_the_output_of_each_layer_is_what_the_next_one_reads():
    parameters = toy.make_networks(2, 4, seed=8)
    x = toy.grid(4)
    for layer in range(1, 5):
        before = toy.embed(parameters, x, layer)
        assert before.shape == (2, 16, toy.WIDTHS[layer])
        assert float(before.min()) == 0.0  # behind its ReLU
        after = before @ parameters[f"weight{layer}"] + parameters[f"bias{layer}"]
        after = after.relu() if layer < 4 else after
        # float32, sums of at most 17 terms below 100 in another order: 17 * 100 * 2^-24 = 1e-4.
        assert torch.allclose(toy.embed(parameters, x, layer + 1), after, rtol=0, atol=1e-4)


def loss(scores, targets):
    found = torch.nn.functional.binary_cross_entropy_with_logits(
        scores.double(), targets.double().expand(len(scores), -1, -1), reduction="none"
    )
    return found.mean((1, 2))


def test_no_training_of_the_logits_has_a_lower_loss_than_the_best_ones():
    points = toy.grid(12)
    targets = toy.targets_b(points)
    networks = toy.make_networks(3, 8, seed=9)
    features = toy.embed(networks, points)
    best = loss(toy.fit_best_logits(features, targets, features, most=500), targets)
    masks = {kind: torch.full((3, 1, 1), float(kind == "head")) for kind in KINDS}
    toy.train(networks, points, targets, masks, steps=500, rate=0.2)
    trained = loss(toy.logits(networks, points), targets)
    # The sum of loss and penalty is least, so the loss alone is above that of other logits by no
    # more than their penalty; 1e-6 for a search that stops at gradients of 1e-8.
    weights = networks["head_weight"] * features.std(1).unsqueeze(2)
    penalty = 1e-7 * (weights.double() ** 2).sum((1, 2))
    assert float((best - trained - penalty).sum()) <= 1e-6
    assert float(best.max()) < 0.5 * float(loss(torch.zeros(3, 144, 2), targets).max())


def test_the_best_logits_part_what_a_line_parts_and_cannot_unfold():
    points = toy.grid(20)
    targets = toy.two_classes(points[:, 0] > 0.1)
    flat = points.expand(2, -1, -1)
    answers = toy.fit_best_logits(flat, targets, flat, most=300).argmax(2)
    assert bool((answers == targets.argmax(1)).all())
    folded = toy.embed(folded_networks(3), points)
    targets = toy.targets_b(points)
    answers = toy.fit_best_logits(folded, targets, folded, most=300).argmax(2)
    most = 1 - float(toy.inside(points, 0).double().mean())
    assert float((answers == targets.argmax(1)).double().mean(1).max()) <= most


def test_a_difference_of_means_has_welchs_interval():
    base, other = (0.90, 0.94, 0.92, 0.93), (0.97, 0.99, 0.93, 0.95, 0.98)
    difference, margin, word = toy.compare(other, base)
    expected = ttest_ind(other, base, equal_var=False).confidence_interval(0.95)
    # Two ways to the same float64 figures below 10: a few units in the last place each.
    assert 100 * expected.low == pytest.approx(difference - margin, rel=1e-12)
    assert 100 * expected.high == pytest.approx(difference + margin, rel=1e-12)
    assert word == "more"
    assert toy.compare(base, other)[2] == "less"
    assert toy.compare(base, (0.90, 0.97, 0.91, 0.95))[2] == "undecided"
    assert toy.compare((0.5, 0.5), (0.5, 0.5)) == (0.0, 0.0, "undecided")


def made_up_probe(**better):
    """Twelve states a variant about 0.93; ``better`` by units or embedding is added."""
    states = np.linspace(0.92, 0.94, 12)
    variants = []
    for one in toy.VARIANTS:
        more = better.get(f"units{one.units}", 0.0) if one == toy.Variant(units=one.units) else 0.0
        variants.append({"title": one.title, "logits": [float(x) + more for x in states]})
    layers = [[0.9 + 0.01 * k] * 12 for k in range(5)]
    return {"variants": variants, "best logits by layer": layers}


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ({"units16": 0.06, "units32": 0.055}, "Yes"),  # ± 0.006, and 0.06 are missing
        ({"units16": 0.06, "units32": 0.05}, "In part"),
        ({"units16": 0.06}, "In part"),
        ({"units16": 0.04, "units32": -0.05}, "In part"),
        ({"units16": 0.001, "units32": 0.001}, "Undecided"),
    ],
)
def test_the_reason_is_given_as_far_as_wider_layers_bear_it_out(better, verdict):
    figure6 = {"pretrained (C) biases, scales": [0.99] * 3, "pretrained (E) logits": [0.935] * 3}
    lines = toy.explain(made_up_probe(**better), figure6)
    assert f"before the embedding the reason? {verdict}: of the 6.0 points" in lines[-1]
    assert "The choice among restarts adds +0.5 (best of all: 94.0)" in lines[-1]
    assert "give 92.0 ± 0.0 over the second layer of 16 units, 93.0 ± 0.0 over" in lines[-1]
    assert "can add +1.0" in lines[-1]
    (first,) = [line for line in lines if line.startswith("| 8 units, m = 8 |")]
    assert first == "| 8 units, m = 8 | 93.0 ± 0.7 |  | 0 of 12 |"
    if better.get("units32") == 0.05:
        (row,) = [line for line in lines if line.startswith("| 32 units, m = 8 |")]
        assert row.startswith("| 32 units, m = 8 | 98.0 ± 0.7 | +5.0 ± 0.6: more | 6 of 12")


def test_the_probe_alone_keeps_the_rest_of_the_file(tmp_path, monkeypatch):
    kept = json.loads((toy.RESULTS / "toy_2d.json").read_text())
    (tmp_path / "toy_2d.json").write_text(json.dumps({**kept, "probe": "old"}))
    monkeypatch.setattr(toy, "measure_probe", lambda seeds, steps: made_up_probe())
    monkeypatch.setattr(toy.torch, "set_num_threads", lambda count: None)
    folder = str(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["toy_2d.py", "--probe-only", "--out", folder, "--results", folder]
    )
    toy.main()
    found = json.loads((tmp_path / "toy_2d.json").read_text())
    assert found.pop("probe")["variants"] == made_up_probe()["variants"]
    kept.pop("probe", None)
    assert found == kept
    assert "| 8 units, m = 8 | 93.0 ± 0.7 |" in (tmp_path / "toy_2d.md").read_text()


def test_the_committed_probe_began_from_the_networks_of_figure_6_and_made_the_page():
    kept = json.loads((toy.RESULTS / "toy_2d.json").read_text())
    probe, count = kept["probe"], kept["seeds"] * toy.RESTARTS
    assert (probe["seeds"], probe["steps"]) == (kept["seeds"], kept["steps"])
    assert [one["title"] for one in probe["variants"]] == [one.title for one in toy.VARIANTS]
    assert all(len(one["logits"]) == count for one in probe["variants"])
    (figure6,) = [one for one in kept["dimensions"] if one["embedding"] == 8]
    by_seed = np.reshape(probe["variants"][0]["logits"], (kept["seeds"], toy.RESTARTS))
    for chosen, states in zip(figure6["pretrained (E) logits"], by_seed, strict=True):
        assert chosen in states
    page = ROOT / "docs" / "paper" / "toy_2d.md"
    assert page.read_text() == toy.describe(kept)


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
    probe = document["probe"]
    assert [one["title"] for one in probe["variants"]] == [one.title for one in toy.VARIANTS]
    assert all(len(one["logits"]) == 2 * toy.RESTARTS for one in probe["variants"])
    assert [len(one) for one in probe["best logits by layer"]] == [2 * toy.RESTARTS] * 5
    page = (tmp_path / "pictures" / "toy_2d.md").read_text()
    assert all(f"| {one.title} |" in page for one in toy.VARIANTS)
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
