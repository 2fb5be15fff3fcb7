"""An Engine over a store: new patches come in while it runs, and no inference notices."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import KEY, make_bundle, make_patch, reference_logits
from graph_cases import random_images

from patchdeploy.bundle import add_task
from patchdeploy.errors import PatchRefusedError, UnknownTaskError
from patchdeploy.patchfile.keys import SigningKey
from patchdeploy.patchfile.pack import GoldenInputs, Release, Signer, pack_patch
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store

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
        third = pack(bundle, seed=22, sequence=3)
        store.install(third.data)
        engine.refresh()
        assert engine.versions["first"] == store.active()["first"]
        store.revert("first")
        assert engine.refresh() == ("first",)
        assert np.array_equal(engine.logits(images, "first", 16), found)


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
    newer = Release(sequence=9, signers=(Signer(KEY, 0),))
    bundle = add_task(bundle.path, make_patch(seed=7)[1], release=newer, replace_existing=True)
    store = open_store(tmp_path / "store", bundle)
    store.install(pack(bundle, seed=8, sequence=5).data)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        entry = bundle.manifest.files[bundle.task("first").file]
        assert engine.versions["first"] == entry.sha256
        store.install(pack(bundle, seed=8, sequence=9).data)
        engine.refresh()
        assert engine.versions["first"] == store.active()["first"]


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
        assert engine.refresh() == ()
        assert "task first stays as it is" in caplog.text
        assert engine.versions["first"] == first.sha256
        assert np.array_equal(engine.logits(images, "first", 16), before)


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
