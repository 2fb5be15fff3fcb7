"""Latency of a patched int8 model against the files that other exporters make of the same weights.

Candidates, all in the same runtime, interleaved: a task laid over our base that serves three
resolutions; the same task exported on its own; litert-torch + ai-edge-quantizer and TensorFlow's
converter (LiteRT), quantize_static as QDQ and as QOperator (ONNX Runtime). One image a call,
1 and 2 threads; and on 1 thread once more from the camera's uint8 pixels, so that a peer's caller
pays for the normalisation that ours has inside. Also compares scores: ours patched with ours
stand-alone (must be equal bit for bit), and every candidate with the float network (they must be
the same network).
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peer_files import export_peer, peers_of
from results import (
    OTHER,
    OURS,
    PEER,
    STANDALONE,
    Goal,
    new_figure,
    parse_arguments,
    print_table,
    save_figure,
    save_results,
)
from runners import Runner, all_scores, make_runner
from subjects import (
    Subject,
    load_subject,
    normalise,
    quantize_task,
    random_patch,
)

from patchdeploy.convert import load_converter
from patchdeploy.measure import Measurement, measure_interleaved
from patchdeploy.quantize.model import flatten_variant
from patchdeploy.slots import overlay, select_view
from patchdeploy.storage import sha256_hex

PATCHED, ALONE = "patchdeploy, patched", "patchdeploy, stand-alone"
FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}
SAMPLE_MS = 12.0
RESOLUTIONS = {"mobilenet_v2": (160, 192, 224), "embedded": (32, 48, 64)}


@dataclass(frozen=True)
class Candidate:
    """One file to time; ``ours`` says how it wants to be opened and fed."""

    name: str
    data: bytes
    ours: bool


def our_candidates(subject: Subject, runtime: str) -> tuple[list[Candidate], bool]:
    """The patched and the stand-alone file, and whether overlay = export by SHA-256."""
    patch = random_patch(subject, 1)
    other = random_patch(subject, 2)
    converter = load_converter(FORMATS[runtime])
    resolutions = RESOLUTIONS[subject.name] if runtime == "litert" else (subject.px,)
    variants = {px: quantize_task(subject, patch, "task", px) for px in resolutions}
    base = converter.write(
        subject.quantized,
        {px: quantize_task(subject, other, "other", px, 4) for px in resolutions},
    )
    values = {px: flatten_variant(subject.quantized, one) for px, one in variants.items()}
    patched = overlay(base.data, base.table, values)
    identical = sha256_hex(bytes(patched)) == sha256_hex(
        converter.write(subject.quantized, variants).data
    )
    view = bytes(select_view(patched, base.table, subject.px))
    alone = converter.write(subject.quantized, {subject.px: variants[subject.px]}).data
    return [Candidate(PATCHED, view, True), Candidate(ALONE, alone, True)], identical


def float_scores(subject: Subject) -> NDArray[np.float64]:
    """The float network's logits on the subject's images, patched as the candidates are."""
    patch = {key: torch.from_numpy(value) for key, value in random_patch(subject, 1).items()}
    module = copy.deepcopy(subject.module)
    module.load_state_dict({**module.state_dict(), **patch})
    pixels = normalise(subject.network, subject.images).transpose(0, 3, 1, 2)
    with torch.no_grad():
        found = module(torch.from_numpy(pixels.copy())).numpy()
    scores: NDArray[np.float64] = found.astype(np.float64)
    return scores


def agreement(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Correlation of two [N, classes] with their mean over images taken off."""
    a, b = found - found.mean(0), wanted - wanted.mean(0)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def time_runners(runners: dict[str, Runner], rounds: int) -> Measurement:
    """Interleaved, with as many calls in a row as make a sample of about SAMPLE_MS."""
    first = next(iter(runners.values()))
    first.invoke()
    start = time.perf_counter()
    for _ in range(5):
        first.invoke()
    once_ms = 1e3 * (time.perf_counter() - start) / 5
    inner = max(1, round(SAMPLE_MS / once_ms))
    return measure_interleaved(
        {name: runner.invoke for name, runner in runners.items()},
        warmup=3 * inner,
        rounds=rounds,
        inner=inner,
    )


def measure_runtime(subject: Subject, runtime: str, rounds: int, cache: Path) -> dict[str, Any]:
    """Figures of one subject in one runtime: sizes, agreement, and times for 1 and 2 threads."""
    candidates, identical = our_candidates(subject, runtime)
    patch = random_patch(subject, 1)
    for peer in peers_of(runtime):
        data = export_peer(peer, subject, patch, cache).read_bytes()
        candidates.append(Candidate(peer.name, data, False))
    wanted = float_scores(subject)
    document: dict[str, Any] = {"overlay_is_export": identical, "candidates": {}, "threads": {}}
    for threads in (1, 2):
        runners = {
            one.name: make_runner(runtime, one.data, threads, subject.network, one.ours)
            for one in candidates
        }
        scores = {name: all_scores(runner, subject.images) for name, runner in runners.items()}
        if threads == 1:
            document["candidates"] = {
                one.name: {
                    "file_bytes": len(one.data),
                    "agreement_with_float": agreement(scores[one.name], wanted),
                }
                for one in candidates
            }
        measured = time_runners(runners, rounds)
        best = best_peer(measured)
        document["threads"][str(threads)] = {
            "scores_equal": bool(np.array_equal(scores[PATCHED], scores[ALONE])),
            "best_peer": best,
            **measured.to_json(best),
        }
        if threads == 1:
            calls = {name: one.from_pixels(subject.images[:1]) for name, one in runners.items()}
            pixels = measure_interleaved(calls, warmup=10, rounds=rounds, inner=3)
            document["from_pixels"] = pixels.to_json(best_peer(pixels))
    return document


def best_peer(measured: Measurement) -> str:
    """The fastest candidate that is not ours (ours alone where no peer is installed)."""
    peers = [name for name in measured.samples_ms if name not in (PATCHED, ALONE)]
    return min(peers or [ALONE], key=measured.median_ms)


def print_runtime(subject: str, runtime: str, document: dict[str, Any]) -> None:
    """One table: a row a candidate."""
    rows = []
    for name, facts in document["candidates"].items():
        row = [name, f"{facts['file_bytes'] / 1e6:.3f}", f"{facts['agreement_with_float']:.3f}"]
        for threads in document["threads"].values():
            one = threads["candidates"][name]
            ratio = one["ratio"]
            row += [
                f"{one['median_ms']:.3f}",
                f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
            ]
        one = document["from_pixels"]["candidates"][name]
        rows.append([*row, f"{one['median_ms']:.3f}", f"{one['ratio']['median']:.3f}"])
    columns = ["candidate", "MB", "float agreement"]
    for threads, one in document["threads"].items():
        columns += [f"ms, {threads} thr", f"/ {one['best_peer']} [95%]"]
    columns += ["ms from pixels", f"/ {document['from_pixels']['baseline']}"]
    print_table(f"{subject} in {runtime}", columns, rows)
    equal = all(one["scores_equal"] for one in document["threads"].values())
    print(f"patched = stand-alone: scores {equal}, file {document['overlay_is_export']}")


def plot(document: dict[str, Any], out: Path) -> None:
    """A panel per subject and runtime: median ms by candidate, 1 and 2 threads."""
    panels = [(s, r) for s, one in document.items() for r in one]
    columns = 2
    lines = (len(panels) + 1) // columns
    figure, axes = new_figure(columns, lines, 11, 0.6 + 2.6 * lines)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (subject, runtime) in zip(axes.flat, panels, strict=False):
        facts = document[subject][runtime]
        names = list(facts["candidates"])[::-1]
        for k, one in enumerate(facts["threads"].values()):
            rows = [one["candidates"][name] for name in names]
            places = np.arange(len(names)) + (0.2 if k == 0 else -0.2)
            medians = np.array([row["median_ms"] for row in rows])
            errors = [
                medians - [row["q1_ms"] for row in rows],
                np.array([row["q3_ms"] for row in rows]) - medians,
            ]
            colours = [OURS if n == PATCHED else STANDALONE if n == ALONE else PEER for n in names]
            axis.barh(
                places,
                medians,
                0.36,
                color=colours,
                alpha=1.0 if k == 0 else 0.55,
                xerr=errors,
                error_kw={"ecolor": OTHER, "lw": 1},
            )
            for place, row, error in zip(places, rows, errors[1], strict=True):
                text = f" {row['median_ms']:.3g}  ({row['ratio']['median']:.2f}x)"
                axis.text(row["median_ms"] + error, place, text, va="center", fontsize=7)
        axis.set_yticks(np.arange(len(names)), names)
        axis.set_xlim(0, axis.get_xlim()[1] * 1.25)
        axis.set_xlabel("ms per image: 1 thread, 2 threads (pale); quartiles")
        axis.set_title(f"{subject}, {runtime}: ratio to the best peer")
    save_figure(figure, out, "latency")


def main() -> None:
    """Measure, print, plot."""
    arguments = parse_arguments(__doc__ or "")
    document: dict[str, Any] = {}
    goals = []
    for name in arguments.subject:
        subject = load_subject(name, arguments.wheel)
        print(f"{name}: {subject.weights}, {subject.px} px")
        document[name] = {}
        for runtime in FORMATS:
            found = measure_runtime(subject, runtime, arguments.rounds, arguments.out / "cache")
            document[name][runtime] = found
            print_runtime(name, runtime, found)
            for threads, one in found["threads"].items():
                ratio = one["candidates"][PATCHED]["ratio"]["median"]
                what = f"latency / best peer, {name}, {runtime}, {threads} threads"
                goals.append(Goal(what, ratio, 1.0))
            ratio = found["from_pixels"]["candidates"][PATCHED]["ratio"]["median"]
            what = f"from the camera's pixels / best peer, {name}, {runtime}, 1 thread"
            goals.append(Goal(what, ratio, 1.0))
            equal = all(one["scores_equal"] for one in found["threads"].values())
            identical = found["overlay_is_export"] and equal
            goals.append(Goal(f"scores unlike stand-alone, {name}, {runtime}", 1.0 - identical, 0))
    plot(document, arguments.out)
    weights = {"rounds": arguments.rounds, "subjects": document}
    save_results(arguments.out, "latency", weights, goals, arguments.quick)


if __name__ == "__main__":
    main()
