"""Is a bundle what it says, and do the runtimes compute what the reference computes?

In: a bundle and, better, real images. Out: a `VerifyReport` of checks, each passed, failed or
skipped with its reason, and with its numbers. A damaged bundle gives a report, not an exception.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from patchdeploy.bundle import Bundle, open_bundle, patched, standalone
from patchdeploy.bundle.manifest import FileEntry
from patchdeploy.bundle.models import shares_one_head
from patchdeploy.bundle.reader import REFERENCE
from patchdeploy.data import ImageDataset
from patchdeploy.errors import (
    FileFormatError,
    IntegrityError,
    MissingExtraError,
    PatchdeployError,
)
from patchdeploy.patchfile import check_patch_file
from patchdeploy.patchfile.pack import check_results, open_patch
from patchdeploy.quantize.runtimes import check_machine
from patchdeploy.runtime.backend import Backend
from patchdeploy.runtime.choose import RUNTIME_FORMATS, make_backend
from patchdeploy.runtime.self_test import run_self_test
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Store
from patchdeploy.verify.float import FloatNetwork, check_networks
from patchdeploy.verify.images import TaskImages, check_images, images_for_tasks
from patchdeploy.verify.patch import verify_patch


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was checked, the same for all subjects.
        subject: file, task, resolution, runtime.
        passed: None where the check was skipped; ``detail`` says why.
        detail: the numbers in words, or the error.
        numbers: the same for programs.
    """

    name: str
    subject: str
    passed: bool | None
    detail: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VerifyReport:
    """All checks of one bundle."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No check failed (a skipped one did not)."""
        return all(check.passed is not False for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "bundle": str(self.path),
            "ok": self.ok,
            "machine": platform.machine(),
            "checks": [
                {
                    "check": check.name,
                    "subject": check.subject,
                    "passed": check.passed,
                    "detail": check.detail,
                    "numbers": dict(check.numbers),
                }
                for check in self.checks
            ],
        }


def verify_bundle(
    path: Path | str,
    images: TaskImages = None,
    formats: Sequence[str] | None = None,
    *,
    task: str | None = None,
    limit: int = 1000,
    reference_limit: int = 16,
    tolerance_lsb: int = 0,
    store: Callable[[Bundle, str], Store | None] | None = None,
    against: Mapping[str, FloatNetwork] | None = None,
    machine: str | None = None,
    progress: Callable[[Check], None] | None = None,
) -> VerifyReport:
    """Check the bundle at ``path``.

    Args:
        images: a dataset per task name, one dataset for all, a folder of images (with one
            folder per class if accuracy is wanted), or None: a few synthetic images.
        task: the task that ``images`` belongs to (the others run synthetic ones); None: all.
        formats: converter names; by default all that the bundle has.
        limit: images per task for accuracy.
        reference_limit: of these, how many the NumPy executor runs too.
        tolerance_lsb: largest difference allowed between a runtime and the reference at the
            head's output. 0 is right where the executor's arithmetic is the runtime's, as on
            x86-64 and arm64 with the versions named in `quantize.runtimes`.
        store: opens a store over the bundle for a runtime; its active patches are checked, too.
        against: float networks by task, to compare int8 with on the images; needs torch. The
            scores that export kept in the bundle are compared in any case.
        machine: whose arithmetic the reference computes with, a key of
            `quantize.runtimes.MACHINES`; None: that of the machine that this runs on.
        progress: called after every check.

    Raises:
        ConfigError: an unknown ``machine``.
        DataError: the images cannot be used.
        UnknownTaskError: the bundle has no task ``task``.
        WrongBaseError: the bundle was exported from another base than that of ``against``.
    """
    path = Path(path)
    check_machine(machine)
    datasets = images_for_tasks(images, task)
    checks: list[Check] = []
    settings = (formats, limit, reference_limit, tolerance_lsb, machine)
    found = _run_checks(path, task, datasets, *settings, against or {})
    for check in chain(found, _check_store(path, store)):
        checks.append(check)
        if progress is not None:
            progress(check)
    return VerifyReport(path, tuple(checks))


def _run_checks(
    path: Path,
    images_task: str | None,
    datasets: Callable[[str, int], ImageDataset],
    formats: Sequence[str] | None,
    limit: int,
    reference_limit: int,
    tolerance_lsb: int,
    machine: str | None,
    networks: Mapping[str, FloatNetwork],
) -> Iterator[Check]:
    try:
        bundle = open_bundle(path, verify_hashes=False)
    except PatchdeployError as error:
        yield Check("manifest", "manifest.json", False, str(error))
        return
    if images_task is not None:
        bundle.task(images_task)
    check_networks(bundle, networks)
    yield Check("manifest", "manifest.json", True, f"{len(bundle.tasks)} tasks")
    hashes = [_check_file(bundle, name, one) for name, one in bundle.manifest.files.items()]
    yield from hashes
    if any(check.passed is False for check in hashes):
        return  # what follows would only fail in other words
    chosen = tuple(formats or bundle.formats)
    for name in chosen:
        yield _guarded("slot table", name, partial(_check_table, bundle, name))
    for task in bundle.tasks:
        yield _guarded("signature", task, partial(_check_signature, bundle, task))
        yield _guarded("patch values", task, partial(_check_patch, bundle, task))
        yield _guarded("result hashes", task, partial(_check_results, bundle, task))
    for name in chosen:
        yield from _reported("self-test", name, _check_self_tests(bundle, name))
    for task in bundle.tasks:
        for name in chosen:
            overlays = _check_overlays(bundle, task, name)
            yield from _reported("overlay = stand-alone", f"{task} {name}", overlays)
    settings = (limit, reference_limit, tolerance_lsb, machine)
    rows = check_images(bundle, chosen, datasets, *settings, networks)
    images = (Check(*row) for row in rows)
    yield from _reported("runtime = reference", "all tasks", images)


def _reported(name: str, subject: str, checks: Iterator[Check]) -> Iterator[Check]:
    """``checks``, and one that failed where the bundle itself ends them."""
    try:
        yield from checks
    except (FileFormatError, IntegrityError) as error:
        yield Check(name, subject, False, str(error))


def _check_store(
    path: Path, store: Callable[[Bundle, str], Store | None] | None
) -> Iterator[Check]:
    """Every check of docs/patch-format.md on each patch that a store has active."""
    if store is None:
        return
    try:
        bundle = open_bundle(path, verify_hashes=False)
        runtime = next(name for name, reads in RUNTIME_FORMATS.items() if reads in bundle.formats)
        opened = store(bundle, runtime)
    except (FileFormatError, IntegrityError) as error:
        yield Check("store", "bundle", False, str(error))
        return
    if opened is not None:
        for task in sorted(opened.active()):
            yield from _check_stored(opened, bundle, task)


def _check_stored(opened: Store, bundle: Bundle, task: str) -> Iterator[Check]:
    try:
        data = opened.read(task).data
        policy = opened.effective_policy()
        report = verify_patch(
            data,
            bundle,
            trusted=policy.trusted,
            allow_unsigned=policy.allow_unsigned,
            task=task,
            now=0,
        )
    except PatchdeployError as error:
        yield Check("store", task, False, str(error))
        return
    for one in report.checks:
        yield Check(f"store: {one.name}", task, one.passed, one.detail)


def _guarded(name: str, subject: str, run: Callable[[], Check]) -> Check:
    """``run()``, or the check that its error stands for."""
    try:
        return run()
    except MissingExtraError as error:
        return Check(name, subject, None, str(error))
    except PatchdeployError as error:
        return Check(name, subject, False, str(error))


def _check_file(bundle: Bundle, name: str, entry: FileEntry) -> Check:
    if not entry.ships and not (bundle.path / name).exists():
        return Check("hash", name, None, "not in this copy; no app needs it")

    def run() -> Check:
        bundle.read(name)
        return Check("hash", name, True, entry.sha256, {"bytes": entry.bytes})

    return _guarded("hash", name, run)


def _check_table(bundle: Bundle, name: str) -> Check:
    """The table is bound to the file and says of it what is so; every slot takes what a patch has.

    `Bundle.base` looks at all of that.
    """
    data, table = bundle.base(name)
    slot_bytes = sum(slot.length_bytes for slot in table.slots)
    numbers = {"slots": len(table.slots), "slot_bytes": slot_bytes, "base_bytes": len(data)}
    detail = f"{len(table.slots)} slots, {slot_bytes} of {len(data)} bytes"
    return Check("slot table", name, True, detail, numbers)


def _check_signature(bundle: Bundle, task: str) -> Check:
    """Checks 1 to 6 of docs/patch-format.md."""
    data = bundle.read(bundle.task(task).file)
    checked = check_patch_file(data, bundle.policy(task))
    header = checked.header
    detail = f"sequence {header.sequence}, signed by {', '.join(map(str, checked.signed_by))}"
    if not checked.signed_by:
        return Check("signature", task, None, "UNSIGNED: this is a development bundle")
    numbers = {"sequence": header.sequence, "expires": header.expires}
    return Check("signature", task, True, detail, numbers)


def _check_results(bundle: Bundle, task: str) -> Check:
    """What comes of the patch is what its header says, in every format of the bundle."""
    data = bundle.read(bundle.task(task).file)
    checked, patch = open_patch(data, bundle.policy(task), bundle.coding_table)
    check_results(checked, patch, bundle.base_files())
    count = len(patch.values) * len(bundle.formats)
    return Check("result hashes", task, True, f"{count} models, as the header says")


def _check_self_tests(bundle: Bundle, name: str) -> Iterator[Check]:
    """The scores that travel with each patch, on the runtime of format ``name``."""
    runtime = next((one for one, reads in RUNTIME_FORMATS.items() if reads == name), None)
    if runtime is None:
        return
    try:
        backend = make_backend(bundle, runtime, 1, "resident", None)
    except PatchdeployError as error:
        passed = None if isinstance(error, MissingExtraError) else False
        yield Check("self-test", name, passed, str(error))
        return
    for task in bundle.tasks:
        yield _guarded(
            "self-test", f"{task} {name}", partial(_check_self_test, bundle, task, name, backend)
        )


def _check_self_test(bundle: Bundle, task: str, name: str, backend: Backend) -> Check:
    worst = run_self_test(backend, name, bundle.patch(task), bundle.coding_table)
    subject = f"{task} {name}"
    if worst is None:
        return Check("self-test", subject, None, "the patch carries none; its models load")
    return Check("self-test", subject, True, f"{worst} LSB away", {"lsb": worst})


def _check_patch(bundle: Bundle, task: str) -> Check:
    patch = bundle.patch(task)
    count = bundle.manifest.files[bundle.task(task).file].bytes
    held = ", ".join(map(str, sorted(patch.values)))
    detail = f"{count} bytes, {len(patch.classes)} classes, {held} px"
    return Check("patch values", task, True, detail, {"bytes": count})


def _check_overlays(bundle: Bundle, task: str, name: str) -> Iterator[Check]:
    """One comparison where one file holds all resolutions, else one for each."""
    table: SlotTable = bundle.table(name)
    held: tuple[int | None, ...] = bundle.task(task).resolutions
    if table.resolutions and shares_one_head(bundle, bundle.patch(task)):
        held = (None,)
    for px in held:
        subject = f"{task} {name}" + (f" {px} px" if px else "")
        if (bundle.path / REFERENCE).exists():
            compare = partial(_compare_overlay, bundle, task, name, px, subject)
            yield _guarded("overlay = stand-alone", subject, compare)
        else:
            yield Check("overlay = stand-alone", subject, None, "no reference in this copy")


def _compare_overlay(bundle: Bundle, task: str, name: str, px: int | None, subject: str) -> Check:
    ours = sha256_hex(patched(bundle, task, name, px))
    alone = sha256_hex(standalone(bundle, task, name, px))
    detail = ours if ours == alone else f"overlay {ours}, stand-alone {alone}"
    return Check("overlay = stand-alone", subject, ours == alone, detail)
