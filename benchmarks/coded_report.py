"""Tables, goals and the picture of patch_bytes.py.

In: its records. Out: Markdown, `Goal` rows, a PNG. Gaps are means over tasks of paired differences
on test images, in points, with their standard error; negative is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from results import OTHER, OURS, PEER, STANDALONE, Goal, new_figure

from patchdeploy.storage import write_atomic

Record = Mapping[str, Any]
APPLY = "decode and apply, tflite"
TRUST = """## How far to trust it

- One seed. Errors are of the test images alone; another training would differ by more.
- A tenth of a point is less than these errors: such goals say *undecided* within two of them.
- *surfaces*: its held-out crops overlap its training crops (both come from the same parts of the
  photographs), so steps chosen on them are too coarse: see its test nats. The other sets have
  held-out images of their own.
- The coding was developed on the held-out images of *digits*. For the further resolution *shared*
  was chosen of seven ways (biases alone at three rates, fewer epochs at a smaller rate,
  distillation from the first resolution) by the held-out images of *digits* and
  *optical_digits*; two settings before it had their test accuracies seen. There and on the
  held-out images of *fashion* and *surfaces* it was not below plain in top-1 at 64 px; its
  cross-entropy was 0.005, 0.020, -0.019 and 0.0003 nats above plain's. Penalty and rounding step
  were not searched.
- *compact* is trained with one penalty for all tasks: it halves the bytes, and what that costs is
  in the goals below, most of it at the further resolution, which learns biases alone. Where that
  is too much, a smaller `size_penalty` lies between it and *shared*; none was tried here.
- Compare rows at equal nats, not at equal top-1: neighbouring top-1 values differ by chance."""
REFERENCES = (("its uncoded int8 values", "to_uncoded"), ("its float patch", "to_float"))


@dataclass(frozen=True)
class UncertainGoal(Goal):
    """A goal whose value is an estimate; within two standard errors of its limit it is undecided.

    Attributes:
        error: one standard error of ``value``.
    """

    error: float = 0.0

    @property
    def verdict(self) -> str:
        if self.value is not None and abs(self.value - self.limit) < 2 * self.error:
            return "undecided"
        return super().verdict


def of_way(records: Sequence[Record], way: str) -> list[Record]:
    """The records of one way to train, in the order of the tasks."""
    return [record for record in records if record["way"] == way]


def mean_gap(gaps: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Mean over tasks, and its standard error from the tasks' own."""
    count = len(gaps)
    error = math.sqrt(sum(one["error"] ** 2 for one in gaps)) / count
    return sum(one["points"] for one in gaps) / count, error


def list_goals(records: Sequence[Record], times: Mapping[str, Any]) -> list[Goal]:
    """The issue's limits; a mean over tasks says so."""
    goals = []
    for way, limit in (("plain", 16_000), ("shared", 16_000), ("compact", 10_000)):
        chosen = of_way(records, way)
        sizes = [record["choice"]["bytes"][0]["scale_bias"] for record in chosen]
        goals.append(
            Goal(f"{way}: scales and biases, largest of the tasks, bytes", max(sizes), limit)
        )
        for name, key in (
            ("its uncoded int8 values", "to_uncoded"),
            ("its float patch", "to_float"),
        ):
            points, error = mean_gap([_first_test(record)[key] for record in chosen])
            what = f"{way}: points lost to {name}, mean over tasks (± {error:.2f})"
            goals.append(UncertainGoal(what, -points, 0.1, error))
        if way == "compact":
            lost, error = _lost_to_plain(records, way)
            what = f"{way}: points lost to plain's float patch, mean over tasks (± {error:.2f})"
            goals.append(UncertainGoal(what, lost, 0.1, error))
    heads = [record["choice"]["bytes"][0]["head"] for record in records if record["classes"] == 10]
    goals.append(Goal("head of 10 classes, largest, bytes", max(heads, default=None), 8_000))
    for way in ("plain", "shared", "compact"):
        shares = [share for one in of_way(records, way) for share in one["choice"]["further_share"]]
        what = f"{way}: a further resolution over the first, largest, %"
        goals.append(Goal(what, 100 * max(shares), 60))
    for way in ("shared", "compact"):
        lost, error = _lost_further(records, way)
        what = f"{way}: points lost at the last resolution to plain's float patch (± {error:.2f})"
        goals.append(UncertainGoal(what, lost, 0.1, error))
        lost, error = _lost_by_training(records, way)
        what = f"{way}: the same, before either is coded, paired by image (± {error:.2f})"
        goals.append(UncertainGoal(what, lost, 0.1, error))
    median = times["candidates"][APPLY]["median_ms"]
    goals.append(Goal("decode and apply one resolution, median, ms", median, 5))
    return goals


def _first_test(record: Record) -> Record:
    """Of the default budget, at the first resolution."""
    found: Record = record["choice"]["test"][str(record["plan"]["sides"][0])]
    return found


def _lost_to_plain(records: Sequence[Record], way: str) -> tuple[float, float]:
    """Decoded, against plain's float patch, at the first resolution."""
    return _lost_in_pairs(
        (plain["float_right"], other["choice"]["right"])
        for plain, other in zip(of_way(records, "plain"), of_way(records, way), strict=True)
    )


def _lost_by_training(records: Sequence[Record], way: str) -> tuple[float, float]:
    """Float patch against plain's float patch, at the last resolution."""
    return _lost_in_pairs(
        (plain["last_float_right"], other["last_float_right"])
        for plain, other in zip(of_way(records, "plain"), of_way(records, way), strict=True)
    )


def _lost_in_pairs(pairs: Iterable[tuple[str, str]]) -> tuple[float, float]:
    """(before, after) by task, of the same test images; how trainings vary is not in the error."""
    gaps = []
    for before, after in pairs:
        each = [int(one) - int(other) for one, other in zip(after, before, strict=True)]
        mean = sum(each) / len(each)
        variance = sum((one - mean) ** 2 for one in each) / (len(each) - 1)
        error = math.sqrt(variance / len(each))
        gaps.append({"points": 100 * mean, "error": 100 * error})
    points, error = mean_gap(gaps)
    return -points, error


def _lost_further(records: Sequence[Record], way: str) -> tuple[float, float]:
    """Mean over tasks; the error is that of shares that are not paired, so it is at most this."""
    lost, variance = [], 0.0
    for plain, other in zip(of_way(records, "plain"), of_way(records, way), strict=True):
        px = str(plain["plan"]["sides"][-1])
        own = plain["choice"]["test"][px]
        reference = own["top1"] - own["to_float"]["points"]
        found = other["choice"]["test"][px]["top1"]
        lost.append(reference - found)
        for top1 in (reference, found):
            variance += top1 * (100 - top1) / plain["test_images"]
    return sum(lost) / len(lost), math.sqrt(variance) / len(lost)


def _float_top1(record: Record) -> float:
    test = _first_test(record)
    return float(test["top1"] - test["to_float"]["points"])


# -- Markdown --------------------------------------------------------------------------------------


def write_markdown(document: Mapping[str, Any]) -> str:
    """The whole page."""
    records = document["records"]
    parts = [
        _introduction(document),
        "## Goals\n\n"
        + _table(
            ("goal", "measured", "at most", "verdict"),
            [
                (
                    one["what"],
                    f"{one['value']:,.2f}".rstrip("0").rstrip("."),
                    f"{one['limit']:,g}",
                    one["verdict"],
                )
                for one in document["goals"]
            ],
        ),
        "## Each task, default budget\n\n" + _choice_table(records),
        "## Accuracy against bytes\n\n![Curves](patch-bytes.png)\n\n"
        + "\n\n".join(_curve_table(records, way) for way in ("plain", "compact")),
        "## Other entropy coders\n\n" + _coder_table(records),
        "## Deltas of whole int8 files\n\n" + _file_table(records),
        "## Time\n\n" + _time_table(document["times"]),
    ]
    if not document["quick"]:
        parts.insert(1, TRUST)
    return "\n\n".join(parts) + "\n"


def _introduction(document: Mapping[str, Any]) -> str:
    records = document["records"]
    plan, device = records[0]["plan"], document["device"]
    packages = device.get("packages") or device.get("versions") or {}
    versions = ", ".join(f"{name} {value}" for name, value in packages.items() if value)
    compact = of_way(records, "compact")[0]["plan"]
    sides = " and ".join(str(px) for px in plan["sides"])
    tests = ", ".join(f"{one['task']} {one['test_images']}" for one in of_way(records, "plain"))
    held = ", ".join(str(one["held_images"]) for one in of_way(records, "plain"))
    return (
        "# Bytes of a patch\n\n"
        "Written by `python benchmarks/patch_bytes.py`; numbers in "
        "`benchmarks/results/patch_bytes.json`.\n\n"
        f"Network: {plan['network']}; {sides} px; at most {plan['train']:,} training images, "
        f"{plan['epochs']} epochs, batch {plan['batch']}, rate {plan['rate']:g}, augmentation "
        f"{plan['augment']}, seed {plan['seed']}. Steps are chosen on {held} images held out of "
        f"training; test images: {tests}. Scales and biases are the parts steps, activations, "
        "scales and biases. kB are 1,000 bytes. Gaps are in points of test top-1, paired by image, "
        "± one standard error; negative is a loss. Ways to train: *plain*; *shared*, with "
        "share_scales (further resolutions learn biases alone); *compact*, the same with "
        f"rounding_step {compact['rounding_step']:g} and size_penalty "
        f"{compact['size_penalty']:g}.\n\n"
        f"Device: {device.get('cpu') or device.get('processor')}; {versions}."
    )


def _choice_table(records: Sequence[Record]) -> str:
    rows = []
    for one in records:
        choice, test = one["choice"], _first_test(one)
        sizes = choice["bytes"]
        further = ", ".join(f"{100 * share:.0f} %" for share in choice["further_share"])
        last = choice["test"][str(one["plan"]["sides"][-1])]
        rows.append(
            (
                one["way"],
                one["task"],
                *(f"{sizes[0][name]:,}" for name in ("scale_bias", "scales", "biases", "head")),
                f"{choice['head_levels']}",
                f"{_float_top1(one):.1f}",
                f"{test['top1']:.1f}",
                _show(test["to_uncoded"]),
                _show(test["to_float"]),
                further,
                f"{last['top1']:.1f} ({_show(last['to_uncoded'])})",
            )
        )
    columns = (
        "way",
        "task",
        "S/B bytes",
        "scales",
        "biases",
        "head",
        "head levels",
        "float %",
        "decoded %",
        "to int8",
        "to float",
        "further",
        "further % (to int8)",
    )
    return _table(columns, rows)


def _curve_table(records: Sequence[Record], way: str) -> str:
    """Means over tasks at the first resolution."""
    chosen = [one for one in of_way(records, way) if "curve" in one]
    rows = []
    for k, point in enumerate(chosen[0]["curve"]):
        points = [one["curve"][k] for one in chosen]
        assert {(p["kind"], str(p["setting"])) for p in points} == {
            (point["kind"], str(point["setting"]))
        }
        heads = [p["head"] for p in points if "head" in p]
        rows.append(
            (
                f"{_KINDS.get(point['kind'], point['kind'])} {point['setting']}".strip(),
                f"{sum(p['scale_bias'] for p in points) / len(points):,.0f}",
                f"{sum(heads) / len(heads):,.0f}" if heads else "-",
                _show_mean([p["to_uncoded"] for p in points]),
                _show_mean([p["to_float"] for p in points]),
                f"{sum(p['nats'] for p in points) / len(points):.4f}",
            )
        )
    columns = ("coding", "S/B bytes", "head bytes", "to int8", "to float", "test nats")
    return f"{way}, means of {len(chosen)} tasks:\n\n" + _table(columns, rows)


_KINDS = {"budget": "budget, nats:", "uniform": "uniform, 2^t/256 octave and output steps:"}


def _coder_table(records: Sequence[Record]) -> str:
    rows = []
    for one in records:
        for part, sizes in one.get("coders", {}).items():
            cells = ("-" if size is None else f"{size:,}" for size in sizes.values())
            rows.append((f"{one['way']}, {one['task']}, {part}", *cells))
    names = next(iter(next(one for one in records if "coders" in one)["coders"].values()))
    text = _table(("codes", *names), rows)
    totals = _coder_totals(records, list(names))
    lines = [f"{name}: {total:,} bytes in all" for name, total in totals.items()]
    return text + "\n\n" + "; ".join(lines) + "."


def _coder_totals(records: Sequence[Record], names: Sequence[str]) -> dict[str, int]:
    every = [sizes for one in records for sizes in one.get("coders", {}).values()]
    return {
        name: sum(sizes[name] for sizes in every)
        for name in names
        if all(sizes[name] is not None for sizes in every)
    }


def _file_table(records: Sequence[Record]) -> str:
    rows = []
    for one in records:
        ours = one["choice"]["bytes"][0]["file"]
        for form, found in one.get("whole_files", {}).items():
            cells = (found["file"], found["bsdiff"], found["zstd"], ours)
            shown = ("-" if cell is None else f"{cell:,}" for cell in cells)
            rows.append((f"{one['task']}, .{form}", *shown))
    return _table(("task", "whole file", "bsdiff", "zstd --patch-from", "our file"), rows)


def _time_table(times: Mapping[str, Any]) -> str:
    rows = [
        (name, *(f"{one[key]:.2f}" for key in ("min_ms", "q1_ms", "median_ms", "q3_ms")))
        for name, one in times["candidates"].items()
    ]
    text = _table(("ms in Python", "least", "quarter", "median", "three quarters"), rows)
    return text + f"\n\n{times['rounds']} interleaved rounds, load average {times['load_average']}."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _show(gap: Mapping[str, float]) -> str:
    return f"{gap['points']:+.2f} ± {gap['error']:.2f}"


def _show_mean(gaps: Sequence[Mapping[str, float]]) -> str:
    points, error = mean_gap(gaps)
    return f"{points:+.2f} ± {error:.2f}"


# -- picture ---------------------------------------------------------------------------------------

STYLES = (
    ("budget", OURS, "o-", "steps chosen"),
    ("uniform", STANDALONE, "s--", "uniform steps"),
    ("fp16, deflated", PEER, "^", "fp16, deflated"),
    ("int8 per layer, deflated", PEER, "v", "int8 per layer, deflated"),
    ("slot values, deflated", OTHER, "D", "slot values, deflated"),
)


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Test top-1 against bytes, a panel for each task; the dotted line is the float patch."""
    tasks = list(dict.fromkeys(one["task"] for one in records))
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, axes = new_figure(columns, lines, 5.4 * columns, 3.6 * lines)
    for axis, task in zip(axes.flat, tasks, strict=False):
        own = [one for one in records if one["task"] == task and "curve" in one]
        for one in own:
            compact = one["way"] == "compact"
            _draw_task(axis, one, compact)
        first = own[0]
        axis.axhline(_float_top1(first), color=OTHER, lw=0.8, ls=":")
        axis.set_xscale("log")
        axis.set_title(f"{task}, {first['plan']['sides'][0]} px, {first['test_images']} images")
        axis.set_xlabel("kB of scales and biases")
        axis.set_ylabel("test top-1, %")
        axis.grid(color=OTHER, alpha=0.25, lw=0.5)
    axes.flat[0].legend(fontsize=7, frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    write_atomic(path, buffer.getvalue())


def _draw_task(axis: Any, record: Record, compact: bool) -> None:
    for kind, colour, style, label in STYLES:
        points = [one for one in record["curve"] if one["kind"] == kind]
        if not points or (compact and kind != "budget"):
            continue
        points.sort(key=lambda one: one["scale_bias"])
        axis.plot(
            [one["scale_bias"] / 1e3 for one in points],
            [one["top1"] for one in points],
            style,
            color="#3a8f5c" if compact else colour,
            ms=4,
            lw=1.4,
            label=f"compact, {label}" if compact else label,
        )
