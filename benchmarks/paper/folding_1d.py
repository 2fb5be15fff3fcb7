"""Section 4 and Figure 2 of the paper, exactly: one bias changes how a network folds the line.

In: the folding network of equation (1), its first bias b0 and the segment [0.2, 0.4]. Out: the
exact ranges of b0 in which the segment's preimage has 4, 3, 2, 1 and 0 components, beside the
ranges that the paper states; the same for k = 3, 4, 5; Figure 2 with the preimage shaded.
Why: the paper's argument for patches is that a bias changes the topology of input -> embedding.

    python benchmarks/paper/folding_1d.py [--out docs/paper] [--quick]

Leaves <out>/folding_1d.png, <out>/folding_1d_counts.png and benchmarks/paper/results/
folding_1d.json (--results for another folder). Nothing is sampled: every number is a fraction.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from fractions import Fraction
from math import inf, isinf
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fold_piecewise import (
    REAL_LINE,
    End,
    Interval,
    Stage,
    count_components,
    evaluate_folds,
    find_breakpoints,
    find_stages,
    solve_preimage,
)

from patchdeploy.measure import describe_device
from patchdeploy.storage import write_atomic

RESULTS = Path(__file__).resolve().parent / "results"
TARGET = (Interval(Fraction(1, 5), Fraction(2, 5)),)
UNIT = Interval(Fraction(0), Fraction(1))
ZERO = (Fraction(0),) * 3  # p = 2: three biases a layer
PANELS = tuple(Fraction(n, 1000) for n in (0, -75, -125, -425, -475))  # Fig. 2, and an empty one
LINE, SHADE, SEGMENT = "#1b6ca8", "#f2c08a", "#c8693a"

# Section 4 as printed, from the lowest bias to the highest.
PAPER = (
    Stage(-inf, Fraction(-45, 100), False, False, 0),
    Stage(Fraction(-45, 100), Fraction(-40, 100), True, True, 1),
    Stage(Fraction(-40, 100), Fraction(-10, 100), False, True, 2),
    Stage(Fraction(-10, 100), Fraction(-5, 100), False, True, 3),
    Stage(Fraction(-5, 100), inf, False, False, 4),
)


def fold_layers(depth: int, bias: Fraction, width: int = 2) -> list[tuple[Fraction, ...]]:
    """k layers of p hidden units with every bias 0 except b_0 of the first."""
    zeros = (Fraction(0),) * (width + 1)
    return [(bias, *zeros[1:]), *[zeros] * (depth - 1)]


def solve_stages(
    depth: int, *, domain: Interval = REAL_LINE, count_points: bool = True, width: int = 2
) -> tuple[Stage, ...]:
    """Ranges of b_0 by the number of components of the preimage of [0.2, 0.4], k layers deep."""
    layers = fold_layers(depth, Fraction(0), width)
    return find_stages(layers, TARGET, domain=domain, count_points=count_points)


def describe_stage(stage: Stage) -> str:
    """A range of b_0 in words: ``[-0.45, -0.4]``."""
    left = "[" if stage.low_closed else "("
    right = "]" if stage.high_closed else ")"
    return f"{left}{_number(stage.low)}, {_number(stage.high)}{right}"


def table_lines(document: dict[str, Any]) -> list[str]:
    """The stages of k = 2 as a Markdown table: the paper's ranges beside the exact ones."""
    lines = [
        "| components | paper | exact, on all of R | points not counted | x in [0, 1] only |",
        "|---|---|---|---|---|",
    ]
    for row in document["stages"]:
        cells = (row["paper"], row["exact"], row["without_points"], row["unit_domain"])
        lines.append(f"| {row['components']} | {' | '.join(cells)} |")
    return lines


def measure(depths: Sequence[int]) -> dict[str, Any]:
    """Every exact number of section 4, as JSON."""
    columns = {
        "paper": PAPER,
        "exact": solve_stages(2),
        "without_points": solve_stages(2, count_points=False),
        "unit_domain": solve_stages(2, domain=UNIT),
    }
    stages = [
        {"components": n, **{name: _ranges(found, n) for name, found in columns.items()}}
        for n in (4, 3, 2, 1, 0)
    ]
    return {
        "stages": stages,
        "differs_from_paper": [row for row in stages if row["paper"] != row["exact"]],
        "panels": [_describe_panel(bias) for bias in PANELS],
        "deeper": [_describe_depth(depth) for depth in depths],
        "wider": [_describe_width(width, depth) for width, depth in ((4, 1), (4, 2), (4, 3))],
    }


def draw_figure_2(path: Path) -> None:
    """F(x) for the four biases of Figure 2 and one below -0.45, the preimage shaded."""
    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(13, 2.7), sharey=True, layout="constrained"
    )
    for axis, bias in zip(axes, PANELS, strict=True):
        layers = fold_layers(2, bias)
        points = sorted({*find_breakpoints(layers), Fraction(-1, 10), Fraction(11, 10)})
        preimage = solve_preimage(layers, TARGET)
        for part in preimage:
            axis.axvspan(float(part.low), float(part.high), color=SHADE, linewidth=0)
        for level in (TARGET[0].low, TARGET[0].high):
            axis.axhline(float(level), color=SEGMENT, linewidth=0.8, linestyle="--")
        axis.plot(
            [float(x) for x in points],
            [float(evaluate_folds(layers, x)) for x in points],
            color=LINE,
            linewidth=1.6,
        )
        count = count_components(preimage)
        noun = "component" if count == 1 else "components"
        axis.set_title(f"$b_0^{{(1)}}$ = {_number(bias)}: {count} {noun}", fontsize=10)
        axis.set(xlim=(-0.1, 1.1), ylim=(-0.04, 1.04), xlabel="x", yticks=(0, 0.2, 0.4, 1))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("F(x)")
    _save(figure, path)


def draw_counts(path: Path, depths: Sequence[int]) -> None:
    """Components against b_0 for several depths: every count from 2^k down to 0."""
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    low, high = -0.55, 0.05
    for depth, colour in zip(depths, ("#1b6ca8", "#c8693a", "#4f8f5b", "#7d5ba6"), strict=False):
        for k, stage in enumerate(solve_stages(depth)):
            ends = [max(low, float(stage.low)), min(high, float(stage.high))]
            label = f"k = {depth}: {2**depth} to 0" if k == 0 else None
            axis.plot(ends, [stage.components] * 2, color=colour, linewidth=2, label=label)
    axis.set_yscale("symlog", base=2, linthresh=1)
    ticks = (0, 1, 2, 4, 8, 16, 32)
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlim=(low, high), xlabel="$b_0^{(1)}$", ylabel="components of the preimage")
    axis.set_title("Components of the preimage of [0.2, 0.4], exact", fontsize=10)
    axis.legend(frameon=False, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _ranges(stages: Sequence[Stage], components: int) -> str:
    found = [describe_stage(stage) for stage in stages if stage.components == components]
    return " and ".join(found) or "never"


def _describe_panel(bias: Fraction) -> dict[str, Any]:
    preimage = solve_preimage(fold_layers(2, bias), TARGET)
    return {
        "bias": _number(bias),
        "components": len(preimage),
        "preimage": [[str(part.low), str(part.high)] for part in preimage],
    }


def _describe_depth(depth: int) -> dict[str, Any]:
    stages = solve_stages(depth)
    counts = [stage.components for stage in stages]
    return {
        "depth": depth,
        "counts": counts,
        "every_count_from_0_to_2_to_the_k": counts == list(range(2**depth + 1)),
        "ranges": [f"{describe_stage(stage)}: {stage.components}" for stage in stages],
    }


def _describe_width(width: int, depth: int) -> dict[str, Any]:
    layers = fold_layers(depth, Fraction(0), width)
    return {
        "width": width,
        "depth": depth,
        "components_at_zero_bias": len(solve_preimage(layers, TARGET)),
        "largest": max(stage.components for stage in solve_stages(depth, width=width)),
        "width_to_the_depth": width**depth,
    }


def _number(value: End) -> str:
    """A rational as a short decimal where it is one, else as a fraction."""
    if isinf(value):
        return "inf" if value > 0 else "-inf"
    exact = Fraction(value)
    return f"{float(exact):.10g}" if Fraction(f"{float(exact):.10g}") == exact else str(exact)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/paper"), help="pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON")
    parser.add_argument("--quick", action="store_true", help="k up to 3 only")
    arguments = parser.parse_args()
    depths = (2, 3) if arguments.quick else (2, 3, 4, 5)
    document = measure(depths)
    print("\n".join(table_lines(document)))
    for row in document["deeper"]:
        print(
            f"k = {row['depth']}: every count 0 .. 2^k: {row['every_count_from_0_to_2_to_the_k']}"
        )
    for row in document["wider"]:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    full = {"benchmark": "folding_1d", "device": describe_device(), **document}
    write_atomic(arguments.results / "folding_1d.json", json.dumps(full, indent=1).encode() + b"\n")
    draw_figure_2(arguments.out / "folding_1d.png")
    draw_counts(arguments.out / "folding_1d_counts.png", depths)


if __name__ == "__main__":
    main()
