"""A cascade on images: what evaluate, recertify, bench and verify say, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import slow_cascade
from bundle_cases import LABELS, make_bundle, reference_logits
from cascade_cases import IMAGES, RUNTIMES, codes_of, make_rule, with_cascade

from patchdeploy.bundle import open_bundle
from patchdeploy.bundle.reader import REFERENCE
from patchdeploy.cascade import CascadeRule, Certificate, Stage
from patchdeploy.cascade.rule import MAX_THRESHOLD
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError, DataError, UnknownTaskError
from patchdeploy.evaluate_cascade import (
    LEAST_TIMED,
    bench_cascade,
    evaluate_cascade,
    recertify_cascade,
)
from patchdeploy.runtime.cascades import LoadedCascade
from patchdeploy.verify import verify_bundle

LOOSE = Certificate(24, 0.5, 0.9, 100, True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    made = make_bundle(tmp_path_factory.mktemp("made") / "bundle", signed=True)
    return with_cascade(made, "first", make_rule(made, "entropy"), 2, LOOSE)


def said(bundle, px):
    """int64 [40]: what the reference answers at a resolution."""
    blank = ImageDataset("x", IMAGES, np.zeros(len(IMAGES), np.int64), LABELS)
    pixels = blank.at(px, bundle.manifest.preprocessing)
    return reference_logits(bundle, "litert", "first", px, pixels).argmax(1)


def dataset(bundle, labels=None):
    labels = said(bundle, 24) if labels is None else labels
    return ImageDataset("known", IMAGES, labels.astype(np.int64), LABELS)


def stages(bundle):
    rule = bundle.patch("first").cascade.rule
    return np.array([slow_cascade.answering_stage(rule, {16: one}) for one in codes_of(bundle)])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_evaluating_counts_what_a_second_reading_counts(bundle, runtime):
    small, large, stage = said(bundle, 16), said(bundle, 24), stages(bundle)
    labels = np.where(np.arange(len(IMAGES)) % 3 == 0, small, large)
    found = evaluate_cascade(bundle, dataset(bundle, labels), "first", runtime=runtime)
    own = np.where(stage == 0, small, large)
    row, first, last = found.rows
    assert row.accuracy == pytest.approx(np.mean(own == labels))
    assert row.answered == pytest.approx((np.mean(stage == 0), np.mean(stage == 1)))
    assert row.gap[0] == pytest.approx(np.mean(large == labels) - np.mean(own == labels))
    assert row.early_accuracy == pytest.approx(np.mean((small == labels)[stage == 0]))
    assert row.early_reference == pytest.approx(np.mean((large == labels)[stage == 0]))
    assert (first.name, last.name, found.cost_unit) == ("16 px", "24 px", "macs")
    assert (first.accuracy, last.accuracy) == pytest.approx(
        (np.mean(small == labels), np.mean(large == labels))
    )
    # Every image pays the small stage, the unsure ones the large one as well.
    unsure = np.mean(stage == 1)
    assert row.saving == pytest.approx(1 - (1 - first.saving) - unsure)


def test_a_copy_without_its_reference_counts_pixels(bundle, tmp_path):
    made = make_bundle(tmp_path / "bundle", signed=True)
    made = with_cascade(made, "first", make_rule(made, "margin"), 2)
    (made.path / REFERENCE).unlink()
    found = evaluate_cascade(open_bundle(made.path), dataset(bundle), "first")
    assert found.cost_unit == "pixels"
    assert found.rows[1].saving == pytest.approx(1 - 16**2 / 24**2)


def test_images_that_show_a_greater_loss_than_promised_say_so_and_fail_verification(tmp_path):
    made = make_bundle(tmp_path / "bundle", signed=True)
    always = CascadeRule("margin", (Stage(16, 0, 0), Stage(24, 0, 0)))
    strict = Certificate(24, 0.01, 0.95, 1000, True)
    made = with_cascade(made, "first", always, 2, strict)
    large = said(made, 24)
    assert np.mean(said(made, 16) != large) > 0.3  # what the promise does not allow
    found = evaluate_cascade(made, dataset(made, large), "first")
    assert found.contradicted
    assert not found.shown
    report = verify_bundle(made.path, dataset(made, large), task="first", reference_limit=2)
    failed = [one for one in report.failures if one.name == "cascade promise"]
    assert {one.subject for one in failed} == {f"first {runtime}" for runtime in RUNTIMES}
    assert "THESE IMAGES SHOW THAT IT LOSES MORE" in failed[0].detail
    assert failed[0].numbers["gap"] == pytest.approx(np.mean(said(made, 16) != large))
    loose = with_cascade(made, "first", always, 3, replace(strict, certified=False))
    report = verify_bundle(loose.path, dataset(made, large), task="first", reference_limit=2)
    assert report.ok
    promises = [one for one in report.checks if one.name == "cascade promise"]
    assert [one.passed for one in promises] == [None, None]
    assert "NOT CERTIFIED" in promises[0].detail


def test_verifying_proves_the_decisions_of_both_runtimes(bundle):
    labels = np.where(np.arange(len(IMAGES)) % 2 == 0, said(bundle, 16), said(bundle, 24))
    report = verify_bundle(bundle.path, dataset(bundle, labels), task="first", reference_limit=8)
    assert report.ok
    decisions = [one for one in report.checks if one.name == "cascade decisions"]
    assert len(decisions) == len(RUNTIMES)
    early = int(np.sum(stages(bundle) == 0))
    for one in decisions:
        assert one.numbers["answered"] == [early, len(IMAGES) - early]
        assert (one.numbers["compared"], one.numbers["differing"]) == (8, 0)
    unlabelled = verify_bundle(bundle.path, task="first", reference_limit=2)
    assert [one.name for one in unlabelled.checks if "promise" in one.name] == []


def test_an_engine_that_decides_otherwise_fails_verification(bundle, monkeypatch):
    monkeypatch.setattr(
        LoadedCascade, "is_sure", lambda self, stage, scores: np.ones(len(scores), bool)
    )
    report = verify_bundle(bundle.path, dataset(bundle), task="first", reference_limit=2)
    failed = [one for one in report.failures if one.name == "cascade decisions"]
    wrong = int(np.sum(stages(bundle) == 1))
    assert [one.numbers["wrong"] for one in failed] == [wrong, wrong]
    assert f"{wrong} DECISIONS ARE NOT THE RULE'S" in failed[0].detail


@pytest.mark.parametrize(("threshold", "idle"), [(MAX_THRESHOLD, 16), (256, 16), (0, 24)])
def test_a_stage_that_can_never_answer_is_named(tmp_path, threshold, idle):
    made = make_bundle(tmp_path / "bundle", signed=True)
    rule = CascadeRule("margin", (Stage(16, threshold, 0), Stage(24, 0, 0)))
    made = with_cascade(made, "first", rule, 2)
    report = verify_bundle(made.path, task="first", reference_limit=2)
    details = [one.detail for one in report.checks if one.name == "cascade decisions"]
    assert all(f"; {idle} px can never answer" in one for one in details)


def test_a_test_without_labels_looks_at_none_and_counts_other_answers(bundle):
    stage = stages(bundle)
    otherwise = np.mean((said(bundle, 16) != said(bundle, 24)) & (stage == 0))
    found = recertify_cascade(bundle, dataset(bundle), "first")
    assert found.disagreeing == pytest.approx(otherwise)
    assert (found.tolerance, found.confidence) == (0.5, 0.9)
    other = recertify_cascade(bundle, dataset(bundle, np.zeros(len(IMAGES))), "first")
    assert other.to_json() == found.to_json()
    strict = recertify_cascade(bundle, dataset(bundle), "first", tolerance=0.001, confidence=0.99)
    assert not strict.shown
    assert strict.p_value > 0.01


def test_a_benchmark_sends_every_image_through_every_candidate(bundle):
    found = bench_cascade(
        bundle, dataset(bundle), "first", runtimes=("litert",), threads=(1,), images=30, warmup=1
    )
    assert [row["name"] for row in found["rows"]] == ["16", "24", "cascade"]
    assert sum(found["answered"]["litert"].values()) == pytest.approx(1)
    order = np.random.default_rng(0).permutation(len(IMAGES))[:30]
    assert found["answered"]["litert"]["16"] == pytest.approx(np.mean(stages(bundle)[order] == 0))
    reference = found["rows"][1]
    assert reference["saving"] == 0
    assert all(row["mean_ms"] > 0 for row in found["rows"])


def test_what_cannot_be_evaluated_tested_or_timed_is_refused(bundle):
    images = dataset(bundle)
    for run in (evaluate_cascade, recertify_cascade, bench_cascade):
        with pytest.raises(ConfigError, match="the patch of task 'second' has no cascade"):
            run(bundle, images, "second")
        with pytest.raises(UnknownTaskError, match="third"):
            run(bundle, images, "third")
    with pytest.raises(DataError, match="5 images to time"):
        bench_cascade(bundle, images.subset(np.arange(5)), "first")
    assert LEAST_TIMED == 20
    with pytest.raises(ConfigError, match=r"threads \[0\]"):
        bench_cascade(bundle, images, "first", threads=(0,))
    with pytest.raises(DataError, match="no images; a test needs some"):
        recertify_cascade(bundle, images.subset(np.arange(0)), "first")
    with pytest.raises(ConfigError, match="tolerance 0 points"):
        recertify_cascade(bundle, images, "first", tolerance=0.0)
    strangers = ImageDataset("s", images.images, images.labels * 0, ("cat", "dog"))
    with pytest.raises(DataError, match="classes cat, dog"):
        evaluate_cascade(bundle, strangers, "first")


def test_copies_are_not_as_many_independent_images(bundle):
    """Ten copies of each image show no more than the images do, for a promise and against it."""
    known = dataset(bundle)
    copies = known.subset(np.tile(np.arange(len(IMAGES)), 10))
    once, often = (evaluate_cascade(bundle, one, "first") for one in (known, copies))
    assert once == replace(often, rows=once.rows)
    assert once.images == len(IMAGES)
    checks = [
        one.numbers
        for of in (known, copies)
        for one in verify_bundle(bundle.path, of, task="first", reference_limit=1).checks
        if one.name == "cascade promise"
    ]
    assert checks[0] == checks[2]
    assert checks[0]["images"] == len(IMAGES)


def test_images_that_do_not_fit_in_memory_are_not_timed(bundle, monkeypatch):
    held = IMAGES[0].nbytes * (LEAST_TIMED - 1)
    monkeypatch.setattr("patchdeploy.evaluate_cascade.MAX_TIMED_BYTES", held)
    with pytest.raises(DataError, match="they are held in memory while they are timed"):
        bench_cascade(bundle, dataset(bundle), "first", runtimes=("litert",), threads=(1,))
