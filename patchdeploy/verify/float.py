"""Does int8 answer as the float network does? Asked without labels.

In: a bundle's engine, a task, and the float network's scores: those that export kept in the bundle,
or those of the torch module with the patch, where both are given. Out: rows as `images` gives them.
The first needs neither torch nor images, and is asked of every bundle that holds it; the second is
the better one, since nothing of it comes from the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.bundle.float_scores import Comparison, FloatRecord, compare_scores
from patchdeploy.data.pixels import normalize_batch
from patchdeploy.errors import FileFormatError, UnknownTaskError, WrongBaseError
from patchdeploy.patchfile.golden import enlarge
from patchdeploy.runtime import Engine

if TYPE_CHECKING:
    from patchdeploy.base import Base
    from patchdeploy.patch import Patch

Row = tuple[str, str, bool | None, str, dict[str, Any]]
Scores = NDArray[np.float32]
NAME = "int8 = float"
BATCH = 32
GRAPH_DB, GRAPH_AHEAD_DB = 40.0, 20.0
"""`lower.compare` lets through a difference of 2^-10 of the spread, 60 dB; what it lets through as
rounding, in networks that amplify it, stays 20 dB ahead of int8, whose steps are far coarser."""
LATER_DB = 6.0
"""Twice the distance. Runtimes differ by a few LSB, the noise at export is of the same size."""


@dataclass(frozen=True)
class FloatNetwork:
    """A task's float network: the torch module of its base with the patch in place.

    Attributes:
        base: the one that the bundle was exported from.
        patch: the one that was exported; also the task's name.
    """

    base: Base
    patch: Patch

    def score(self, pixels: NDArray[np.uint8], px: int) -> Scores:
        """float32 [n, classes] of ``pixels``, uint8 [n, px, px, 3].

        Raises:
            PatchError: the patch has no variant for ``px``.
        """
        import torch

        from patchdeploy.patch.forward import run_patched

        tensors = {key: torch.tensor(value) for key, value in self.patch.tensors(px).items()}
        inputs = normalize_batch(pixels, self.base.preprocessing)
        with torch.no_grad():
            found = [
                run_patched(self.base, tensors, batch, self.patch.config)
                for batch in torch.split(torch.from_numpy(inputs), BATCH)
            ]
        scores: Scores = torch.cat(found).flatten(1).numpy()
        return scores


def check_networks(bundle: Bundle, networks: Mapping[str, FloatNetwork]) -> None:
    """Check that ``networks``, by task, are those that ``bundle`` was exported from.

    Raises:
        UnknownTaskError: the bundle has no such task, or one of other classes.
        WrongBaseError: it was exported from another base.
    """
    for task, network in networks.items():
        classes = bundle.task(task).classes
        if network.patch.classes != classes:
            raise UnknownTaskError(
                f"the patch of task {task!r} has {len(network.patch.classes)} classes, the "
                f"bundle's has {len(classes)}, or others; compare the patch that was exported"
            )
        base, wanted = network.base, bundle.manifest.source_sha256
        named = network.patch.base_sha256
        if not base.is_named(wanted, f"bundle {bundle.path}") or not base.is_named(
            named, f"patch {task!r}"
        ):
            raise WrongBaseError(
                f"task {task!r} is compared with base {base.sha256[:16]} and a patch for "
                f"{named[:16]}; the bundle was exported from base {wanted[:16]}; give that base "
                "and the patch that was exported"
            )


def read_record(bundle: Bundle, task: str) -> FloatRecord | None:
    """The float scores that export kept of ``task``; None where this copy has none.

    Raises:
        FileFormatError: the file breaks its format, or is not of this task.
    """
    path = bundle.manifest.float_scores(task)
    if path is None or not (bundle.path / path).exists():
        return None
    record = FloatRecord.from_bytes(bundle.read(path))
    entry = bundle.task(task)
    widths = {scores.shape[1] for scores in record.module.values()}
    if tuple(sorted(record.measured)) != entry.resolutions or widths != {len(entry.classes)}:
        raise FileFormatError(
            f"{path} has scores of {sorted(widths)} classes at {sorted(record.measured)} px; task "
            f"{task!r} has {len(entry.classes)} at {list(entry.resolutions)}; export it again"
        )
    return record


def compare_with_record(engine: Engine, task: str, px: int, record: FloatRecord) -> Row:
    """What ``engine`` says to the pictures of ``record`` now, against float at export."""
    found = engine.logits(enlarge(record.thumbnails, px), task, px)
    module = compare_scores(record.module[px], found)
    measured = record.measured[px]
    passed, verdict = _judge(module)
    for fault in (_graph_fault(record, px), _later_fault(record.kept[px], module)):
        if fault:
            passed, verdict = False, f"{verdict}; {fault}"
    detail = f"against the float scores kept at export: {module}{verdict}; then: {measured}"
    numbers = _numbers(module) | {"export": _numbers(measured)}
    return (NAME, f"{task} {px} px", passed, f"{engine.runtime} {detail}", numbers)


def _graph_fault(record: FloatRecord, px: int) -> str:
    """Export compares module and graph, both in float: they are 60 dB and more apart from noise."""
    graph = compare_scores(record.module[px], record.graph[px]).snr_db
    int8 = record.kept[px].snr_db
    if graph is None or int8 is None or graph >= GRAPH_DB or graph >= int8 + GRAPH_AHEAD_DB:
        return ""
    return (
        f"the graph that was exported is not the module: {graph:.1f} dB apart in float, where "
        f"{GRAPH_DB:g} dB are asked; export again"
    )


def _later_fault(kept: Comparison, now: Comparison) -> str:
    """Runtimes round otherwise, but none of them as much as int8 does."""
    if kept.snr_db is None or now.snr_db is None or now.snr_db >= kept.snr_db - LATER_DB:
        return ""
    return f"{kept.snr_db:.1f} dB at export on the same pictures; export or copy the bundle again"


def compare_with_network(
    engine: Engine, task: str, px: int, network: FloatNetwork, pixels: NDArray[np.uint8], name: str
) -> Row:
    """What ``engine`` says to ``pixels``, against the module with the patch."""
    truth = network.score(pixels, px)
    found = compare_scores(truth, engine.logits(pixels, task, px))
    passed, verdict = _judge(found)
    detail = f"{engine.runtime} against the module with its patch: {found} ({name}){verdict}"
    return (NAME, f"{task} {px} px", passed, detail, _numbers(found))


def _judge(found: Comparison) -> tuple[bool | None, str]:
    if found.snr_db is None:
        return None, "; all images get the same scores"
    if found.is_unlike:
        return False, "; int8 answers otherwise than the float network: export again"
    return True, ""


def _numbers(found: Comparison) -> dict[str, Any]:
    return {
        "images": found.images,
        "snr_db": None if found.snr_db is None else round(found.snr_db, 2),
        "equal_top1": found.equal_top1,
    }
