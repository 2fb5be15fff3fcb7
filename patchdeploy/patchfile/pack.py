"""From slot values to a patch file that can be signed, and back to values that may be used.

In: a task's values, the base's coding table and base files. Out: a `PackedPatch`: the bytes, and
the patch as its readers will decode it. Its header holds the SHA-256 of every model that comes of
it, so that an app can prove what it is about to run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchdeploy.coding.grid import CodingSteps, exact_steps
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import (
    PatchRefusedError,
    SlotTableError,
    UnknownResolutionError,
    WrongBaseError,
)
from patchdeploy.patchfile.container import (
    CheckedPatch,
    Policy,
    add_signature,
    build_patch,
    check_patch_file,
)
from patchdeploy.patchfile.golden import SIDE, Golden, enlarge
from patchdeploy.patchfile.header import ENCODINGS, PatchHeader
from patchdeploy.patchfile.keys import SigningKey
from patchdeploy.patchfile.payload import all_sites, decode_payload, encode_payload
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.executor import compute_alike, run_integer
from patchdeploy.quantize.model import QuantizedBase, unflatten_variant
from patchdeploy.quantize.runtimes import MACHINES, Arithmetic, arithmetic_of
from patchdeploy.slots import PatchValues, SlotTable, overlay
from patchdeploy.storage import sha256_hex

_log = logging.getLogger(__name__)

TOLERANCE_LSB = 8
"""Of the head's output: what a runtime with its own rounding may differ in the self-test, at least.
Those that this project measured on x86-64 differ by 0; on arm64 see `GoldenInputs.score`."""
MOST_TOLERANCE_LSB = 255

GOLDEN_MACHINE = "x86-64"
"""Whose arithmetic the scores of a self-test are in, wherever the patch is packed: the same inputs
give the same bytes."""

BaseFiles = Mapping[str, tuple[bytes, SlotTable]]
"""By converter name: a base file and its slot table."""


@dataclass(frozen=True)
class Signer:
    """A private key and its place among the readers' trusted keys."""

    key: SigningKey
    index: int


@dataclass(frozen=True)
class Release:
    """What a patch file says about itself.

    Attributes:
        sequence: greater for a newer patch of the same task, from 1.
        expires: Unix seconds from which on it is not installed; 0: never.
        signers: who signs it; nobody: a development file.
    """

    sequence: int = 1
    expires: int = 0
    signers: tuple[Signer, ...] = ()


@dataclass(frozen=True)
class PackedPatch:
    """A patch file.

    Attributes:
        data: its bytes.
        header: as in the bytes.
        patch: with the DECODED values: what accuracy is to be measured on.
        part_bytes: of the payload, by part.
    """

    data: bytes
    header: PatchHeader
    patch: PatchFile
    part_bytes: Mapping[str, int]


def pack_patch(
    patch: PatchFile,
    table: CodingTable,
    bases: BaseFiles,
    *,
    steps: CodingSteps | None = None,
    release: Release | None = None,
    golden: GoldenInputs | None = None,
) -> PackedPatch:
    """Code ``patch`` and wrap it; the same arguments give the same bytes.

    Args:
        bases: every runtime that the patch is for.
        steps: by default every value is coded exactly.
        golden: what the self-test is made from; by default there is none.

    Raises:
        WrongBaseError: the values were made for another base.
        PatchFileError, HeadCapacityError, ConfigError: see `encode_payload`.
    """
    if patch.base_sha256 != table.sha256:
        raise WrongBaseError(
            f"patch {patch.task!r} was made for base {patch.base_sha256}; the coding table is of "
            f"base {table.sha256}; export the task over this base"
        )
    release = release or Release()
    make_golden = None if golden is None else partial(golden.score, runtimes=tuple(bases))
    coded = encode_payload(patch, table, steps or exact_steps(table), tuple(bases), make_golden)
    sides = sorted(patch.values, reverse=True)
    encoding = "parts-1" if patch.cascade is None else "parts-2"
    header = PatchHeader(
        task=patch.task,
        base_sha256=table.sha256,
        base_bytes=table.length_bytes,
        classes=len(patch.classes),
        encoding=encoding,
        engine=ENCODINGS[encoding],
        expires=release.expires,
        payload_sha256=sha256_hex(coded.payload),
        payload_bytes=len(coded.payload),
        resolutions=tuple(sides),
        results={
            name: {px: result_sha256(coded.patch.values[px], px, *base) for px in sides}
            for name, base in bases.items()
        },
        sequence=release.sequence,
        sites=all_sites(table),
    )
    data = build_patch(header, coded.payload)
    for signer in release.signers:
        data = add_signature(data, signer.key, signer.index)
    return PackedPatch(data, header, coded.patch, coded.part_bytes)


@dataclass(frozen=True, eq=False)
class GoldenInputs:
    """What a self-test is made from.

    Attributes:
        base: its executor gives the scores.
        thumbnails: uint8 RGB [n, 8, 8, 3], of real images.
        tolerance_lsb: see `Golden`; at least so much.
    """

    base: QuantizedBase
    thumbnails: NDArray[np.uint8]
    tolerance_lsb: int = TOLERANCE_LSB

    def score(self, patch: PatchFile, runtimes: Sequence[str]) -> Golden:
        """The self-test of ``patch``, whose values are the decoded ones.

        Its tolerance is at least twice what the scores differ between the machines that are known,
        so that a good patch passes on each of them, and on one that rounds as far the other way.
        """
        scores: dict[str, dict[int, NDArray[np.int8]]] = {name: {} for name in runtimes}
        apart = 0
        for name in runtimes:
            for px in patch.values:
                found = self._by_machine(patch, px, name)
                scores[name][px] = found.pop(GOLDEN_MACHINE)
                golden = scores[name][px].astype(np.int32)
                gaps = (np.abs(golden - other).max(initial=0) for other in found.values())
                apart = max(apart, *map(int, gaps))
        tolerance = min(max(self.tolerance_lsb, 2 * apart), MOST_TOLERANCE_LSB)
        if tolerance > self.tolerance_lsb:
            _log.warning(
                "task %r: scores of the self-test's pictures differ by up to %d LSB between %s, "
                "which round differently; the self-test allows %d LSB, and finds less. Pictures "
                "that the task is surer of, or more training, make them differ less",
                *(patch.task, apart, " and ".join(MACHINES), tolerance),
            )
        return Golden(self.thumbnails, scores, tolerance)

    def _by_machine(
        self, patch: PatchFile, resolution: int, runtime: str
    ) -> dict[str, NDArray[np.int8]]:
        """int8 [images, classes] by machine; computed once for those that compute alike."""
        variant = unflatten_variant(self.base, patch.values[resolution], patch.task, resolution)
        images = enlarge(self.thumbnails, resolution)
        golden = arithmetic_of(runtime, GOLDEN_MACHINE)

        def codes(arithmetic: Arithmetic) -> NDArray[np.int8]:
            found = run_integer(self.base, variant, images, arithmetic).codes
            return found[:, : len(patch.classes)]

        found = {GOLDEN_MACHINE: codes(golden)}
        for machine in MACHINES:
            arithmetic = arithmetic_of(runtime, machine)
            alike = compute_alike(self.base.graph, golden, arithmetic)
            found[machine] = found[GOLDEN_MACHINE] if alike else codes(arithmetic)
        return found


def result_sha256(values: PatchValues, resolution: int, base_file: bytes, table: SlotTable) -> str:
    """SHA-256 of the base file with ``values`` laid over its slots for ``resolution``.

    Raises:
        IntegrityError, UnknownResolutionError, SlotTableError: see `overlay`.
    """
    return sha256_hex(memoryview(overlay(base_file, table, {resolution: values})))


def open_patch(
    data: bytes, policy: Policy, table: CodingTable, resolution: int | None = None
) -> tuple[CheckedPatch, PatchFile]:
    """Checks 1 to 8: the patch in ``data``, every value inside its rule.

    Args:
        policy: its base is that of ``table``, whatever it says.
        resolution: decode this one alone, which is faster; by default all.

    Raises:
        PatchRefusedError: with the code of the first check that fails.
    """
    bound = replace(policy, base_sha256=table.sha256, base_bytes=table.length_bytes)
    checked = check_patch_file(data, bound)
    return checked, decode_payload(checked.payload, checked.header, table, resolution)


def check_results(checked: CheckedPatch, patch: PatchFile, bases: BaseFiles) -> None:
    """Check 9, first part: what comes of the patch is what its maker signed, in every runtime.

    Raises:
        PatchRefusedError: code "result": another model, or a resolution that a base file lacks.
        IntegrityError: a base file is not the one of its slot table.
    """
    for name, base in bases.items():
        expected: Mapping[int, str] = checked.header.results.get(name, {})
        for px, values in patch.values.items():
            try:
                found = result_sha256(values, px, *base)
            except (UnknownResolutionError, SlotTableError) as error:
                raise PatchRefusedError(
                    "result",
                    f"{name} at {px} px",
                    "a model that this base file can become",
                    f"none ({error})",
                    "use the base files that the patch was packed with",
                ) from error
            if expected.get(px) != found:
                raise PatchRefusedError(
                    "result",
                    f"SHA-256 of {name} at {px} px",
                    expected.get(px, "among the results of the header"),
                    found,
                    "use the base files that the patch was packed with",
                )


def make_thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [n, H, W, 3] -> uint8 [n, 8, 8, 3]: the mean of each cell of an 8 x 8 grid."""
    size = (SIDE, SIDE)
    small = [Image.fromarray(one).resize(size, Image.Resampling.BOX) for one in images]
    return np.stack([np.asarray(one, np.uint8) for one in small])
