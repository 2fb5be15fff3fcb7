"""Row 15 of the fault table with real bundles and an Engine: no STATE, and patches that are bad.

Each bad patch is signed and lies in the folder beside a good one, which was installed and then
reverted, while STATE or STATE and its copy are missing or damaged. With a copy the very state comes
back: what ships runs, as after the revert. Without, what ships runs, and no older patch is taken.
In an Engine nothing of the bad patch is ever seen. Control: without the bad patch the same comes
out. Where the folder itself cannot be read, the bundle's patches run and the error can be read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from bundle_cases import KEY, RESOLUTIONS, make_bundle, make_patch
from tried import Progress, Told

from patchdeploy.bundle import Bundle
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import add_signature, build_patch, check_patch_file, read_container
from patchdeploy.patchfile.golden import Golden
from patchdeploy.patchfile.keys import SigningKey
from patchdeploy.patchfile.pack import Release, Signer, pack_patch
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Store
from patchdeploy.store.folder import COPY, STATE, patch_name

TASK = "first"
FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}
WIDE = (*RESOLUTIONS, 32)
"""A resolution more than the bundle's base files have; the coding table is the same."""
LACKS = "a resolution that the bundle lacks"
SOUND = "none before its self-test"
RECORDS = ((STATE,), (STATE, COPY))
DAMAGES = {
    "missing": None,
    "empty": b"",
    "of another format": b'{"format":2}',
    "noise": b"\x00\xff",
}


def _pack(bundle: Bundle, patch: PatchFile, sequence: int, key: SigningKey = KEY) -> bytes:
    release = Release(sequence, signers=(Signer(key, 0),))
    return pack_patch(patch, bundle.coding_table, bundle.base_files(), release=release).data


def _misbehaving() -> PatchFile:
    """With scores in its self-test that its model does not give."""
    patch = make_patch(task=TASK, seed=21)[1]
    wrong = {
        name: {px: np.full((1, len(patch.classes)), 127, np.int8) for px in patch.values}
        for name in FORMATS.values()
    }
    golden = Golden(np.zeros((1, 8, 8, 3), np.uint8), wrong, 0)
    return replace(patch, golden=golden)


def make_bad_patches(bundle: Bundle, folder: Path) -> dict[str, tuple[bytes, str]]:
    """By what is wrong with it: a patch with a higher sequence, and what its refusal says."""
    wide = make_bundle(folder / "wide", tasks=(), signed=True, resolutions=WIDE)
    other = make_bundle(folder / "other", "branches", tasks=(), signed=True)
    good = make_patch(task=TASK, seed=20)[1]
    stranger = SigningKey.from_seed(b"a key that nobody's readers know")
    assert wide.coding_table.sha256 == bundle.coding_table.sha256
    return {
        LACKS: (
            _pack(wide, make_patch(task=TASK, seed=20, resolutions=WIDE)[1], 9),
            "patch refused (resolution)",
        ),
        "another base": (
            _pack(other, make_patch("branches", task=TASK)[1], 9),
            "patch refused (base)",
        ),
        "another key": (_pack(bundle, good, 9, stranger), "patch refused (signature)"),
        "wrong scores": (_pack(bundle, _misbehaving(), 9), SOUND),
    }


def try_state(folder: Path, progress: Progress, damages: Sequence[str] = tuple(DAMAGES)) -> Told:
    """Every bad patch with every damage on both runtimes, and folders that cannot be read."""
    bundle = make_bundle(folder / "bundle", signed=True)
    good = _pack(bundle, make_patch(task=TASK, seed=19)[1], 2)
    bad = make_bad_patches(bundle, folder) | {"none": (b"", "")}
    cases = list(itertools.product(FORMATS, bad, damages, RECORDS))
    for number, (runtime, name, damage, records) in enumerate(cases):
        data, refusal = bad[name]
        patches = (good, data, refusal)
        _try_damage(folder / f"store {number}", bundle, runtime, patches, (damage, records))
        progress((number + 1) / len(cases))
    for runtime in FORMATS:
        _try_unreadable(folder / f"no folder {runtime}", bundle, runtime)
    return Told(
        f"{len(cases)} stores with STATE, or STATE and its copy, missing or damaged, beside a "
        f"reverted patch one of {len(bad) - 1} bad ones or none, on {' and '.join(FORMATS)}; "
        f"{len(FORMATS)} folders that cannot be read",
        "the reverted patch did not come back and no bad one ran, with the reason of each; what "
        "ships ran; the floor stayed; over a folder that cannot be read the bundle's patches ran "
        "and said why",
        len(cases) + len(FORMATS),
    )


def _try_damage(
    place: Path,
    bundle: Bundle,
    runtime: str,
    patches: tuple[bytes, bytes, str],
    how: tuple[str, tuple[str, ...]],
) -> None:
    good, bad, refusal = patches
    damage, records = how
    store = open_store(place, bundle, runtime)
    store.install(good)
    store.revert(TASK)
    if bad:
        (place / patch_name(sha256_hex(bad))).write_bytes(bad)
    for name in records:
        (place / name).unlink()
        damaged = DAMAGES[damage]
        if damaged is not None:
            (place / name).write_bytes(damaged)
    what = f"{runtime}, {refusal or 'no bad patch'}, {records} {damage}"
    shipped = bundle.manifest.files[bundle.task(TASK).file].sha256
    expected = {TASK: shipped} if COPY not in records else {}
    assert dict(store.active()) == expected, what
    assert len(store.list()) == 2 + bool(bad), what  # what ships is there, too
    with Engine.open(bundle, runtime, store=store, refresh_seconds=None) as engine:
        assert engine.versions[TASK] == shipped, what
        assert engine.store_problem is None, what
    recovery = store.recover()
    assert recovery is not None, what
    assert dict(recovery.active) == expected, what
    refused = [refusal] if bad and refusal != SOUND and not expected else []
    assert [one.split(": ")[0] for one in recovery.refused.values()] == refused, what
    _check_floor(store, good, what)


def _check_floor(store: Store, good: bytes, what: str) -> None:
    """An older number than that of the patch that was reverted is refused."""
    assert store.recover() is None, what
    header = check_patch_file(good, replace(store.policy, floor=0)).header
    older = build_patch(replace(header, sequence=1), read_container(good).payload)
    try:
        store.install(add_signature(older, KEY, 0))
        code = "taken"
    except PatchRefusedError as error:
        code = error.code
    assert code == "sequence", f"{what}: an older patch: {code}"


def _try_unreadable(place: Path, bundle: Bundle, runtime: str) -> None:
    place.write_bytes(b"a file where the folder should be")
    store = open_store(place, bundle, runtime)
    with Engine.open(bundle, runtime, store=store, refresh_seconds=None) as engine:
        assert engine.store_problem is not None, runtime
        shipped = bundle.manifest.files[bundle.task(TASK).file].sha256
        assert engine.versions[TASK] == shipped, runtime
        assert len(engine.logits(np.zeros((1, 16, 16, 3), np.uint8), TASK, 16)) == 1, runtime
