"""An Engine over a store: new patches come in while it runs, and no inference notices."""

import errno
import itertools
import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import KEY, make_bundle, make_patch, reference_logits
from graph_cases import random_images

from patchdeploy.bundle import add_task
from patchdeploy.errors import (
    ConfigError,
    PatchRefusedError,
    RuntimeBackendError,
    StorageError,
    UnknownResolutionError,
    UnknownTaskError,
)
from patchdeploy.patchfile.golden import Golden
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.patchfile.pack import GoldenInputs, Release, Signer, pack_patch
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.runtime.choose import make_backend
from patchdeploy.runtime.self_test import run_self_test
from patchdeploy.runtime.versions import nearest_resolution
from patchdeploy.storage import sha256_hex
from patchdeploy.store.files import DiskFiles
from patchdeploy.verify.patch import verify_patch

INSTALLS = int(os.environ.get("PATCHDEPLOY_FAULT_INSTALLS", "12"))
"""`make faults` asks for 1,000."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("engine_store") / "bundle", signed=True)


def pack(bundle, task="first", seed=1, sequence=2, key=KEY, golden=True):
    patch = make_patch(task=task, seed=seed)[1]
    thumbnails = np.full((1, 8, 8, 3), 99, np.uint8)
    return pack_patch(
        patch,
        bundle.coding_table,
        bundle.base_files(),
        release=Release(sequence, signers=(Signer(key, 0),)),
        golden=GoldenInputs(bundle.reference(), thumbnails) if golden else None,
    )


def expected(bundle, packed, px, images, tmp_path, runtime="litert"):
    """What the integer executor says of a packed patch, over a bundle of its own."""
    own = make_bundle(tmp_path, tasks=())
    add_task(own.path, packed.patch)
    return reference_logits(own_bundle(own.path), runtime, packed.patch.task, px, images)


def own_bundle(path):
    from patchdeploy.bundle import open_bundle

    return open_bundle(path)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_an_engine_takes_over_a_new_patch_and_reverts_with_the_store(bundle, tmp_path, runtime):
    store = open_store(tmp_path / "store", bundle, runtime)
    images = random_images(3, 16)
    with Engine.open(bundle, runtime, store=store, refresh_seconds=None) as engine:
        shipped = engine.logits(images, "first", 16)
        assert np.array_equal(shipped, reference_logits(bundle, runtime, "first", 16, images))
        second = pack(bundle, seed=21, sequence=2)
        store.install(second.data)
        assert np.array_equal(engine.logits(images, "first", 16), shipped)  # not looked at yet
        assert engine.refresh() == ("first",)
        found = engine.logits(images, "first", 16)
        assert np.array_equal(
            found, expected(bundle, second, 16, images, tmp_path / "own", runtime)
        )
        assert not np.array_equal(found, shipped)
        assert engine.residents == (("first", 16),)
        assert engine.refresh() == ()
        store.revert("first")
        assert engine.refresh() == ("first",)
        assert np.array_equal(engine.logits(images, "first", 16), shipped)
        store.activate(sha256_hex(second.data))
        third = pack(bundle, seed=22, sequence=3)
        store.install(third.data)
        engine.refresh()
        assert engine.versions["first"] == store.active()["first"]
        store.revert("first")
        assert engine.refresh() == ("first",)
        assert np.array_equal(engine.logits(images, "first", 16), found)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_patches_still_arrive_when_the_folder_of_the_bundle_is_gone(bundle, tmp_path, runtime):
    path = shutil.copytree(bundle.path, tmp_path / "copy")
    opened = own_bundle(path)
    store = open_store(tmp_path / "store", opened, runtime)
    images = random_images(2, 16)
    second = pack(bundle, seed=21, sequence=2)
    with Engine.open(opened, runtime, store=store, refresh_seconds=None) as engine:
        shutil.rmtree(path)
        store.install(second.data)
        assert engine.refresh() == ("first",)
        found = engine.logits(images, "first", 16)
        own = expected(bundle, second, 16, images, tmp_path / "own", runtime)
        assert np.array_equal(found, own)
        store.revert("first")
        assert engine.refresh() == ("first",)
        shipped = reference_logits(bundle, runtime, "first", 16, images)
        assert np.array_equal(engine.logits(images, "first", 16), shipped)


def test_a_store_brings_a_task_that_the_bundle_does_not_have(bundle, tmp_path):
    store = open_store(tmp_path / "store", bundle)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        with pytest.raises(UnknownTaskError, match="no task 'third'"):
            engine.classes("third")
        store.install(pack(bundle, task="third", seed=5).data)
        assert engine.refresh() == ("third",)
        assert engine.tasks == ("first", "second", "third")
        assert engine.logits(random_images(1, 24), "third", 24).shape == (1, 7)


def test_the_bundles_patch_runs_where_its_sequence_is_higher(tmp_path):
    bundle = make_bundle(tmp_path / "b", tasks=("first",), signed=True)
    open_store(tmp_path / "store", bundle).install(pack(bundle, seed=8, sequence=5).data)
    newer = Release(sequence=9, signers=(Signer(KEY, 0),))  # the app is updated
    bundle = add_task(bundle.path, make_patch(seed=7)[1], release=newer, replace_existing=True)
    store = open_store(tmp_path / "store", bundle)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        entry = bundle.manifest.files[bundle.task("first").file]
        assert engine.versions["first"] == entry.sha256
        store.install(pack(bundle, seed=8, sequence=9).data)
        engine.refresh()
        assert engine.versions["first"] == store.active()["first"]
    with pytest.raises(PatchRefusedError) as caught:
        open_store(tmp_path / "other", bundle).install(pack(bundle, seed=8, sequence=8).data)
    assert str(caught.value) == (
        "patch refused (sequence): sequence is 8; it must be 9 or more, that of the patch which "
        "ships with the app; fetch a newer patch; the one before the active one comes back with "
        "revert"
    )


class CountingFiles(DiskFiles):
    """The real disk, and how many patch files were read."""

    patches_read = 0

    def read(self, path, limit_bytes):
        self.patches_read += path.suffix == ".pdp"
        return super().read(path, limit_bytes)


def test_a_patch_older_than_the_shipped_one_is_read_once_and_not_at_every_look(tmp_path):
    bundle = make_bundle(tmp_path / "b", tasks=("first",), signed=True)
    open_store(tmp_path / "store", bundle).install(pack(bundle, seed=8, sequence=5).data)
    newer = Release(sequence=9, signers=(Signer(KEY, 0),))  # the app is updated
    bundle = add_task(bundle.path, make_patch(seed=7)[1], release=newer, replace_existing=True)
    files = CountingFiles()
    store = replace(open_store(tmp_path / "store", bundle), files=files)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert files.patches_read == 1
        assert engine.refresh() == engine.refresh() == ()
        assert files.patches_read == 1


def test_an_engine_refuses_a_store_of_another_base_or_runtime(bundle, tmp_path):
    other = make_bundle(tmp_path / "other", "branches", tasks=(), signed=True)
    bundles = {"ours": bundle, "other": other}
    formats = {"litert": "tflite", "onnxruntime": "onnx"}
    for of, runtime in itertools.product(bundles, formats):
        store = open_store(tmp_path / "store", bundles[of], runtime)
        for over, run in itertools.product(bundles, formats):
            if (of, runtime) == (over, run):
                Engine.open(bundles[over], run, store=store).close()
                continue
            theirs, ours = formats[runtime], formats[run]
            what = f"runtime's format {theirs}; the engine over {bundles[over].path} is for {ours}"
            if of != over:
                theirs, ours = (bundles[one].manifest.base_sha256 for one in (of, over))
                what = f"base {theirs}; the engine over {bundles[over].path} is for {ours}"
            with pytest.raises(ConfigError) as caught:
                Engine.open(bundles[over], run, store=store)
            assert str(caught.value) == (
                f"store {tmp_path / 'store'} is for {what}; open the store with open_store over "
                "the same bundle and runtime"
            )


def test_an_engine_refuses_a_store_of_another_length_of_base(bundle, tmp_path):
    store = open_store(tmp_path / "store", bundle)
    longer = replace(store.policy, base_bytes=store.policy.base_bytes + 1)
    with pytest.raises(ConfigError, match=f"is for a base length of {longer.base_bytes}; the eng"):
        Engine.open(bundle, store=replace(store, policy=longer))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Over the same base, with a resolution more in its files."""
    place = tmp_path_factory.mktemp("wide") / "bundle"
    return make_bundle(place, signed=True, resolutions=(16, 24, 32))


def pack_wide(wide, sequence):
    patch = make_patch(seed=7, resolutions=(16, 24, 32))[1]
    release = Release(sequence, signers=(Signer(KEY, 0),))
    return pack_patch(patch, wide.coding_table, wide.base_files(), release=release)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])  # an ONNX file is of any resolution
def test_a_patch_for_a_resolution_that_the_bundle_lacks_is_refused_and_harms_nothing(
    bundle, wide, tmp_path, runtime
):
    assert wide.coding_table.sha256 == bundle.coding_table.sha256
    data = pack_wide(wide, 7).data
    store = open_store(tmp_path / "store", bundle, runtime)
    with pytest.raises(PatchRefusedError) as caught:
        store.install(data)
    assert str(caught.value) == (
        "patch refused (resolution): resolution is 32 px; it must be one of 16, 24 px, which the "
        "base files at hand were made for; use a patch that was packed for this app and base"
    )
    report = verify_patch(data, bundle)
    assert (report.ok, report.refused.code) == (False, "resolution")
    good = pack(bundle, seed=8, sequence=2)
    store.install(good.data)
    (tmp_path / "store" / f"{sha256_hex(data)}.pdp").write_bytes(data)
    for name in ("STATE", "STATE.copy"):
        (tmp_path / "store" / name).unlink()
    assert len(store.list()) == 3  # the bundle's own, the good one, the bad one
    shipped = bundle.manifest.files[bundle.task("first").file].sha256
    with Engine.open(bundle, runtime, store=store) as engine:
        assert engine.versions["first"] == shipped
        assert engine.resolutions("first") == (16, 24)
    recovery = store.recover()
    assert list(recovery.refused) == [f"{sha256_hex(data)}.pdp"]
    assert "patch refused (resolution)" in recovery.refused[f"{sha256_hex(data)}.pdp"]
    assert store.activate(sha256_hex(good.data)).changed


def test_an_update_of_the_app_with_other_base_files_runs_the_bundles_patch(
    bundle, wide, tmp_path, caplog
):
    open_store(tmp_path / "store", wide).install(pack_wide(wide, 7).data)
    store = open_store(tmp_path / "store", bundle)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert engine.resolutions("first") == (16, 24)
        entry = bundle.manifest.files[bundle.task("first").file]
        assert engine.versions["first"] == entry.sha256
        assert "task first stays as it is: patch refused (resolution)" in caplog.text
        caplog.clear()
        assert engine.refresh() == ()
        assert caplog.text == ""  # the same files are not looked at again


def test_a_newer_patch_that_lacks_the_side_in_use_is_answered_by_the_nearest_one(
    bundle, tmp_path, caplog
):
    store = open_store(tmp_path / "store", bundle)
    image = np.full((30, 30, 3), 7, np.uint8)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        engine.swap_to("first", 24)
        assert engine.classify(image).resolution == 24
        patch = make_patch(task="first", seed=3, resolutions=(16,))[1]
        release = Release(2, signers=(Signer(KEY, 0),))
        small = pack_patch(patch, bundle.coding_table, bundle.base_files(), release=release)
        assert store.install(small.data).lost_resolutions == (24,)
        assert engine.refresh() == ("first",)
        assert "task first: its new patch has no 24 px; it has 16 px" in caplog.text
        assert engine.residents == (("first", 16),)  # loaded before the first call
        assert engine.classify(image).resolution == 16
        with pytest.raises(UnknownResolutionError, match="it has 16; choose"):
            engine.classify(image, resolution=24)
        store.revert("first")
        engine.refresh()
        assert engine.classify(image).resolution == 24


def test_of_two_sides_that_are_as_near_the_larger_one_answers():
    assert nearest_resolution(24, (16, 32)) == 32
    assert nearest_resolution(24, (16, 24, 32)) == 24
    assert nearest_resolution(4096, (16, 24)) == 24


def test_a_damaged_state_is_said_once_and_not_at_every_look(bundle, tmp_path, caplog):
    store = open_store(tmp_path / "store", bundle)
    installed = store.install(pack(bundle, seed=8).data)
    (tmp_path / "store" / "STATE").write_bytes(b"?")
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert engine.versions["first"] == installed.sha256
        assert caplog.text.count("is lost or damaged") == 1
        caplog.clear()
        assert engine.refresh() == ()
        assert caplog.text == ""
        newer = store.install(pack(bundle, seed=9, sequence=3).data)
        assert engine.refresh() == ("first",)
        assert engine.versions["first"] == newer.sha256


def test_a_store_that_cannot_be_read_leaves_the_bundles_patches_running(bundle, tmp_path, caplog):
    (tmp_path / "store").write_bytes(b"a file")
    store = open_store(tmp_path / "store", bundle)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert engine.tasks == ("first", "second")
        assert "Not a directory" in engine.store_problem
        for _ in range(2):
            with pytest.raises(StorageError):
                engine.refresh()
            engine._loaded.refresh_quietly()
        said = f"the store is not read, tasks stay as they are: {engine.store_problem}"
        assert [one.getMessage() for one in caplog.records] == [said]
        (tmp_path / "store").unlink()
        assert engine.refresh() == ()
        assert engine.store_problem is None


class SwitchedFiles(DiskFiles):
    """The real disk; while ``error`` is set, a folder's names cannot be had."""

    error = None

    def names(self, folder):
        if self.error is not None:
            raise self.error
        return super().names(folder)


def test_a_folder_without_permission_leaves_everything_running_until_it_is_back(bundle, tmp_path):
    files = SwitchedFiles()
    store = replace(open_store(tmp_path / "store", bundle), files=files)
    installed = store.install(pack(bundle, seed=8).data)
    shipped = bundle.manifest.files[bundle.task("first").file].sha256
    files.error = PermissionError(errno.EACCES, "Permission denied")
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert "Permission denied" in engine.store_problem
        assert engine.versions["first"] == shipped
        files.error = None
        assert engine.refresh() == ("first",)
        files.error = PermissionError(errno.EACCES, "Permission denied")
        with pytest.raises(StorageError):
            engine.refresh()
        assert engine.versions["first"] == installed.sha256


def test_a_defect_while_looking_in_the_background_is_logged_and_not_lost(bundle, tmp_path, caplog):
    files = SwitchedFiles()
    store = replace(open_store(tmp_path / "store", bundle), files=files)
    with Engine.open(bundle, store=store, refresh_seconds=0.0) as engine:
        files.error = TypeError("a defect")
        engine.logits(random_images(1, 16), "first", 16)
    assert "a defect of patchdeploy: the store was not read" in caplog.text
    assert "TypeError: a defect" in caplog.text


def test_a_store_that_lost_its_state_is_read_without_a_runtime_and_without_a_patch_file(
    bundle, tmp_path
):
    for sequence in (2, 3):
        open_store(tmp_path / "store", bundle).install(pack(bundle, sequence=sequence).data)
    shipped = bundle.manifest.files[bundle.task("first").file].sha256
    files = CountingFiles()
    store = replace(open_store(tmp_path / "store", bundle, package="not_there"), files=files)
    for names, active, reads in ((["STATE"], {"first"}, 1), (["STATE.copy"], set(), 0)):
        for name in names:
            (tmp_path / "store" / name).unlink()
        files.patches_read = 0
        with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
            assert engine.store_problem is None
            assert (engine.versions["first"] == shipped) == (not active)
            assert engine.refresh() == engine.refresh() == ()
        assert files.patches_read == reads
        assert set(store.active()) == active


OTHER = SigningKey.from_seed(b"another test key of these tests.")
REVOKED = TrustedKeys((None, OTHER.public), 1)


def pack_other(bundle, seed, sequence, task="first"):
    """A patch that the key signs which is in the new list alone."""
    return pack_patch(
        make_patch(task=task, seed=seed)[1],
        bundle.coding_table,
        bundle.base_files(),
        release=Release(sequence, signers=(Signer(OTHER, 1),)),
    )


def test_a_bundles_own_patches_of_a_revoked_key_do_not_run(bundle, tmp_path, caplog):
    store = open_store(tmp_path / "store", bundle, trusted=REVOKED)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert engine.tasks == ()
        assert "task first CANNOT RUN, none of its patches may be used" in caplog.text
        for act in (engine.classes, engine.prewarm, lambda task: engine.classify("x.png", task)):
            with pytest.raises(PatchRefusedError) as caught:
                act("first")
            assert caught.value.code == "key_unknown"
        good = pack_other(bundle, seed=61, sequence=1)
        store.install(good.data)
        assert engine.refresh() == ("first",)
        images = random_images(2, 16)
        answers = engine.logits(images, "first", 16)
        assert np.array_equal(answers, expected(bundle, good, 16, images, tmp_path / "own"))
        with pytest.raises(PatchRefusedError):
            engine.classes("second")


def test_an_engine_that_runs_drops_a_patch_when_its_key_is_revoked(bundle, tmp_path, caplog):
    store = open_store(tmp_path / "store", bundle)
    store.install(pack(bundle, seed=8).data)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        engine.prewarm("first", 16)
        newer = open_store(tmp_path / "store", bundle, trusted=REVOKED)  # another process
        newer.install(pack_other(bundle, seed=9, sequence=1, task="second").data)
        assert engine.refresh() == ("first", "second")
        assert engine.tasks == ("second",)
        assert engine.residents == ()
        with pytest.raises(PatchRefusedError, match="key_unknown"):
            engine.logits(random_images(1, 16), "first", 16)
    with Engine.open(bundle, store=open_store(tmp_path / "store", bundle)) as engine:
        assert engine.tasks == ("second",)  # the bundle's own list is an old one


class Forgetful:
    """A back end that has no memory for one task's model while ``is_full``."""

    def __init__(self, backend, values):
        self.backend, self.values, self.is_full = backend, values, True

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def load(self, values, resolution):
        if self.is_full and np.array_equal(values.bias, self.values[resolution].bias):
            raise RuntimeBackendError("no memory; free some; try again")
        return self.backend.load(values, resolution)


def test_a_task_whose_model_does_not_load_does_not_hold_up_the_others(bundle, tmp_path, caplog):
    store = open_store(tmp_path / "store", bundle)
    first, second = pack(bundle, seed=11), pack(bundle, task="second", seed=12)
    backend = Forgetful(make_backend(bundle, "litert", 1, "resident", None), first.patch.values)
    with Engine(bundle, backend, None, store=store, format_name="tflite") as engine:
        for task in ("first", "second"):
            engine.prewarm(task, 16)
        before = engine.versions
        for one in (first, second):
            store.install(one.data)
        assert engine.refresh() == ("second",)
        assert "task first stays as it is: no memory" in caplog.text
        assert engine.versions == before | {"second": sha256_hex(second.data)}
        backend.is_full = False
        assert engine.refresh() == ("first",)


class OneAtATime:
    """A back end that has memory for one image at a time, or for none."""

    name, version = "test", "0"
    resident_bytes = 0

    def __init__(self, most):
        self.most = most

    def load(self, values, resolution):
        return self

    def run(self, images):
        if len(images) > self.most:
            raise MemoryError
        return np.zeros((len(images), 9), np.float32)


def test_a_self_test_takes_the_memory_of_one_image_and_says_where_there_is_none(bundle):
    patch = pack(bundle).patch
    scores = {
        name: {px: np.zeros((3, len(patch.classes)), np.int8) for px in patch.values}
        for name in ("onnx", "tflite")
    }
    many = replace(patch, golden=Golden(np.zeros((3, 8, 8, 3), np.uint8), scores, 255))
    assert run_self_test(OneAtATime(1), "onnx", many, bundle.coding_table) is not None
    with pytest.raises(PatchRefusedError) as caught:
        run_self_test(OneAtATime(0), "onnx", many, bundle.coding_table)
    assert (caught.value.code, "out of memory" in str(caught.value)) == ("load", True)


def test_a_store_is_opened_and_listed_without_its_runtime(bundle, tmp_path):
    installed = open_store(tmp_path / "store", bundle).install(pack(bundle).data)
    store = open_store(tmp_path / "store", bundle, package="not_there")
    shipped = bundle.manifest.files[bundle.task("first").file].sha256
    assert {one.sha256 for one in store.list()} == {shipped, installed.sha256}
    assert store.clean_up() == ()
    with pytest.raises(ConfigError, match="not_there"):
        store.install(pack(bundle, seed=2, sequence=3).data)


def test_a_patch_that_is_damaged_in_the_store_leaves_the_task_as_it_is(bundle, tmp_path, caplog):
    store = open_store(tmp_path / "store", bundle)
    first = store.install(pack(bundle, seed=31, sequence=2).data)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        images = random_images(2, 16)
        before = engine.logits(images, "first", 16)
        second = store.install(pack(bundle, seed=32, sequence=3).data)
        path = tmp_path / "store" / f"{second.sha256}.pdp"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        for _ in range(3):
            assert engine.refresh() == ()
        (said,) = (one.getMessage() for one in caplog.records)
        assert said.startswith(f"task first stays as it is: patch file {path} has SHA-256")
        assert engine.versions["first"] == first.sha256
        assert np.array_equal(engine.logits(images, "first", 16), before)
        store.install(pack(bundle, seed=32, sequence=3).data)  # STATE and all names stay
        assert engine.refresh() == ("first",)
        assert engine.versions["first"] == second.sha256


def test_a_store_refuses_other_keys_other_bases_and_wrong_scores(bundle, tmp_path):
    store = open_store(tmp_path / "store", bundle)
    stranger = SigningKey.from_seed(bytes(32))
    good = pack(bundle, sequence=4)
    cases = {"signature": pack(bundle, sequence=2, key=stranger).data}
    golden = good.patch.golden
    lies = {
        name: {px: np.invert(one) for px, one in by_side.items()}
        for name, by_side in golden.scores.items()
    }
    wrong = replace(good.patch, golden=replace(golden, scores=lies))
    cases["self_test"] = pack_patch(
        wrong,
        bundle.coding_table,
        bundle.base_files(),
        release=Release(2, signers=(Signer(KEY, 0),)),
    ).data
    onnx = {"onnx": bundle.base_files()["onnx"]}
    cases["runtime"] = pack_patch(
        make_patch()[1], bundle.coding_table, onnx, release=Release(2, signers=(Signer(KEY, 0),))
    ).data
    for code, data in cases.items():
        with pytest.raises(PatchRefusedError) as caught:
            store.install(data)
        assert caught.value.code == code
        assert dict(store.active()) == {}
    other = make_bundle(tmp_path / "other", "branches", tasks=(), signed=True)
    with pytest.raises(PatchRefusedError) as caught:
        open_store(tmp_path / "others", other).install(good.data)
    assert caught.value.code == "base"


def test_an_engine_in_use_looks_at_its_store_by_itself(bundle, tmp_path):
    store = open_store(tmp_path / "store", bundle)
    with Engine.open(bundle, store=store, refresh_seconds=0.0) as engine:
        images = random_images(1, 16)
        engine.logits(images, "first", 16)
        installed = store.install(pack(bundle, seed=41).data)
        for _ in range(10_000):
            engine.logits(images, "first", 16)
            if engine.versions["first"] == installed.sha256:
                break
        assert engine.versions["first"] == installed.sha256


def test_installs_under_inference_change_no_running_inference(bundle, tmp_path):
    """Row 17: every answer is one that some installed version gives, bit for bit."""
    store = open_store(tmp_path / "store", bundle)
    images = random_images(2, 16)
    packed = [pack(bundle, seed=50 + k % 3, sequence=2 + k) for k in range(INSTALLS)]
    answers = {reference_logits(bundle, "litert", "first", 16, images).tobytes()}
    for k in range(3):
        one = expected(bundle, packed[k], 16, images, tmp_path / f"own{k}")
        answers.add(one.tobytes())
    assert len(answers) == 4
    found, failures, stop = set(), [], threading.Event()

    def classify(engine):
        try:
            while not stop.is_set():
                found.add(engine.logits(images, "first", 16).tobytes())
        except Exception as error:  # a test must see what a thread raised
            failures.append(error)

    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        threads = [threading.Thread(target=classify, args=(engine,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for one in packed:
            store.install(one.data)
            assert engine.refresh() == ("first",)
            store.clean_up()
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert found <= answers
    assert len(found) > 1
