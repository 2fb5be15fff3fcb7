"""Would a device take this patch file? Every check of docs/patch-format.md but the commit.

In: the bytes of a ``.pdp`` file and the bundle of its base. Out: a `PatchReport`: each check
passed, failed or not reached, in their order. A bad file gives a report, not an exception.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from patchdeploy.bundle import Bundle
from patchdeploy.errors import (
    ConfigError,
    MissingExtraError,
    PatchdeployError,
    PatchRefusedError,
)
from patchdeploy.patchfile import CheckedPatch, Policy, check_patch_file
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.pack import check_results
from patchdeploy.patchfile.payload import decode_payload
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.runtime.choose import RUNTIME_FORMATS, make_backend
from patchdeploy.runtime.self_test import run_self_test
from patchdeploy.storage import sha256_hex

STAGES = (
    (1, "container", "too_large truncated magic header_length reserved signature_count"),
    (2, "signatures", "unsigned key_unknown key_repeated signature threshold"),
    (3, "header", "header_text header_field"),
    (4, "payload", "length payload_hash"),
    (5, "place", "runtime engine base task resolution"),
    (6, "time", "sequence expired"),
    (7, "parts", "sites inflate parts work"),
    (8, "values", "values"),
    (9, "results", "result"),
    (9, "self-test", "load self_test"),
)
"""(number, name, codes) of every check, in order."""
_STAGE_OF = {code: name for _, name, codes in STAGES for code in codes.split()}


@dataclass(frozen=True)
class PatchCheck:
    """One check.

    Attributes:
        number: in docs/patch-format.md.
        name: what was looked at.
        passed: None where it was not reached or could not be done; ``detail`` says which.
        detail: what was found, or the error.
    """

    number: int
    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class PatchReport:
    """All checks of one file.

    Attributes:
        sha256, file_bytes: of the file.
        checks: one for each of `STAGES`.
        refused: why the file may not be used, or None.
        checked: its header and signers, where checks 1 to 6 passed.
    """

    sha256: str
    file_bytes: int
    checks: tuple[PatchCheck, ...]
    refused: PatchdeployError | None
    checked: CheckedPatch | None

    @property
    def ok(self) -> bool:
        """No check failed."""
        return self.refused is None

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        header = None if self.checked is None else self.checked.header
        return {
            "sha256": self.sha256,
            "bytes": self.file_bytes,
            "ok": self.ok,
            "task": None if header is None else header.task,
            "sequence": None if header is None else header.sequence,
            "code": getattr(self.refused, "code", None),
            "checks": [
                {
                    "check": one.number,
                    "name": one.name,
                    "passed": one.passed,
                    "detail": one.detail,
                }
                for one in self.checks
            ],
        }


def verify_patch(
    data: bytes,
    bundle: Bundle,
    *,
    trusted: TrustedKeys | None = None,
    allow_unsigned: bool = False,
    runtimes: Sequence[str] | None = None,
    task: str | None = None,
    now: int | None = None,
) -> PatchReport:
    """Check a patch file against ``bundle``, as an app with that bundle would.

    There is no store, so no floor: any sequence number passes.

    Args:
        trusted: keys that must sign; by default those that the bundle pins.
        allow_unsigned: take a file that nobody signed.
        runtimes: those that it must run on; by default all that the bundle has files for.
        task: the task that it must be for; by default any.
        now: Unix seconds; by default the machine's clock.

    Raises:
        ConfigError: an unknown runtime, or one whose format the bundle does not hold.
        PatchdeployError: the bundle itself is damaged.
    """
    chosen = tuple(runtimes or (one for one in RUNTIME_FORMATS if _holds(bundle, one)))
    run = _Run(data, bundle, chosen)
    table = bundle.coding_table
    policy = replace(
        bundle.policy(task),
        trusted=trusted or bundle.manifest.trusted,
        allow_unsigned=allow_unsigned,
        base_bytes=table.length_bytes,
        now=int(time.time()) if now is None else now,
    )
    refused: PatchdeployError | None = None
    try:
        run.check(policy)
    except PatchRefusedError as error:
        refused = error
        run.failed = _STAGE_OF[error.code]
    return PatchReport(sha256_hex(data), len(data), run.rows(refused), refused, run.checked)


def _holds(bundle: Bundle, runtime: str) -> bool:
    return RUNTIME_FORMATS[runtime] in bundle.formats


class _Run:
    """The checks of one file on their way."""

    def __init__(self, data: bytes, bundle: Bundle, runtimes: Sequence[str]) -> None:
        self.data = data
        self.bundle = bundle
        files = bundle.base_files()
        self.bases = {name: files[name] for name in self._formats(runtimes)}
        self.runtimes = runtimes
        self.details: dict[str, str] = {}
        self.skipped: set[str] = set()
        self.failed: str | None = None
        self.checked: CheckedPatch | None = None

    def _formats(self, runtimes: Sequence[str]) -> list[str]:
        for name in runtimes:
            if name not in RUNTIME_FORMATS or not _holds(self.bundle, name):
                held = [one for one in RUNTIME_FORMATS if _holds(self.bundle, one)]
                raise ConfigError(
                    f"runtime {name!r}; bundle {self.bundle.path} has files for "
                    f"{', '.join(held) or 'none'}; choose one of them"
                )
        return [RUNTIME_FORMATS[name] for name in runtimes]

    def check(self, policy: Policy) -> None:
        """Every check in order, with what each found in ``details``."""
        for name in self.bases or (None,):  # later ones can only miss their own runtime
            checked = check_patch_file(self.data, replace(policy, runtime=name))
        self.checked = checked
        self._describe(checked)
        table = self.bundle.coding_table
        patch = decode_payload(checked.payload, checked.header, table)
        self.details["parts"] = f"{checked.header.payload_bytes} bytes, {table.slot_count} slots"
        sides = ", ".join(map(str, sorted(patch.values)))
        self.details["values"] = f"{len(patch.classes)} classes at {sides} px"
        check_results(checked, patch, self.bases)
        self.details["results"] = f"{len(patch.values) * len(self.bases)} models, as signed"
        self._self_test(patch)

    def _describe(self, checked: CheckedPatch) -> None:
        header, signers = checked.header, ", ".join(map(str, checked.signed_by))
        self.details |= {
            "container": f"{len(self.data)} bytes, {len(checked.signed_by)} signatures",
            "signatures": f"by key {signers}" if signers else "UNSIGNED, which is allowed here",
            "header": f"task {header.task!r}",
            "payload": header.payload_sha256,
            "place": f"base {header.base_sha256[:16]}, {', '.join(self.bases)}",
            "time": f"sequence {header.sequence}"
            + (f", expires at {header.expires}" if header.expires else ", never expires"),
        }

    def _self_test(self, patch: PatchFile) -> None:
        found = []
        for runtime in self.runtimes:
            try:
                backend = make_backend(self.bundle, runtime, 1, "resident", None)
            except MissingExtraError as error:
                found.append(f"{runtime}: {error}")
                self.skipped.add("self-test")
                continue
            name = RUNTIME_FORMATS[runtime]
            worst = run_self_test(backend, name, patch, self.bundle.coding_table)
            found.append(f"{runtime}: " + ("loads" if worst is None else f"{worst} LSB away"))
        if patch.golden is None:
            found.append("the patch carries no self-test")
        self.details["self-test"] = "; ".join(found)

    def rows(self, refused: PatchdeployError | None) -> tuple[PatchCheck, ...]:
        """One row for each stage; those after the one that failed were not reached."""
        names = [name for _, name, _ in STAGES]
        end = names.index(self.failed) if self.failed is not None else len(names)
        found = []
        for place, (number, name, _) in enumerate(STAGES):
            if place == end:
                found.append(PatchCheck(number, name, False, str(refused)))
            elif place > end:
                found.append(PatchCheck(number, name, None, "not reached"))
            else:
                passed = None if name in self.skipped else True
                found.append(PatchCheck(number, name, passed, self.details.get(name, "")))
        return tuple(found)
