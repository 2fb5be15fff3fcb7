"""Fitting a cascade: three splits, what is certified and refused, the file it travels in."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import KEY, LABELS, make_bundle, make_patch, reference_logits, snapshot
from graph_cases import random_images

from patchdeploy.bundle import add_task, open_bundle
from patchdeploy.cascade import SCORE_KINDS
from patchdeploy.cascade.rule import route
from patchdeploy.cascade.scores import confidence
from patchdeploy.cascade.search import run_thresholds
from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.data import ImageDataset
from patchdeploy.errors import (
    CertificationError,
    ConfigError,
    DataError,
    PatchRefusedError,
    UnknownTaskError,
)
from patchdeploy.export import Signing
from patchdeploy.fit_cascade import (
    LEAST_IMAGES,
    SHARES,
    CascadeConfig,
    _warn_of_seen,
    attach_cascade,
    fit_cascade,
    fit_scores,
    split_images,
)
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.runtime.task_scores import TaskScores
from patchdeploy.verify import verify_bundle

COSTS = {32: 1.0, 48: 2.25, 64: 4.0}
CLASSES = 5


def make_scores(count=4000, seed=0, weak=0.5, sides=(32, 48, 64)):
    """Heads that are surer of easy images; the smaller a resolution, the more images are hard.

    Args:
        weak: how much weaker each smaller resolution is; 0: as good as the largest.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    easy = rng.random(count)
    codes = {}
    for place, px in enumerate(reversed(sides)):
        scores = rng.normal(0, 12, (count, CLASSES))
        strength = 90 * easy - 25 * weak * place * (1 - easy)
        scores[np.arange(count), labels] += strength
        codes[px] = np.clip(np.rint(scores), -128, 127).astype(np.int8)
    return TaskScores(codes, labels, dict.fromkeys(sides, 0.1))


def test_every_image_is_in_one_split_and_a_seed_gives_the_same():
    splits = split_images(1001, 0)
    assert sorted(np.concatenate(splits).tolist()) == list(range(1001))
    assert [len(one) / 1001 for one in splits] == pytest.approx(SHARES, abs=1 / 1001)
    again, other = split_images(1001, 0), split_images(1001, 1)
    assert all((a == b).all() for a, b in zip(splits, again, strict=True))
    assert (splits[1] != other[1]).any()


@pytest.mark.parametrize("kind", [*SCORE_KINDS, "auto"])
def test_a_cascade_saves_and_keeps_its_certificate_on_images_that_chose_nothing(kind):
    fit = fit_scores(make_scores(), COSTS, CascadeConfig(tolerance=0.02, score=kind), "task")
    cascade, row = fit.cascade, fit.rows[0]
    assert cascade.certificate.certified
    assert cascade.certificate.images == fit.images[1]
    assert row.saving > 0.3
    assert row.gap[1] <= 0.02  # the interval of 1,000 other images allows what is certified
    assert sum(row.answered) == pytest.approx(1)
    assert set(fit.choosing) == (set(SCORE_KINDS) if kind == "auto" else {kind})
    assert [one.name for one in fit.rows] == ["cascade", "greedy", "32 px", "48 px", "64 px"]
    assert fit.rows[-1].saving == 0
    json.dumps(fit.to_json())


def test_neither_certifying_nor_reporting_images_choose_anything():
    scores = make_scores()
    config = CascadeConfig(tolerance=0.02, score="margin")
    fit = fit_scores(scores, COSTS, config, "task")
    choose, _, report = split_images(len(scores.labels), config.seed)
    broken = scores.labels.copy()
    broken[report] = (broken[report] + 1) % CLASSES
    other = fit_scores(replace(scores, labels=broken), COSTS, config, "task")
    assert other.cascade == fit.cascade
    assert other.rows[0].accuracy < 0.3
    answers = scores.subset(choose).answers("margin", COSTS, 64)
    assert run_thresholds(answers, _thresholds(fit)).loss.mean() <= 0.02


def _thresholds(fit):
    from patchdeploy.cascade.search import Thresholds

    rule = fit.cascade.rule
    return Thresholds(rule.resolutions, tuple(one.threshold for one in rule.stages[:-1]))


def test_the_rule_that_a_patch_carries_takes_the_decisions_that_were_certified():
    scores = make_scores()
    for kind in SCORE_KINDS:
        fit = fit_scores(scores, COSTS, CascadeConfig(tolerance=0.02, score=kind), "task")
        rule = fit.cascade.rule
        assert len(rule.stages) > 1
        confidences = {
            stage.resolution: confidence(kind, scores.codes[stage.resolution], stage.ratio)
            for stage in rule.stages[:-1]
        }
        outcome = run_thresholds(scores.answers(kind, COSTS, 64), _thresholds(fit))
        assert (route(rule, confidences) == outcome.stage).all()


def test_a_smaller_resolution_that_is_as_good_is_the_answer():
    fit = fit_scores(make_scores(weak=0.0), COSTS, CascadeConfig(tolerance=0.02), "task")
    assert fit.cascade.rule.resolutions == (32,)
    assert fit.rows[0].answered == (1.0,)
    assert fit.rows[0].early_accuracy is None


def test_too_few_images_say_what_they_could_show_and_write_nothing_unless_asked():
    scores = make_scores(count=300)
    config = CascadeConfig(tolerance=0.005)
    with pytest.raises(CertificationError) as caught:
        fit_scores(scores, COSTS, config, "task")
    assert "within 0.5 points at 95 % confidence on 150 images; they show" in str(caught.value)
    fit = fit_scores(scores, COSTS, replace(config, uncertified=True), "task")
    assert not fit.cascade.certificate.certified
    assert fit.rows[0].saving > 0
    assert fit.smallest_tolerance > 0.005


def test_resolutions_that_are_too_weak_are_named_as_the_reason():
    with pytest.raises(CertificationError, match="the smaller resolutions are too weak"):
        fit_scores(make_scores(weak=20.0), COSTS, CascadeConfig(tolerance=0.001), "task")


def test_the_best_resolution_may_be_the_reference():
    scores = make_scores()
    codes = {**scores.codes, 64: scores.codes[32], 48: scores.codes[64]}
    fit = fit_scores(
        replace(scores, codes=codes),
        COSTS,
        CascadeConfig(tolerance=0.02, reference="best"),
        "task",
    )
    assert fit.cascade.certificate.reference == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": 0.0}, "tolerance 0 points"),
        ({"tolerance": 4e-7}, "tolerance 0 points"),
        ({"tolerance": "1"}, "tolerance '1'; it must be a number"),
        ({"confidence": None}, "confidence None; it must be a number"),
        ({"shares": None}, "shares None; they must be three numbers"),
        ({"seed": 1.5}, "seed 1.5; it must be a whole number"),
        ({"seed": True}, "seed True; it must be a whole number"),
        ({"confidence": 1 - 4e-7}, "confidence 1; it must be"),
        ({"tolerance": float("nan")}, "tolerance nan points"),
        ({"confidence": 1.0}, "confidence 1; it must be at least"),
        ({"score": "loudness"}, "score 'loudness'; it must be one of margin, probability"),
        ({"cost": "watts"}, "cost 'watts'"),
        ({"reference": "smallest"}, "reference 'smallest'"),
        ({"shares": (0.5, 0.5, 0.0)}, "each of the three parts of the images must be above 0"),
        ({"shares": (0.5, 0.5, 0.5)}, "they must be 1 together"),
        ({"shares": (0.5, 0.5)}, "they must be 1 together"),
        ({"shares": (float("nan"), 0.5, 0.5)}, "they must be 1 together"),
        ({"seed": -1}, "seed -1; it must be 0 or more"),
    ],
)
def test_a_setting_outside_its_choices_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        CascadeConfig(**change)


# -- over a real bundle ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle", signed=True)


@pytest.fixture
def bundle(made, tmp_path):
    return open_bundle(shutil.copytree(made.path, tmp_path / "bundle"))


def make_dataset(bundle, count=200):
    """Labels are what the reference says, of even images at 24 px, of odd ones at 16 px."""
    images = random_images(count, 30)
    blank = ImageDataset("known", images, np.zeros(count, np.int64), LABELS)
    said = {
        px: reference_logits(
            bundle, "litert", "first", px, blank.at(px, bundle.manifest.preprocessing)
        ).argmax(1)
        for px in (16, 24)
    }
    labels = np.where(np.arange(count) % 2 == 0, said[24], said[16])
    return ImageDataset("known", images, labels.astype(np.int64), LABELS)


LOOSE = CascadeConfig(tolerance=0.5, confidence=0.9)
SIGNING = Signing(TrustedKeys((KEY.public,), threshold=1), (KEY,))


def test_a_fitted_cascade_travels_in_the_patch_and_changes_no_value(bundle):
    dataset = make_dataset(bundle)
    fit = fit_cascade(bundle, dataset, "first", LOOSE)
    before = bundle.patch("first"), bundle.header("first")
    made = attach_cascade(bundle, fit, SIGNING)
    header, patch = made.header("first"), made.patch("first")
    assert patch.cascade == fit.cascade
    assert header.results == before[1].results  # the very models that were signed
    assert header.sequence == before[1].sequence + 1
    assert (header.encoding, header.engine) == ("parts-2", 2)
    assert patch.golden is not None
    assert made.patch("second").cascade is None
    assert made.header("second").encoding == "parts-1"
    assert verify_bundle(made.path, dataset, limit=8, reference_limit=2).ok


def test_a_cascade_leaves_the_task_its_float_scores_and_its_float_files(bundle):
    dataset = make_dataset(bundle)
    task = bundle.patch("first")
    steps = fine_steps(task.values, bundle.coding_table)
    release = SIGNING.release(bundle.header("first").sequence + 1)
    bundle = add_task(
        bundle.path, task, float_files={"first.16.onnx": b"float"}, float_scores=b"scores",
        replace_existing=True, steps=steps, release=release,
    )  # fmt: skip
    fit = fit_cascade(bundle, dataset, "first", LOOSE)
    made = attach_cascade(bundle, fit, SIGNING)
    assert made.read(made.task("first").float_files["16"]) == b"float"
    scores = made.manifest.float_scores("first")
    assert made.read(scores) == b"scores"
    (made.path / scores).unlink()  # it does not ship
    made = attach_cascade(open_bundle(made.path), fit, SIGNING)
    assert made.manifest.float_scores("first") is None


def test_a_file_grows_by_less_than_a_kilobyte(bundle):
    fit = fit_cascade(bundle, make_dataset(bundle), "first", LOOSE)
    before = len(bundle.read(bundle.task("first").file))
    made = attach_cascade(bundle, fit, SIGNING)
    # 20 bytes and 9 a stage, 10 of the part's prefix, a digit more of payload length at most.
    assert 0 < len(made.read(made.task("first").file)) - before <= 20 + 9 * 2 + 10 + 1


def test_a_bundle_that_pins_keys_takes_no_unsigned_cascade(bundle):
    fit = fit_cascade(bundle, make_dataset(bundle), "first", LOOSE)
    before = snapshot(bundle.path)
    with pytest.raises(PatchRefusedError, match="unsigned"):
        attach_cascade(bundle, fit)
    assert snapshot(bundle.path) == before


def test_both_runtimes_give_the_same_fit(bundle):
    dataset = make_dataset(bundle)
    fits = [
        fit_cascade(bundle, dataset, "first", replace(LOOSE, runtime=runtime))
        for runtime in ("litert", "onnxruntime")
    ]
    assert fits[0].cascade == fits[1].cascade


def test_milliseconds_are_measured_from_decoded_images(bundle):
    config = replace(LOOSE, cost="ms", uncertified=True)  # a busy machine may rank them otherwise
    fit = fit_cascade(bundle, make_dataset(bundle, 60), "first", config)
    assert fit.cost_unit == "ms"
    assert all(0 < cost < 1000 for cost in fit.costs.values())


def test_bad_images_and_tasks_are_refused_and_the_bundle_is_as_it_was(bundle, tmp_path):
    dataset = make_dataset(bundle, LEAST_IMAGES)
    before = snapshot(bundle.path)
    with pytest.raises(DataError, match=f"{LEAST_IMAGES - 1} images; a cascade is chosen"):
        fit_cascade(bundle, dataset.subset(np.arange(LEAST_IMAGES - 1)), "first", LOOSE)
    strangers = ImageDataset("s", dataset.images, dataset.labels * 0, ("cat", "dog"))
    with pytest.raises(DataError, match="classes cat, dog"):
        fit_cascade(bundle, strangers, "first", LOOSE)
    with pytest.raises(UnknownTaskError, match="no task 'third'"):
        fit_cascade(bundle, dataset, "third", LOOSE)
    assert snapshot(open_bundle(bundle.path).path) == before
    single = make_bundle(tmp_path / "single", tasks=("first",), resolutions=(16,))
    with pytest.raises(ConfigError, match="has one resolution, 16 px"):
        fit_cascade(single, dataset, "first", LOOSE)


def test_copies_of_an_image_count_once_and_it_is_said(bundle, caplog):
    dataset = make_dataset(bundle, 60)
    twice = dataset.subset(np.arange(120) % 60)
    plain = fit_cascade(bundle, dataset, "first", LOOSE)
    found = fit_cascade(bundle, twice, "first", LOOSE)
    assert found == plain
    assert "60 of 120 images have the pixels of another one" in caplog.text
    with pytest.raises(DataError, match=f"{LEAST_IMAGES - 1} images; a cascade is chosen"):
        fit_cascade(bundle, dataset.subset(np.arange(400) % (LEAST_IMAGES - 1)), "first", LOOSE)


def test_a_cascade_is_not_written_into_a_patch_that_it_was_not_fitted_on(bundle):
    config = replace(LOOSE, uncertified=True)
    fit = fit_cascade(bundle, make_dataset(bundle), "second", config)
    before = snapshot(bundle.path)
    with pytest.raises(ConfigError, match="makes other models than the one that the cascade was"):
        attach_cascade(bundle, replace(fit, task="first"), SIGNING)
    with pytest.raises(ConfigError, match="makes other models than the one that the cascade was"):
        attach_cascade(bundle, replace(fit, models_sha256=""), SIGNING)
    assert snapshot(bundle.path) == before


@pytest.mark.parametrize(("before", "warns"), [(0.4, True), (0.97, False), ("x", False)])
def test_images_that_training_seems_to_have_seen_are_warned_of(caplog, before, warns):
    """All 200 images right: three errors of 200 and 200 images below that is 0.96."""
    labels = np.arange(200) % CLASSES
    codes = {px: np.eye(CLASSES, dtype=np.int8)[labels] for px in (16, 24)}
    seen = TaskScores(codes, labels, dict.fromkeys((16, 24), 0.1))
    _warn_of_seen(seen, {"validation_top1": {"24": before}}, "photos")
    assert ("images that training has seen certify nothing" in caplog.text) == warns


def test_a_cascade_keeps_the_expiry_of_its_patch_unless_another_is_given(bundle):
    task, header = bundle.patch("first"), bundle.header("first")
    release = replace(SIGNING.release(header.sequence + 1), expires=2_000_000_000)
    bundle = add_task(bundle.path, task, replace_existing=True, release=release)
    fit = fit_cascade(bundle, make_dataset(bundle), "first", LOOSE)
    made = attach_cascade(bundle, fit, SIGNING)
    assert made.header("first").expires == 2_000_000_000
    made = attach_cascade(made, fit, replace(SIGNING, expires=2_100_000_000))
    assert made.header("first").expires == 2_100_000_000


def test_a_patch_that_came_while_the_cascade_was_written_is_not_lost(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "bundle", "branches")
    fit = fit_cascade(bundle, make_dataset(bundle), "first", LOOSE)

    def late(path, patch, **options):
        newer = make_patch("branches", "first", seed=9)[1]
        add_task(path, newer, replace_existing=True)
        return add_task(path, patch, **options)

    monkeypatch.setattr(sys.modules["patchdeploy.fit_cascade"], "add_task", late)
    with pytest.raises(ConfigError, match="sequence 2 for task 'first'"):
        attach_cascade(bundle, fit)
    expected = make_patch("branches", "first", seed=9)[1].values[16].bias
    assert (open_bundle(bundle.path).patch("first").values[16].bias == expected).all()


def test_a_part_without_images_and_a_single_class_are_refused():
    with pytest.raises(DataError, match="one of the three parts is empty"):
        fit_scores(make_scores(400), COSTS, CascadeConfig(shares=(1e-9, 1 - 2e-9, 1e-9)), "task")
    one = make_scores(400)
    codes = {px: found[:, :1] for px, found in one.codes.items()}
    with pytest.raises(ConfigError, match="scores of 1 class"):
        fit_scores(replace(one, codes=codes), COSTS, CascadeConfig(), "task")


def test_what_is_tested_is_what_a_patch_file_can_say():
    """Millionths: a tolerance just below the next one would be written as more than was shown."""
    config = CascadeConfig(tolerance=0.0123456, confidence=0.9512344)
    assert (config.tolerance, config.confidence) == (0.012346, 0.951234)
