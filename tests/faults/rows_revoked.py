"""Row 4, third part: a key is revoked, and an Engine has patches of it from its bundle and a store.

On both runtimes: the list changes before the Engine opens, or while it runs and has the task
loaded; the store is empty, or has a patch of the revoked key, or of a good one. No score may come
of a patch that the revoked key signed, an app that comes with the old list included; asking for a
task that has no other patch is the refusal, and a good patch runs.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from bundle_cases import KEY, make_bundle, make_patch
from tried import Progress, Told

from patchdeploy.bundle import Bundle
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.patchfile.pack import Release, Signer, pack_patch
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Store

RUNTIMES = ("litert", "onnxruntime")
TASK, OTHER_TASK = "first", "second"
GOOD = SigningKey.from_seed(b"the key that did not leak, row 4")
NEW = TrustedKeys((None, GOOD.public), 1)
IMAGE = np.zeros((1, 16, 16, 3), np.uint8)
IN_STORE = ("nothing", "a patch of the revoked key", "a patch of a good key")
WHEN = ("before it opened", "while it ran")


def _pack(bundle: Bundle, task: str, seed: int, sequence: int, is_good: bool) -> bytes:
    signer = Signer(GOOD, 1) if is_good else Signer(KEY, 0)
    patch = make_patch(task=task, seed=seed)[1]
    release = Release(sequence, signers=(signer,))
    return pack_patch(patch, bundle.coding_table, bundle.base_files(), release=release).data


def _outcome(engine: Engine, task: str = TASK) -> str:
    """SHA-256 of the patch that answers, or the code of the refusal."""
    try:
        engine.logits(IMAGE, task, 16)
    except PatchRefusedError as error:
        return error.code
    return engine.versions[task]


def try_revoked(scale: float, folder: Path, progress: Progress) -> Told:
    """Every runtime (below full scale the first), every store, before and while an Engine runs."""
    bundle = make_bundle(folder / "bundle", signed=True)
    cases = list(itertools.product(RUNTIMES[: 2 if scale >= 1 else 1], IN_STORE, WHEN))
    for number, case in enumerate(cases):
        _try_case(folder / f"store {number}", bundle, *case)
        progress((number + 1) / len(cases))
    return Told(
        f"{len(cases)} Engines over a bundle of a key that is revoked, over a store with "
        f"{', '.join(IN_STORE)}; revoked {' or '.join(WHEN)}; each opened again with the old list",
        "no score of a patch that the key signed; key_unknown where the task has no other",
        2 * len(cases),
    )


def _try_case(place: Path, bundle: Bundle, runtime: str, in_store: str, when: str) -> None:
    what, shipped = f"{runtime}, {in_store}, {when}", bundle.manifest.files
    old = open_store(place, bundle, runtime)
    expected = "key_unknown"
    if in_store != IN_STORE[0]:
        data = _pack(bundle, TASK, 31, 2, is_good=False)
        old.install(data)
    if when == WHEN[0]:
        expected = _revoke(place, bundle, runtime, in_store)
    with Engine.open(bundle, runtime, store=old, refresh_seconds=None) as engine:
        if when == WHEN[1]:
            before = _outcome(engine)
            active = old.active().get(TASK, shipped[bundle.task(TASK).file].sha256)
            assert before == active, f"{what}: {before} ran before"
            expected = _revoke(place, bundle, runtime, in_store)
            engine.refresh()
        assert _outcome(engine) == expected, f"{what}: {_outcome(engine)} answers"
        assert _outcome(engine, OTHER_TASK) == "key_unknown", what
    again: Store = open_store(place, bundle, runtime)
    with Engine.open(bundle, runtime, store=again, refresh_seconds=None) as engine:
        assert _outcome(engine) == expected, f"{what}: {_outcome(engine)} answers again"


def _revoke(place: Path, bundle: Bundle, runtime: str, in_store: str) -> str:
    """A writer with the new list; what the task then answers with."""
    store = open_store(place, bundle, runtime, trusted=NEW)
    if in_store != IN_STORE[2]:
        store.recover()
        return "key_unknown"
    good = _pack(bundle, TASK, 32, 1, is_good=True)
    store.install(good)
    return sha256_hex(good)
