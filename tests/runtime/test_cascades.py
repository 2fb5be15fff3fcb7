"""An Engine with a cascade: which stage answers, in both runtimes, alone, in batches, folders."""

import pytest
import slow_cascade
from bundle_cases import KEY, make_bundle
from cascade_cases import CERTIFICATE, IMAGES, KINDS, RUNTIMES, codes_of, make_rule, with_cascade
from PIL import Image

from patchdeploy.bundle import add_task
from patchdeploy.cascade import CascadeRule, Stage
from patchdeploy.cascade.rule import MAX_THRESHOLD
from patchdeploy.errors import ConfigError, UnknownTaskError
from patchdeploy.patchfile.pack import Release, Signer
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """By score: a bundle whose first task has a cascade, its second none."""
    folder = tmp_path_factory.mktemp("cascades")
    found = {}
    for kind in KINDS:
        bundle = make_bundle(folder / kind, signed=True)
        found[kind] = with_cascade(bundle, "first", make_rule(bundle, kind), 2)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_first_stage_that_is_sure_answers_each_image(bundles, kind, runtime):
    bundle = bundles[kind]
    rule = bundle.patch("first").cascade.rule
    expected = [
        slow_cascade.answering_stage(rule, {16: codes}) for codes in codes_of(bundle, runtime)
    ]
    assert 0 < sum(expected) < len(IMAGES)
    with Engine.open(bundle, runtime) as engine:
        found = engine.classify(list(IMAGES), "first", cascade=True)
        assert [one.resolution for one in found] == [(16, 24)[stage] for stage in expected]
        for image, one in zip(IMAGES, found, strict=True):
            alone = engine.classify(image, "first", one.resolution)
            assert (alone.scores == one.scores).all()
            assert (engine.classify(image, "first", cascade=True).scores == one.scores).all()
        counts = engine.cascade_counts("first")
    answered = {16: 2 * expected.count(0), 24: 2 * expected.count(1)}
    assert counts == answered


def test_a_folder_goes_through_the_cascade_as_a_batch_does(bundles, tmp_path):
    for k, image in enumerate(IMAGES[:20]):
        Image.fromarray(image).save(tmp_path / f"{k:02}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    with Engine.open(bundles["margin"]) as engine:
        rows = list(engine.classify_folder(tmp_path, "first", cascade=True))
        batch = engine.classify(list(IMAGES[:20]), "first", cascade=True)
    assert [path.name for path, _ in rows] == [f"{k:02}.png" for k in range(20)]
    for k, (_, one) in enumerate(rows):
        if k != 3:
            assert (one.scores == batch[k].scores).all()
            assert one.resolution == batch[k].resolution
    assert isinstance(rows[3][1], Exception)


def test_per_run_mode_takes_the_same_decisions(bundles):
    with (
        Engine.open(bundles["entropy"], "onnxruntime", mode="per_run") as per_run,
        Engine.open(bundles["entropy"], "onnxruntime") as resident,
    ):
        found = [
            [one.resolution for one in engine.classify(list(IMAGES), "first", cascade=True)]
            for engine in (per_run, resident)
        ]
    assert found[0] == found[1]


@pytest.mark.parametrize(("threshold", "px"), [(0, 16), (256, 24), (MAX_THRESHOLD, 24)])
def test_thresholds_that_are_always_or_never_reached_do_what_they_say(tmp_path, threshold, px):
    bundle = make_bundle(tmp_path / "bundle", signed=True)
    bundle = with_cascade(bundle, "first", make_rule(bundle, "margin", threshold), 2)
    with Engine.open(bundle) as engine:
        found = engine.classify(list(IMAGES[:5]), "first", cascade=True)
    assert {one.resolution for one in found} == {px}


def test_a_cascade_of_one_stage_is_that_resolution(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", signed=True)
    bundle = with_cascade(bundle, "first", CascadeRule("margin", (Stage(16, 0, 0),)), 2)
    with Engine.open(bundle) as engine:
        assert engine.classify(IMAGES[0], "first", cascade=True).resolution == 16
        assert engine.cascade_counts("first") == {16: 1}


def test_no_images_a_task_without_cascade_and_a_resolution_beside_it(bundles):
    with Engine.open(bundles["margin"]) as engine:
        assert engine.classify([], "first", cascade=True) == []
        with pytest.raises(ConfigError, match="the patch of task 'second' has no cascade; fit one"):
            engine.classify(IMAGES[0], "second", cascade=True)
        with pytest.raises(ConfigError, match="cascade=True at 24 px; a cascade chooses"):
            engine.classify(IMAGES[0], "first", 24, cascade=True)
        with pytest.raises(UnknownTaskError):
            engine.classify(IMAGES[0], "third", cascade=True)
        assert engine.cascade("second") is None
        assert engine.cascade("first").certificate == CERTIFICATE
        assert engine.cascade_counts("second") == {}
        with pytest.raises(UnknownTaskError):
            engine.cascade_counts("third")


def test_all_stages_are_loaded_together_and_their_memory_is_said(bundles):
    with Engine.open(bundles["margin"]) as engine:
        found = engine.prewarm_cascade("first")
        assert set(engine.residents) == {("first", 16), ("first", 24)}
        assert found["resident_bytes"] == engine.resident_bytes
        assert found["total_ms"] > 0


def test_a_new_patch_of_a_store_brings_its_own_cascade(bundles, tmp_path):
    made = make_bundle(tmp_path / "bundle", signed=True)
    bundle = with_cascade(made, "first", CascadeRule("margin", (Stage(16, 0, 0),)), 2)
    newer = with_cascade(
        make_bundle(tmp_path / "newer", signed=True),
        "first",
        CascadeRule("margin", (Stage(24, 0, 0),)),
        5,
    )
    store = open_store(tmp_path / "store", bundle)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert engine.classify(IMAGES[0], "first", cascade=True).resolution == 16
        assert engine.cascade_counts("first") == {16: 1}
        store.install(newer.read(newer.task("first").file))
        engine.refresh()
        assert engine.cascade("first").rule.resolutions == (24,)
        assert engine.cascade_counts("first") == {}
        assert engine.classify(IMAGES[0], "first", cascade=True).resolution == 24
        assert engine.cascade_counts("first") == {24: 1}


def test_a_new_patch_that_has_lost_its_cascade_answers_at_one_resolution(bundles, tmp_path, caplog):
    """An app that classifies by a cascade goes on when a patch without one is installed."""
    made = make_bundle(tmp_path / "bundle", signed=True)
    bundle = with_cascade(made, "first", CascadeRule("margin", (Stage(16, 0, 0),)), 2)
    plain = make_bundle(tmp_path / "plain", signed=True)
    release = Release(9, signers=(Signer(KEY, 0),))
    newer = add_task(plain.path, plain.patch("first"), replace_existing=True, release=release)
    store = open_store(tmp_path / "store", bundle)
    with Engine.open(bundle, store=store, refresh_seconds=None) as engine:
        assert engine.classify(IMAGES[0], "first", cascade=True).resolution == 16
        store.install(newer.read(newer.task("first").file))
        engine.refresh()
        found = engine.classify(list(IMAGES[:3]), "first", cascade=True)
        assert [one.resolution for one in found] == [24, 24, 24]
        assert caplog.text.count("its patch has no cascade; 24 px answer every image") == 1
        with pytest.raises(ConfigError, match="has no cascade"):
            engine.prewarm_cascade("first")
