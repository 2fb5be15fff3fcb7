#!/usr/bin/env python
"""Appendix A, Figures 4 to 7: which parameters can re-teach a network of two inputs.

In: the network 2 -> 8 -> 16 -> 16 -> 8 (ReLU) -> m (embedding) -> 2 logits with sigmoid and cross
entropy, and classes drawn on a square. Out: the functions learned from scratch and after
fine-tuning (A) biases, (B) scales, (C) both, (D) logits too, (E) logits alone, from the pretrained
state and from a random one; accuracies over seeds; the pictures.

The paper's classes are only in its pictures. Here (a) is "inside either of two discs", which folds
the discs onto each other; (b) is "inside the left disc", which must take them apart again.

    python benchmarks/paper/toy_2d.py [--out docs/paper] [--seeds 3] [--quick]

All runs of one embedding dimension are trained at once, their parameters stacked.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import matplotlib
import numpy as np
import torch
from torch import Tensor

from patchdeploy.measure import describe_device
from patchdeploy.storage import write_atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"
DIMENSIONS = {2: "4", 4: "5", 8: "6"}  # embedding -> the paper's figure
WIDTHS = (2, 8, 16, 16, 8)
RESTARTS = 4  # pretrained states a seed; the one with the lowest training loss is used
TRAIN_SIDE, SHOW_SIDE = 28, 80
RADIUS, CENTRES = 0.32, ((-0.5, 0.0), (0.5, 0.0))
SETS = {
    "(d) all": ("weight", "bias", "scale", "head"),
    "(A) biases": ("bias",),
    "(B) scales": ("scale",),
    "(C) biases, scales": ("bias", "scale"),
    "(D) logits, biases, scales": ("bias", "scale", "head"),
    "(E) logits": ("head",),
}
Parameters = dict[str, Tensor]


def grid(side: int) -> Tensor:
    """float32 [side * side, 2]: centres of cells of the square [-1, 1]^2."""
    line = (torch.arange(side) + 0.5) * (2.0 / side) - 1.0
    return torch.cartesian_prod(line, line).flip(1)


def inside(points: Tensor, disc: int) -> Tensor:
    """bool [N]: in the left (0) or right (1) disc."""
    return ((points - torch.tensor(CENTRES[disc])) ** 2).sum(1) < RADIUS**2


def two_classes(member: Tensor) -> Tensor:
    """float32 [N, 2]: a logit for members and one for the rest."""
    return torch.stack([member, ~member], 1).float()


def targets_a(points: Tensor) -> Tensor:
    """Fig. 4 (a): either disc."""
    return two_classes(inside(points, 0) | inside(points, 1))


def targets_b(points: Tensor) -> Tensor:
    """Fig. 4 (b): the left disc alone."""
    return two_classes(inside(points, 0))


def targets_apart(points: Tensor) -> Tensor:
    """Fig. 7 (b): a logit for each disc, which breaks the symmetry."""
    return torch.stack([inside(points, 0), inside(points, 1)], 1).float()


def make_networks(count: int, embedding: int, seed: int) -> Parameters:
    """``count`` random networks, stacked: weights from He's normal distribution, scale 1, bias
    small.
    """
    generator = torch.Generator().manual_seed(seed)
    made: Parameters = {}
    widths = (*WIDTHS, embedding)
    for k, (inputs, outputs) in enumerate(pairwise(widths)):
        spread = (2.0 / inputs) ** 0.5
        made[f"weight{k}"] = spread * torch.randn(count, inputs, outputs, generator=generator)
        made[f"bias{k}"] = 0.1 * torch.randn(count, 1, outputs, generator=generator)
        made[f"scale{k}"] = torch.ones(count, 1, outputs)
    made["head_weight"] = torch.randn(count, embedding, 2, generator=generator) / embedding**0.5
    made["head_bias"] = torch.zeros(count, 1, 2)
    return made


def embed(parameters: Mapping[str, Tensor], points: Tensor) -> Tensor:
    """[count, N, m]: y = scale * (x W) + bias at each layer, ReLU between, none on the last."""
    layers = len(WIDTHS)
    x = points.expand(parameters["bias0"].shape[0], -1, -1)
    for k in range(layers):
        x = torch.baddbmm(
            parameters[f"bias{k}"], x, parameters[f"weight{k}"] * parameters[f"scale{k}"]
        )
        if k < layers - 1:
            x = torch.relu(x)
    return x


def logits(parameters: Mapping[str, Tensor], points: Tensor) -> Tensor:
    """[count, N, 2]."""
    return torch.baddbmm(
        parameters["head_bias"], embed(parameters, points), parameters["head_weight"]
    )


def train(
    start: Parameters,
    points: Tensor,
    targets: Tensor,
    masks: Mapping[str, Tensor],
    steps: int,
    rate: float = 0.02,
) -> Tensor:
    """Adam with a cosine on all points, in place; ``masks`` [count, 1, 1] by the parameter's kind
    is 1 where a network learns that kind. Returns each network's last loss.
    """
    tensors = {key: value.requires_grad_(True) for key, value in start.items()}
    optimizer = torch.optim.Adam(list(tensors.values()), lr=rate)
    goal = targets.expand(len(start["bias0"]), -1, -1)
    losses = torch.zeros(len(goal))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits(tensors, points), goal, reduction="none"
        ).mean((1, 2))
        optimizer.zero_grad()
        losses.sum().backward()
        for key, value in tensors.items():
            assert value.grad is not None
            value.grad *= masks[key.rstrip("0123456789").partition("_")[0]]
        optimizer.step()
    for value in tensors.values():
        value.requires_grad_(False)
    return losses.detach()


def all_kinds(count: int) -> dict[str, Tensor]:
    """Every network learns everything."""
    return {kind: torch.ones(count, 1, 1) for kind in ("weight", "bias", "scale", "head")}


def choose(parameters: Parameters, which: Sequence[int]) -> Parameters:
    """Copies of some of the stacked networks."""
    return {key: value[list(which)].clone() for key, value in parameters.items()}


def pretrain(
    embedding: int, seeds: int, points: Tensor, targets: Tensor, steps: int
) -> tuple[Parameters, Parameters]:
    """(pretrained, random) networks, one a seed: the best of RESTARTS by training loss."""
    many = make_networks(seeds * RESTARTS, embedding, seed=embedding)
    losses = train(many, points, targets, all_kinds(seeds * RESTARTS), steps)
    best = losses.reshape(seeds, RESTARTS).argmin(1) + RESTARTS * torch.arange(seeds)
    return choose(many, best.tolist()), make_networks(seeds, embedding, seed=1000 + embedding)


def fine_tune(starts: Parameters, points: Tensor, targets: Tensor, steps: int) -> Parameters:
    """Each of ``starts`` with each of SETS trained: [sets * seeds] networks, set by set."""
    seeds = len(starts["bias0"])
    many = {key: value.repeat(len(SETS), 1, 1) for key, value in starts.items()}
    masks = {
        kind: torch.tensor([float(kind in kinds) for kinds in SETS.values()])
        .repeat_interleave(seeds)
        .reshape(-1, 1, 1)
        for kind in ("weight", "bias", "scale", "head")
    }
    train(many, points, targets, masks, steps)
    return many


def accuracy(parameters: Parameters, points: Tensor, targets: Tensor) -> list[float]:
    """Share of points whose larger logit is the right one, for each network."""
    answers = logits(parameters, points).argmax(2)
    return [float(one) for one in (answers == targets.argmax(1)).double().mean(1)]


def measure_dimension(embedding: int, seeds: int, steps: int) -> tuple[dict[str, Any], Parameters]:
    """Figure 4, 5 or 6: accuracies by column and start, and the functions to draw."""
    points, shown = grid(TRAIN_SIDE), grid(SHOW_SIDE)
    pretrained, random = pretrain(embedding, seeds, points, targets_a(points), steps)
    result: dict[str, Any] = {
        "embedding": embedding,
        "(c) learned": accuracy(pretrained, shown, targets_a(shown)),
    }
    functions = {"(c) learned": torch.sigmoid(logits(pretrained, shown)[0, :, 0])}
    for start, networks in (("pretrained", pretrained), ("random", random)):
        tuned = fine_tune(networks, points, targets_b(points), steps)
        scores = accuracy(tuned, shown, targets_b(shown))
        first = torch.sigmoid(logits(tuned, shown)[..., 0])
        for k, name in enumerate(SETS):
            result[f"{start} {name}"] = scores[k * seeds : (k + 1) * seeds]
            functions[f"{start} {name}"] = first[k * seeds]
    return result, functions


def measure_embedding(seeds: int, steps: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Figure 7: the last layer alone on the folded embedding, and on one that was not folded."""
    points, shown = grid(TRAIN_SIDE), grid(SHOW_SIDE)
    wanted = {
        "(d) both discs": lambda at: two_classes(inside(at, 0) | inside(at, 1)),
        "(e) the left disc": targets_b,
        "(f) the right disc": lambda at: two_classes(inside(at, 1)),
    }
    result: dict[str, Any] = {}
    pictures: dict[str, Tensor] = {}
    for name, classes in (("folded", targets_a), ("apart", targets_apart)):
        networks, _ = pretrain(2, seeds, points, classes(points), steps)
        pictures[f"{name} embedding"] = embed(networks, shown)[0]
        for label, new in wanted.items():
            tuned = choose(networks, range(seeds))
            masks = {**dict.fromkeys(("weight", "bias", "scale"), torch.zeros(seeds, 1, 1))}
            train(tuned, points, new(points), {**masks, "head": torch.ones(seeds, 1, 1)}, steps)
            result[f"{name} {label}"] = accuracy(tuned, shown, new(shown))
            pictures[f"{name} {label}"] = torch.sigmoid(logits(tuned, shown)[0, :, 0])
    return result, pictures


def image(axes: Any, values: Tensor, title: str) -> None:
    """A function on the square."""
    side = round(len(values) ** 0.5)
    axes.imshow(values.reshape(side, side).numpy(), origin="lower", vmin=0, vmax=1, cmap="viridis")
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def mean_percent(values: Sequence[float]) -> str:
    """Mean over seeds, one decimal."""
    return f"{100 * float(np.mean(values)):.1f} %"


def draw_dimension(result: Mapping[str, Any], functions: Mapping[str, Tensor], path: Path) -> None:
    """The paper's Figure 4, 5 or 6: functions of the first seed, mean accuracies over seeds."""
    shown = grid(SHOW_SIDE)
    figure, panels = plt.subplots(2, 8, figsize=(14.5, 4.2), dpi=100, layout="constrained")
    image(panels[0, 0], targets_a(shown)[:, 0], "(a) first classes")
    image(panels[1, 0], targets_b(shown)[:, 0], "(b) new classes")
    image(
        panels[0, 1], functions["(c) learned"], f"(c) learned {mean_percent(result['(c) learned'])}"
    )
    panels[1, 1].axis("off")
    for row, start in enumerate(("pretrained", "random")):
        for k, name in enumerate(SETS):
            key = f"{start} {name}"
            image(panels[row, 2 + k], functions[key], f"{name}\n{mean_percent(result[key])}")
        panels[row, 2].set_ylabel(f"from {start}", fontsize=8)
    save(figure, path)


def draw_embedding(result: Mapping[str, Any], pictures: Mapping[str, Tensor], path: Path) -> None:
    """The paper's Figure 7, for the folded embedding (top) and the other one."""
    shown = grid(SHOW_SIDE)
    colour = inside(shown, 0).int() + 2 * inside(shown, 1).int()
    figure, panels = plt.subplots(2, 5, figsize=(11.5, 4.6), dpi=100, layout="constrained")
    for row, (name, classes) in enumerate(
        (("folded", targets_a(shown)[:, 0]), ("apart", colour.float() / 2))
    ):
        image(panels[row, 0], classes, "trained on" + (" (a)" if row == 0 else " (b)"))
        at = pictures[f"{name} embedding"]
        for value, label, shade in (
            (0, "outside", "#c9ccd1"), (1, "left disc", "#1b6ca8"), (2, "right disc", "#c8693a"),
        ):  # fmt: skip
            members = colour == value
            panels[row, 1].scatter(
                at[members, 0], at[members, 1], s=2, c=shade, label=label, alpha=0.3
            )
        panels[row, 1].set_title("embedding", fontsize=8)
        panels[row, 1].legend(fontsize=6, markerscale=3, frameon=False)
        keys = [key for key in result if key.startswith(f"{name} ")]
        for k, key in enumerate(keys):
            title = key.removeprefix(f"{name} ")
            image(panels[row, 2 + k], pictures[key], f"{title}\n{mean_percent(result[key])}")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    print(f"wrote {path}")


def describe(results: Mapping[str, Any]) -> str:
    """The fragment of docs/paper.md."""
    points = grid(SHOW_SIDE)
    background = 100 * float((~inside(points, 0)).double().mean())
    lines = [
        "## Appendix A, Fig. 4 to 7: the network of two inputs",
        "",
        "Test accuracy in % on a grid, mean ± standard deviation over seeds. The paper's classes "
        "are only in its pictures; ours: first either of two discs, then the left disc alone. "
        f"Answering 'outside' everywhere scores {background:.1f}, so a figure near that shows a "
        "disc that was not found; at m = 2 the logits alone are no better.",
        "",
        "The layers are those that the paper lists (8, 16, 16, 8 with ReLU, then m). A pretrained "
        f"state is the best of {RESTARTS} by training loss, and every column has the same rate. "
        "For Fig. 7 (b) each disc has a logit of its own; the paper's two classes are not known.",
        "",
        "| embedding, start | " + " | ".join(SETS) + " |",
        "|---|" + "---|" * len(SETS),
    ]
    for one in results["dimensions"]:
        for start in ("pretrained", "random"):
            texts = []
            for name in SETS:
                values = one[f"{start} {name}"]
                texts.append(f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}")
            lines.append(f"| m = {one['embedding']}, {start} | " + " | ".join(texts) + " |")
    lines += ["", "| last layer alone, m = 2, on | folded | apart |", "|---|---|---|"]
    for label in ("(d) both discs", "(e) the left disc", "(f) the right disc"):
        texts = []
        for name in ("folded", "apart"):
            values = results["embedding"][f"{name} {label}"]
            texts.append(f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}")
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
    lines += ["", "| the paper says | found |", "|---|---|", *judge(results["dimensions"])]
    names = ("toy_2d_m2", "toy_2d_m4", "toy_2d_m8", "toy_2d_embedding")
    figures = ("Figure 4", "Figure 5", "Figure 6", "Figure 7")
    for name, title in zip(names, figures, strict=True):
        lines += ["", f"![{title}](paper/{name}.png)"]
    return "\n".join(lines) + "\n"


def judge(dimensions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the paper says of Fig. 4 to 6, beside the gap in points that decides it: a gap is there
    where its mean over seeds is above its standard deviation.
    """
    patch, last, both = "(C) biases, scales", "(E) logits", "(D) logits, biases, scales"
    rows = []
    for one in dimensions:
        gaps = 100 * (np.array(one[f"pretrained {patch}"]) - np.array(one[f"pretrained {last}"]))
        expected = one["embedding"] < 8
        claim = "is not enough" if expected else "eventually is acceptable"
        holds = (gaps.mean() > gaps.std(ddof=1)) == expected
        rows.append(
            f"| m = {one['embedding']}: training logits alone {claim} | "
            f"{'yes' if holds else 'no'}: biases and scales are {gaps.mean():+.1f} ± "
            f"{gaps.std(ddof=1):.1f} better |"
        )
    rows.append(
        "| m = 8: a reason, not tested: the layer before the embedding has 8 units, so m = 8 "
        "keeps no more of the input than m = 4 might | |"
    )
    for one in dimensions:
        gaps = 100 * (np.array(one[f"random {both}"]) - np.array(one["random (d) all"]))
        rows.append(
            f"| m = {one['embedding']}, from random: biases, scales and logits together do best | "
            f"{gaps.mean():+.1f} ± {gaps.std(ddof=1):.1f} against training everything |"
        )
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/paper"), help="pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps: no result")
    parser.add_argument("--page-only", action="store_true", help="rewrite the page's fragment")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be 2 or more: the page shows a spread")
    if arguments.page_only:
        kept = json.loads((arguments.results / "toy_2d.json").read_text())
        write_atomic(arguments.out / "toy_2d.md", describe(kept).encode())
        return
    torch.set_num_threads(1)
    steps = 60 if arguments.quick else 2000
    dimensions = []
    for embedding in DIMENSIONS:
        result, functions = measure_dimension(embedding, arguments.seeds, steps)
        dimensions.append(result)
        draw_dimension(result, functions, arguments.out / f"toy_2d_m{embedding}.png")
        for key, values in result.items():
            if key != "embedding":
                print(f"m = {embedding}: {key}: {mean_percent(values)}", flush=True)
    embedding_result, pictures = measure_embedding(arguments.seeds, steps)
    draw_embedding(embedding_result, pictures, arguments.out / "toy_2d_embedding.png")
    for key, values in embedding_result.items():
        print(f"{key}: {mean_percent(values)}", flush=True)
    results = {"dimensions": dimensions, "embedding": embedding_result}
    full = {"benchmark": "toy_2d", "seeds": arguments.seeds, "steps": steps}
    full |= {"quick": arguments.quick, "device": describe_device(), **results}
    write_atomic(arguments.results / "toy_2d.json", json.dumps(full, indent=1).encode() + b"\n")
    write_atomic(arguments.out / "toy_2d.md", describe(results).encode())


if __name__ == "__main__":
    main()
