"""Bytes to ship for K tasks at R resolutions: base + patches, whole models, binary deltas.

Measured: our base files with 1 to 5 resolutions, patch files as stored, our stand-alone files,
the peers' int8 files, and deltas (bsdiff, zstd --patch-from) between files of two tasks and of
two resolutions. K tasks are then sums: file sizes do not depend on a task's values, and deltas
differ little from task to task (both measured deltas are in the JSON), so K = 100 is computed
from the measured ones, not from 100 exports. A resolution's whole model is a file of its own,
because a patch has other scales and biases at each resolution.

Base and patch sizes are of MobileNetV2 1.0 with its 1000 classes, as the goals are. What K tasks
cost is computed for tasks of 100 classes, because a thousand classes a task is a 1.28 MB head a
task, which no method shares. The embedded base has 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from deltas import delta_bytes, zstd_alone_bytes
from peer_files import PEER_LIST, Peer, export_peer
from results import (
    OTHER,
    OURS,
    PEER,
    STANDALONE,
    Goal,
    log_megabytes,
    new_figure,
    parse_arguments,
    print_table,
    save_figure,
    save_results,
)
from subjects import Subject, load_subject, quantize_task, random_patch, task_patch_file

from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.convert import load_converter
from patchdeploy.patchfile.payload import encode_payload
from patchdeploy.quantize.model import neutral_variant

FORMATS = ("tflite", "onnx")
TASKS = (1, 2, 5, 10, 100)
RESOLUTIONS = {"mobilenet_v2": (224, 192, 160, 128, 96), "embedded": (64, 48, 56, 40, 32)}
DELTA_PEERS = {"tflite": "tensorflow", "onnx": "ort qoperator"}


def base_sizes(subject: Subject, counts: Sequence[int]) -> dict[str, dict[int, int]]:
    """Bytes of the base file by format and number of resolutions, and of its slots."""
    found: dict[str, dict[int, int]] = {}
    for name in FORMATS:
        converter = load_converter(name)
        found[name] = {}
        for count in counts:
            variants = {
                px: neutral_variant(subject.quantized, px)
                for px in sorted(RESOLUTIONS[subject.name][:count])
            }
            found[name][count] = len(converter.write(subject.quantized, variants).data)
    return found


def slot_sizes(subject: Subject) -> dict[str, dict[str, int]]:
    """Bytes that a patch sets in a file of one resolution, by format and kind of slot."""
    found: dict[str, dict[str, int]] = {}
    for name in FORMATS:
        variants = {subject.px: neutral_variant(subject.quantized, subject.px)}
        table = load_converter(name).write(subject.quantized, variants).table
        found[name] = {}
        for slot in table.slots:
            found[name][slot.kind] = found[name].get(slot.kind, 0) + slot.length_bytes
    return found


def patch_sizes(subject: Subject, counts: Sequence[int]) -> dict[int, dict[str, int | None]]:
    """Bytes of one patch's payload by number of resolutions, in fine steps.

    ``head_bytes`` are the last layer's int8 kernel, ``labels_bytes`` the names, ``rest_bytes``
    everything else. The patch is random: a trained one codes smaller (patch_bytes.py).
    """
    whole = task_patch_file(subject, 1, RESOLUTIONS[subject.name][: max(counts)])
    found: dict[int, dict[str, int | None]] = {}
    for count in counts:
        chosen = RESOLUTIONS[subject.name][:count]
        patch = replace(whole, values={px: whole.values[px] for px in chosen})
        coded = encode_payload(patch, subject.table, fine_steps(patch.values, subject.table))
        head, labels = coded.part_bytes["head"], coded.part_bytes["labels"]
        found[count] = {
            "file_bytes": len(coded.payload),
            "head_bytes": head,
            "labels_bytes": labels,
            "rest_bytes": len(coded.payload) - head - labels,
            "zstd_bytes": zstd_alone_bytes(coded.payload),
        }
    return found


def standalone_file(subject: Subject, name: str, seed: int, px: int) -> bytes:
    """Our file of one task at one resolution, exported on its own."""
    variant = quantize_task(subject, random_patch(subject, seed), f"task_{seed}", px, 4)
    return load_converter(name).write(subject.quantized, {px: variant}).data


def whole_models(subject: Subject, name: str, peer: Peer | None, cache: Path) -> dict[str, Any]:
    """Whole files of an exporter (ours: ``peer`` None) and the deltas between them."""
    first, second = RESOLUTIONS[subject.name][:2]

    def file(seed: int, px: int) -> bytes:
        if peer is None:
            return standalone_file(subject, name, seed, px)
        return export_peer(peer, subject, random_patch(subject, seed), cache, [px]).read_bytes()

    one, two, three, other = file(1, first), file(2, first), file(3, first), file(1, second)
    tasks = [delta_bytes(one, two), delta_bytes(one, three)]
    return {
        "file_bytes": len(one),
        "task_delta_bytes": tasks,
        "resolution_delta_bytes": delta_bytes(one, other),
    }


def totals(
    base_bytes: int,
    patch: dict[str, int | None],
    models: dict[str, Any],
    tasks: int,
    resolutions: int,
) -> dict[str, float | None]:
    """Bytes to ship by method; a delta total needs one whole model and a delta for each other.

    Patches are counted as stored and, because deltas are compressed, also as zstd leaves them.
    """
    stored, packed = patch["file_bytes"] or 0, patch["zstd_bytes"]
    found: dict[str, float | None] = {
        "patchdeploy": base_bytes + tasks * stored,
        "patchdeploy, zstd": None if packed is None else base_bytes + tasks * packed,
    }
    for name, one in models.items():
        found[f"{name}, whole"] = tasks * resolutions * one["file_bytes"]
        for method in ("bsdiff", "zstd"):
            task = [delta[method] for delta in one["task_delta_bytes"]]
            step = one["resolution_delta_bytes"][method]
            if step is None or None in task:
                found[f"{name}, {method}"] = None
                continue
            found[f"{name}, {method}"] = (
                one["file_bytes"]
                + (resolutions - 1) * step
                + (tasks - 1) * resolutions * float(np.mean(task))
            )
    return found


def measure_subject(subject: Subject, counts: Sequence[int]) -> dict[str, Any]:
    """Base, slot and patch sizes of one subject."""
    return {
        "classes": subject.network.classes,
        "channels": sum(subject.quantized.rows(c.name) for c in subject.graph.convolutions()),
        "resolutions": list(RESOLUTIONS[subject.name]),
        "base_bytes": base_sizes(subject, counts),
        "slot_bytes": slot_sizes(subject),
        "patch": patch_sizes(subject, counts),
    }


def measure_totals(subject: Subject, counts: Sequence[int], cache: Path) -> dict[str, Any]:
    """What K tasks at R resolutions take, by method, with the subject's class count."""
    bases = base_sizes(subject, counts)
    patches = patch_sizes(subject, counts)
    document: dict[str, Any] = {
        "task_classes": subject.network.classes,
        "task_base_bytes": bases,
        "task_patch": patches,
        "models": {},
        "totals": {},
    }
    for name in FORMATS:
        models = {"ours": whole_models(subject, name, None, cache)}
        peer = next(one for one in PEER_LIST if one.name == DELTA_PEERS[name])
        models[peer.name] = whole_models(subject, name, peer, cache)
        document["models"][name] = models
        document["totals"][name] = [
            {
                "tasks": k,
                "resolutions": r,
                "bytes": totals(bases[name][r], patches[r], models, k, r),
            }
            for r in counts
            for k in TASKS
        ]
    return document


def goals_of(name: str, found: dict[str, Any]) -> list[Goal]:
    """The issue's limits, for MobileNetV2 1.0; the embedded base has none."""
    if name != "mobilenet_v2":
        return []
    tflite, onnx = found["base_bytes"]["tflite"], found["base_bytes"]["onnx"]
    counts = sorted(tflite)
    growth = [(tflite[b] - tflite[a]) / 1e3 for a, b in pairwise(counts)]
    patches = found["patch"]
    rest = [
        (patches[b]["rest_bytes"] - (patches[a]["rest_bytes"] if a else 0)) / 1e3
        for a, b in zip([0, *counts], counts, strict=False)
    ]
    return [
        Goal("base.tflite with one signature, MB", tflite[1] / 1e6, 3.7),
        Goal("one resolution more in .tflite, largest, kB", max(growth, default=None), 250),
        Goal("one resolution more in .onnx, bytes", max(onnx.values()) - min(onnx.values()), 0),
        Goal("random patch in fine steps, head not counted, kB a resolution", max(rest), 140),
    ]


def print_subject(name: str, found: dict[str, Any]) -> None:
    """Bases and patches by R, then totals by K for each format."""
    rows = []
    for r, patch in found["patch"].items():
        cells = [found["base_bytes"][f][r] for f in FORMATS]
        cells += [patch[key] for key in ("file_bytes", "rest_bytes", "head_bytes", "zstd_bytes")]
        rows.append([str(r), *(f"{c:,}" if c is not None else "-" for c in cells)])
    columns = ["R", "base.tflite", "base.onnx", "patch file", "w/o head", "head", "file, zstd"]
    print_table(f"{name}: bytes by number of resolutions", columns, rows)
    slots = found["slot_bytes"]
    print_table(
        f"{name}: bytes that one resolution's patch sets",
        ["slot", *FORMATS],
        [
            [kind, *(f"{slots[f].get(kind, 0):,}" for f in FORMATS)]
            for kind in sorted({kind for f in FORMATS for kind in slots[f]})
        ],
    )
    for form, entries in found["totals"].items():
        names = list(entries[0]["bytes"])
        rows = []
        for entry in entries:
            cells = [entry["bytes"][method] for method in names]
            text = ["-" if c is None else f"{c / 1e6:,.2f}" for c in cells]
            rows.append([f"K={entry['tasks']} R={entry['resolutions']}", *text])
        title = f"{name}, .{form}: MB to ship, {found['task_classes']} classes a task"
        print_table(title, ["", *names], rows)


def plot(document: dict[str, Any], counts: Sequence[int], out: Path) -> None:
    """Total bytes over K: a row per subject, a column per format, R = 1 and the largest R."""
    shown = sorted({min(counts), max(counts)})
    panels = [(s, f, r) for s in document for f in FORMATS for r in shown]
    columns = len(FORMATS) * len(shown)
    lines = len(document)
    figure, axes = new_figure(columns, lines, 3.5 * columns, 3.3 * lines)
    for axis, (subject, form, r) in zip(axes.flat, panels, strict=True):
        entries = [e for e in document[subject]["totals"][form] if e["resolutions"] == r]
        for name in entries[0]["bytes"]:
            values = [e["bytes"][name] for e in entries]
            if None in values:
                continue
            ours = name.startswith("patchdeploy")
            colour = OURS if ours else STANDALONE if name.startswith("ours") else PEER
            style = (
                "-"
                if name == "patchdeploy"
                else {"whole": "--", "bsdiff": ":", "zstd": "-."}[name.split()[-1]]
            )
            axis.plot(
                [e["tasks"] for e in entries],
                np.array(values) / 1e6,
                style,
                color=colour,
                marker="o" if ours else None,
                ms=3,
                lw=2 if ours else 1.2,
                label=name,
            )
        axis.set_xscale("log")
        axis.set_xticks(TASKS, [str(k) for k in TASKS])
        axis.minorticks_off()
        log_megabytes(axis)
        axis.grid(color=OTHER, alpha=0.25, lw=0.5)
        axis.set_title(f"{subject}, .{form}, R = {r}")
        axis.set_xlabel("tasks K")
        axis.set_ylabel("MB to ship")
        axis.legend(fontsize=6.5, frameon=False)
    save_figure(figure, out, "size")


def main() -> None:
    """Measure, print, plot."""
    arguments = parse_arguments(__doc__ or "")
    counts = (1, 2) if arguments.quick else (1, 2, 3, 4, 5)
    document: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in arguments.subject:
        subject = load_subject(name, arguments.wheel)
        print(f"{name}: {subject.weights}, {subject.px} px")
        document[name] = measure_subject(subject, counts)
        smaller = subject if name == "embedded" else load_subject(name, arguments.wheel, 100)
        document[name] |= measure_totals(smaller, counts, arguments.out / "cache")
        print_subject(name, document[name])
        goals += goals_of(name, document[name])
    plot(document, counts, arguments.out)
    save_results(arguments.out, "size", {"subjects": document}, goals, arguments.quick)


if __name__ == "__main__":
    main()
