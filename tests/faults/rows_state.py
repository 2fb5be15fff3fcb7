"""Row 15 of the fault table with real bundles and an Engine: no STATE, and patches that are bad.

Each bad patch is signed by the right key and lies in the folder beside a good one while STATE is
missing or damaged. The good one must be active again, the bad one left out with its reason, and an
Engine over the store must run the good one. Control: without the bad patch the same comes out.
Where the folder itself cannot be read, the bundle's patches run and the error can be read.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from bundle_cases import KEY, RESOLUTIONS, make_bundle, make_patch
from tried import Progress, Told

from patchdeploy.bundle import Bundle
from patchdeploy.patchfile.golden import Golden
from patchdeploy.patchfile.keys import SigningKey
from patchdeploy.patchfile.pack import Release, Signer, pack_patch
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.storage import sha256_hex
from patchdeploy.store.folder import STATE, patch_name

TASK = "first"
FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}
WIDE = (*RESOLUTIONS, 32)
"""A resolution more than the bundle's base files have; the coding table is the same."""
LACKS = "a resolution that the base file lacks"
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
            "patch refused (result)",
        ),
        "another base": (
            _pack(other, make_patch("branches", task=TASK)[1], 9),
            "patch refused (base)",
        ),
        "another key": (_pack(bundle, good, 9, stranger), "patch refused (signature)"),
        "wrong scores": (_pack(bundle, _misbehaving(), 9), "patch refused (self_test)"),
    }


def try_state(folder: Path, progress: Progress) -> Told:
    """Every bad patch with every damage on both runtimes, and folders that cannot be read."""
    bundle = make_bundle(folder / "bundle", signed=True)
    good = _pack(bundle, make_patch(task=TASK, seed=19)[1], 2)
    bad = make_bad_patches(bundle, folder) | {"none": (b"", "")}
    cases = [
        (runtime, name, damage)
        for runtime, name, damage in itertools.product(FORMATS, bad, DAMAGES)
        if (runtime, name) != ("onnxruntime", LACKS)  # an ONNX base file is of any resolution
    ]
    for number, (runtime, name, damage) in enumerate(cases):
        data, refusal = bad[name]
        _try_damage(folder / f"store {number}", bundle, runtime, (good, data, refusal), damage)
        progress((number + 1) / len(cases))
    for runtime in FORMATS:
        _try_unreadable(folder / f"no folder {runtime}", bundle, runtime)
    return Told(
        f"{len(cases)} stores with STATE missing or damaged, beside the good patch one of "
        f"{len(bad) - 1} bad ones or none, on {' and '.join(FORMATS)}; {len(FORMATS)} folders "
        "that cannot be read",
        "the good patch was active again and ran in an Engine, each bad one was left out with its "
        "reason; over a folder that cannot be read the bundle's patches ran and said why",
        len(cases) + len(FORMATS),
    )


def _try_damage(
    place: Path, bundle: Bundle, runtime: str, patches: tuple[bytes, bytes, str], damage: str
) -> None:
    good, bad, refusal = patches
    store = open_store(place, bundle, runtime)
    store.install(good)
    if bad:
        (place / patch_name(sha256_hex(bad))).write_bytes(bad)
    (place / STATE).unlink()
    damaged = DAMAGES[damage]
    if damaged is not None:
        (place / STATE).write_bytes(damaged)
    what = f"{runtime}, {refusal or 'no bad patch'}, STATE {damage}"
    expected = {TASK: sha256_hex(good)}
    assert dict(store.active()) == expected, what
    assert len(store.list()) == 2 + bool(bad), what  # what ships is there, too
    with Engine.open(bundle, runtime, store=store, refresh_seconds=None) as engine:
        assert engine.versions[TASK] == sha256_hex(good), what
        assert engine.store_problem is None, what
    recovery = store.recover()
    assert recovery is not None, what
    assert dict(recovery.active) == expected, what
    assert [one.split(": ")[0] for one in recovery.refused.values()] == [refusal] * bool(bad), what
    assert store.recover() is None, what
    assert (place / STATE).is_file(), what


def _try_unreadable(place: Path, bundle: Bundle, runtime: str) -> None:
    place.write_bytes(b"a file where the folder should be")
    store = open_store(place, bundle, runtime)
    with Engine.open(bundle, runtime, store=store, refresh_seconds=None) as engine:
        assert engine.store_problem is not None, runtime
        shipped = bundle.manifest.files[bundle.task(TASK).file].sha256
        assert engine.versions[TASK] == shipped, runtime
        assert len(engine.logits(np.zeros((1, 16, 16, 3), np.uint8), TASK, 16)) == 1, runtime
