"""Rows 5 and 6 of the fault table: a patch for another base, task, runtime or engine."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import product

from container_cases import KEYS, document, forge, sha, verdict
from fault_cases import FAULT_BASES, POLICY, make_subject, make_variants, open_verdict
from tried import Progress, Told, Verdicts

from patchdeploy.coding.table import CodingTable
from patchdeploy.convert import load_converter
from patchdeploy.errors import FileFormatError, IntegrityError, PatchRefusedError
from patchdeploy.patchfile.pack import (
    BaseFiles,
    Release,
    Signer,
    check_results,
    open_patch,
    pack_patch,
)
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex

FORMATS = ("onnx", "tflite")
SIGNED = Release(signers=(Signer(KEYS[0], 0),))


@functools.cache
def write_base_files(name: str) -> BaseFiles:
    """Both runtimes' files of a subject's base."""
    base = make_subject(name).base
    variants = make_variants(base, 1)
    written = {one: load_converter(one).write(base, variants) for one in FORMATS}
    return {one: (model.data, model.table) for one, model in written.items()}


def try_bases(scale: float, progress: Progress) -> Told:
    """Row 5: every pair of bases; every byte of a coding table and of both base files changed."""
    pairs, bytes_ = Verdicts(), Verdicts()
    for made, at_hand in product(FAULT_BASES, FAULT_BASES):
        code = open_verdict(make_subject(made).data, make_subject(at_hand).table)
        pairs.expect(code, "ok" if made == at_hand else "base", f"{made} over {at_hand}")
    step = 1 if scale >= 1 else round(1 / scale)
    _try_changed_tables("conv_stack", bytes_, step)
    progress(0.1)
    in_slots = _try_changed_base_files("conv_stack", bytes_, step, progress)
    return Told(
        f"{pairs.count} pairs of {len(FAULT_BASES)} bases; {bytes_.count:,} changes of one byte of "
        "a coding table, an ONNX and a TFLite base file, the files also with a slot table that was "
        "rewritten to match",
        f"each patch over its own base alone; {bytes_.listed()} ({in_slots:,} bytes lie in slots, "
        "which a patch sets: the result is the signed one)",
        pairs.count + bytes_.count,
    )


def _try_changed_tables(name: str, seen: Verdicts, step: int) -> None:
    """A changed table does not parse, or is another base for every patch."""
    subject = make_subject(name)
    encoded = subject.table.encoded
    for place in range(0, len(encoded), step):
        try:
            table = CodingTable.from_bytes(_change(encoded, place))
        except FileFormatError:
            seen.codes["unreadable"] += 1
            continue
        seen.expect(open_verdict(subject.data, table), "base", f"byte {place} of the table")


def _try_changed_base_files(name: str, seen: Verdicts, step: int, progress: Progress) -> int:
    """A changed base file does not match its slot table; with one that matches, the result."""
    subject = make_subject(name)
    files = write_base_files(name)
    packed = pack_patch(subject.patch, subject.table, files, release=SIGNED)
    checked, patch = open_patch(packed.data, POLICY, subject.table)
    check_results(checked, patch, files)
    in_slots = done = 0
    total = sum(len(data) for data, _ in files.values())
    for runtime, (data, table) in files.items():
        slots = _slot_bytes(table)
        for place in range(0, len(data), step):
            changed = _change(data, place)
            try:
                check_results(checked, patch, {runtime: (changed, table)})
                raise AssertionError(f"byte {place} of the {runtime} file: not seen")
            except IntegrityError:
                seen.codes["IntegrityError"] += 1
            bound = replace(table, base_sha256=sha256_hex(changed))
            try:
                check_results(checked, patch, {runtime: (changed, bound)})
                code = "ok"
            except PatchRefusedError as error:
                code = error.code
            shown = f"byte {place} of the {runtime} file, table rewritten"
            seen.expect(code, "ok" if place in slots else "result", shown)
            in_slots += place in slots
            progress(0.1 + 0.9 * (done + place) / total)
        done += len(data)
    return in_slots


def _slot_bytes(table: SlotTable) -> set[int]:
    """Bytes that the overlay of every resolution sets: of slots that all resolutions share."""
    shared = [slot for slot in table.slots if slot.resolution is None]
    return {
        place
        for slot in shared
        for place in range(slot.offset_bytes, slot.offset_bytes + slot.length_bytes)
    }


def _change(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


TASKS = ("a", "b", "a-", "a_b", "ab")
RUNTIMES = (("onnx",), ("tflite",), ("onnx", "tflite"), ("onnx-2",))
AT_HAND = ("onnx", "tflite", "onnx-2", "onn")
ENGINES = (1, 2, 3, 2**31 - 1)


def try_places(scale: float, progress: Progress) -> Told:
    """Row 6: every pair of (task, runtimes, engine) made and at hand; the first wrong one counts.

    All at once, so the order of check 5 is tried too: runtime, engine, task.
    """
    seen = Verdicts()
    every = list(product(TASKS, RUNTIMES, ENGINES))[:: 1 if scale >= 1 else round(1 / scale)]
    for number, (task, runtimes, engine) in enumerate(every):
        results = {name: {"64": sha(b"result")} for name in runtimes}
        file = forge(document(task=task, results=results, engine=engine))
        for own_task, own_runtime, own_engine in product(TASKS, AT_HAND, ENGINES):
            policy = replace(POLICY, task=own_task, runtime=own_runtime, engine=own_engine)
            expected = "ok"
            if task != own_task:
                expected = "task"
            if engine > own_engine:
                expected = "engine"
            if own_runtime not in runtimes:
                expected = "runtime"
            shown = ((task, runtimes, engine), (own_task, own_runtime, own_engine))
            seen.expect(verdict(file, policy), expected, shown)
        progress((number + 1) / len(every))
    return Told(
        f"{len(every)} x {len(TASKS) * len(AT_HAND) * len(ENGINES)} pairs of what a patch is for "
        "and what is at hand",
        seen.listed(),
        seen.count,
    )
