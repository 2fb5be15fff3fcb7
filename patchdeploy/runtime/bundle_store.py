"""A patch store for the base of a bundle: its checks, bound to the files and runtime at hand.

In: a folder, a bundle, a runtime. Out: a `Store` that takes patches of that base alone, proves
that the model which comes of each is the one its maker signed, and runs its self-test before it
becomes active. The runtime itself is started by the first self-test: a store can be listed without.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from patchdeploy.bundle import Bundle
from patchdeploy.bundle.held import hold_bundle
from patchdeploy.errors import ConfigError, PatchKeyError
from patchdeploy.patchfile import CheckedPatch, check_patch_file
from patchdeploy.patchfile.key_lists import join_lists
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.pack import check_results
from patchdeploy.patchfile.payload import decode_payload
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.runtime.choose import RUNTIME_FORMATS, make_backend
from patchdeploy.runtime.self_test import run_self_test
from patchdeploy.store import Hooks, Shipped, Store


def open_store(
    folder: Path | str,
    bundle: Bundle,
    runtime: str = "litert",
    *,
    trusted: TrustedKeys | None = None,
    allow_unsigned: bool = False,
    package: str | None = None,
) -> Store:
    """The store at ``folder`` for patches of ``bundle``'s base; nothing is written yet.

    It keeps the bundle's patches and base file in memory, so it works on when the bundle's folder
    is replaced.

    Args:
        runtime: "litert" or "onnxruntime": what self-tests run on.
        trusted: keys that must sign; by default those that the bundle pins. What this list, the
            bundle's or one that the store has seen before has revoked stays revoked.
        allow_unsigned: take patches that nobody signed, for development; each is logged.
        package: see `Engine.open`.

    Raises:
        ConfigError: an unknown runtime, or one whose format the bundle does not hold.
        PatchRefusedError: a patch of the bundle may not be used.
    """
    if runtime not in RUNTIME_FORMATS:
        raise ConfigError(
            f"runtime {runtime!r}; it must be one of {', '.join(RUNTIME_FORMATS)}; choose one"
        )
    format_name = RUNTIME_FORMATS[runtime]
    bundle = hold_bundle(bundle, format_name)
    table = bundle.coding_table
    bases = {format_name: bundle.base(format_name)}
    backend = cache(lambda: make_backend(bundle, runtime, 1, "resident", package))
    policy = replace(
        bundle.policy(),
        trusted=_newest(trusted, bundle.manifest.trusted),
        allow_unsigned=allow_unsigned,
        runtime=format_name,
        base_bytes=table.length_bytes,
    )

    def decode(checked: CheckedPatch) -> PatchFile:
        return decode_payload(checked.payload, checked.header, table)

    def self_test(checked: CheckedPatch, patch: PatchFile) -> None:
        check_results(checked, patch, bases)
        run_self_test(backend(), format_name, patch, table)

    shipped = {task: _shipped(bundle, task) for task in bundle.tasks}
    return Store(Path(folder), policy, Hooks(check_patch_file, decode, self_test), shipped=shipped)


def _shipped(bundle: Bundle, task: str) -> Shipped:
    checked = bundle.check(task)
    read = partial(bundle.read, bundle.task(task).file)
    return Shipped(checked.header.sequence, read, checked.signed_by)


def _newest(given: TrustedKeys | None, pinned: TrustedKeys | None) -> TrustedKeys | None:
    """What the caller gives, less the keys that the bundle, if its list is of the same keys, knows
    as revoked."""
    try:
        return join_lists(given, pinned)
    except PatchKeyError:
        return given
