"""run, evaluate, verify and bench with the patches of a store; remove; what a task's version is."""

import shutil

import numpy as np
import pytest
from bundle_cases import KEY, LABELS, make_bundle, make_patch
from cli_cases import answer, here, refused
from PIL import Image

from patchdeploy.bundle import open_bundle
from patchdeploy.patchfile.pack import GoldenInputs, Release, Signer, pack_patch
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.storage import sha256_hex


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A signed bundle, a store with a newer patch of its first task, and labelled images."""
    root = tmp_path_factory.mktemp("bundle_store")
    bundle = make_bundle(root / "bundle", signed=True)
    bundle.manifest.trusted.save(root / "trusted.json")
    open_store(root / "store", bundle).install(pack(bundle, seed=9, sequence=2))
    rng = np.random.default_rng(0)
    for label in LABELS:
        (root / "images" / label).mkdir(parents=True)
        for k in range(4):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / label / f"{k}.png")
    return root


def pack(bundle, seed, sequence):
    thumbnails = bundle.patch("first").golden.thumbnails
    return pack_patch(
        make_patch(task="first", seed=seed)[1],
        bundle.coding_table,
        bundle.base_files(),
        release=Release(sequence, signers=(Signer(KEY, 0),)),
        golden=GoldenInputs(bundle.reference(), thumbnails),
    ).data


def scores(place, store, paths, runtime):
    with Engine.open(place / "bundle", runtime, store=store) as engine:
        return [engine.classify(path, "first", 24).top(1)[0] for path in paths]


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_run_and_evaluate_use_what_a_store_has_active(place, runtime):
    paths = sorted((place / "images").rglob("*.png"))
    store = open_store(place / "store", open_bundle(place / "bundle"), runtime)
    ours, shipped = (scores(place, one, paths, runtime) for one in (store, None))
    assert ours != shipped
    options = ("--task", "first", "--runtime", runtime)
    for given, expected in (((), shipped), (("--store", place / "store"), ours)):
        found = answer("run", place / "bundle", *paths, *options, "--resolution", 24, *given)
        assert [tuple(one["top"][0].values()) for one in found] == expected
        right = sum(
            path.parent.name == label for path, (label, _) in zip(paths, expected, strict=True)
        )
        rows = answer("evaluate", place / "bundle", place / "images", *options, *given)
        assert [one["top1"] for one in rows if one["resolution"] == 24] == [right / len(paths)]


def test_the_patch_that_ran_is_named(place):
    image = next((place / "images").rglob("*.png"))
    done = here("run", place / "bundle", image, "--task", "first", "--store", place / "store")
    sha256 = sha256_hex(pack(open_bundle(place / "bundle"), seed=9, sequence=2))
    assert f"patch {sha256[:16]}" in done.stdout


def test_verify_checks_the_patches_of_a_store_too(place, tmp_path):
    report = answer("verify", place / "bundle", "--store", place / "store")
    rows = {one["check"]: one["passed"] for one in report["checks"] if one["subject"] == "first"}
    assert {name: rows[f"store: {name}"] for name in ("signatures", "results", "self-test")} == {
        "signatures": True,
        "results": True,
        "self-test": True,
    }
    store = damaged(place, tmp_path)
    done = here("verify", place / "bundle", "--store", store, "--json")
    assert done.returncode == 1
    assert "has SHA-256" in done.stdout


def damaged(place, tmp_path):
    store = shutil.copytree(place / "store", tmp_path / "store")
    active = open_store(store, open_bundle(place / "bundle")).active()["first"]
    path = store / f"{active}.pdp"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return store


def test_bench_measures_what_a_store_has_active(place):
    options = ("--runtimes", "litert", "--threads", 1, "--rounds", 1)
    assert answer("bench", place / "bundle", *options, "--store", place / "store")["latency"]


def test_figures_are_never_of_another_patch_than_the_one_that_is_active(place, tmp_path):
    """An Engine goes on with the bundle's patch; a command that measures must not."""
    store = damaged(place, tmp_path)
    image = next((place / "images").rglob("*.png"))
    for command in (
        ("run", place / "bundle", image, "--task", "first"),
        ("evaluate", place / "bundle", place / "images", "--task", "first"),
        ("bench", place / "bundle", "--rounds", 1),
    ):
        refused(here(*command, "--store", store), 2, "has SHA-256")


def test_a_store_that_is_not_there_and_options_without_one_are_refused(place, tmp_path):
    image = next((place / "images").rglob("*.png"))
    command = ("run", place / "bundle", image, "--task", "first")
    refused(here(*command, "--store", tmp_path / "none"), 2, "no patch store at")
    refused(here(*command, "--trusted", place / "trusted.json"), 2, "without --store")
    refused(here(*command, "--allow-unsigned"), 2, "without --store")


def test_remove_takes_a_task_out_and_leaves_the_rest(place, tmp_path):
    bundle = shutil.copytree(place / "bundle", tmp_path / "bundle")
    report = answer("remove", bundle, "--task", "first")
    assert set(report["tasks"]) == {"second"}
    assert not (bundle / "patches" / "first.pdp").exists()
    assert open_bundle(bundle).tasks == ("second",)
    refused(here("remove", bundle, "--task", "first"), 2, "no task 'first'", "it has second")
