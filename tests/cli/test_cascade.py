"""The command ``cascade``, and what other commands show of one, through the command line."""

import json
import shutil

import numpy as np
import pytest
from bundle_cases import KEY, LABELS, make_bundle, reference_logits, snapshot
from cascade_cases import with_cascade
from graph_cases import random_images
from PIL import Image
from typer.testing import CliRunner

from patchdeploy.bundle import open_bundle
from patchdeploy.cascade import CascadeRule, Stage
from patchdeploy.cascade.rule import MAX_THRESHOLD
from patchdeploy.cli.app import app
from patchdeploy.data import ImageDataset
from patchdeploy.errors import CertificationError, ConfigError

COUNT = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A signed bundle, its key, and a folder of images: half are labelled as each side says."""
    folder = tmp_path_factory.mktemp("cascade")
    bundle = make_bundle(folder / "bundle", signed=True)
    KEY.save(folder / "key.pem")
    images = random_images(COUNT, 30)
    blank = ImageDataset("x", images, np.zeros(COUNT, np.int64), LABELS)
    said = [
        reference_logits(
            bundle, "litert", "first", px, blank.at(px, bundle.manifest.preprocessing)
        ).argmax(1)
        for px in (16, 24)
    ]
    for label in LABELS:
        (folder / "images" / label).mkdir(parents=True)
    for k, image in enumerate(images):
        label = LABELS[said[k % 2][k]]
        Image.fromarray(image).save(folder / "images" / label / f"{k:03}.png")
    for k, label in enumerate(LABELS):  # no class folder is empty
        Image.fromarray(images[k]).save(folder / "images" / label / "a.png")
    return folder


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


def call(place, *options, code=0):
    words = ["cascade", str(place / "bundle"), "--task", "first"]
    words += ["--images", str(place / "images"), "--confidence", "0.9", *options]
    done = CliRunner().invoke(app, words)
    if code == 0:
        assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_a_cascade_is_fitted_signed_and_used_by_other_commands(place):
    key = ("--key", str(place / "key.pem"), "--json", "--tolerance", "60")
    fit = json.loads(call(place, *key).stdout)
    assert fit["cascade"]["certificate"]["certified"] is True
    assert sum(fit["images"]) == COUNT  # the copies that fill class folders count once
    bundle = open_bundle(place / "bundle")
    assert bundle.header("first").sequence == 2
    shown = CliRunner().invoke(app, ["inspect", str(bundle.path), "--json"])
    tasks = json.loads(shown.stdout)["tasks"]
    assert tasks["first"]["cascade"] == fit["cascade"]
    assert tasks["second"]["cascade"] is None
    table = CliRunner().invoke(app, ["inspect", str(bundle.path)])
    assert "Cascades" in table.stdout
    images = sorted((place / "images").rglob("*.png"))[:6]
    words = ["run", str(bundle.path), *map(str, images), "--task", "first", "--cascade", "--json"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    sides = {one["resolution"] for one in json.loads(ran.stdout)}
    assert sides <= set(bundle.patch("first").cascade.rule.resolutions)


def test_a_dry_run_shows_the_same_and_writes_nothing(place):
    before = snapshot(place / "bundle")
    done = call(place, "--dry-run", "--tolerance", "60")
    assert "certified" in done.stdout
    assert "other images, cost in macs" in " ".join(done.stdout.split())
    assert snapshot(place / "bundle") == before


def test_what_cannot_be_certified_is_not_written_unless_asked_and_then_said(place):
    before = snapshot(place / "bundle")
    done = call(place, "--key", str(place / "key.pem"), "--tolerance", "1", code=2)
    assert isinstance(done.exception, CertificationError)
    assert snapshot(place / "bundle") == before
    done = call(place, "--key", str(place / "key.pem"), "--tolerance", "1", "--uncertified")
    assert "NOT CERTIFIED" in " ".join(done.stdout.split())
    assert open_bundle(place / "bundle").patch("first").cascade.certificate.certified is False
    table = CliRunner().invoke(app, ["inspect", str(place / "bundle")])
    assert "NOT CERTIFIED" in " ".join(table.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dry-run", "--unsigned"), "--dry-run with --key, --unsigned or --expires"),
        ((), "no --key and no --unsigned"),
        (("--dry-run", "--score", "loudness"), "score 'loudness'"),
        (("--dry-run", "--tolerance", "0"), "tolerance 0 points"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_the_work(place, options, message):
    done = call(place, *options, code=2)
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_a_cascade_is_evaluated_timed_and_tested_without_labels(place):
    call(place, "--key", str(place / "key.pem"), "--tolerance", "60")
    bundle, images = place / "bundle", place / "images"
    found = invoke("evaluate", bundle, images, "--task", "first", "--cascade", "--json")
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["rows"]
    assert [one["name"] for one in rows] == ["cascade", "16 px", "24 px"]
    table = invoke("evaluate", bundle, images, "--task", "first", "--cascade", "--limit", "30")
    assert "at most 60 points below 24 px at 90 % confidence" in " ".join(table.stdout.split())
    timed = invoke(
        *("bench", bundle, "--cascade", "first", "--images", images, "--rounds", "20"),
        *("--threads", "1", "--runtimes", "litert"),
    )
    assert timed.exit_code == 0, timed.output
    assert "ms from a decoded image, 20 images" in " ".join(timed.stdout.split())
    words = ("recertify", bundle, "--task", "first", "--images", images)
    refused = invoke(*words, "--tolerance", "0.1")
    assert refused.exit_code == 1
    assert "NOT SHOWN" in refused.stdout
    never = CascadeRule("margin", (Stage(16, MAX_THRESHOLD, 0), Stage(24, 0, 0)))
    with_cascade(open_bundle(bundle), "first", never, 3)
    loose = ("--tolerance", "10", "--confidence", "0.9")
    shown = invoke(*words, *loose)
    assert shown.exit_code == 0, shown.output
    flat = place / "flat"
    flat.mkdir()
    for k, path in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(path, flat / f"{k}.png")  # no class folders
    other = invoke("recertify", bundle, "--task", "first", "--images", flat, *loose, "--json")
    agreement = json.loads(other.stdout)
    assert agreement["images"] == COUNT
    assert (agreement["disagreeing"], agreement["shown"]) == (0, True)


def test_a_cascade_is_not_timed_without_images_or_evaluated_where_there_is_none(place):
    done = invoke("bench", place / "bundle", "--cascade", "first")
    assert isinstance(done.exception, ConfigError)
    assert "--cascade first, --images not given" in str(done.exception)
    done = invoke("evaluate", place / "bundle", place / "images", "--task", "second", "--cascade")
    assert isinstance(done.exception, ConfigError)
    assert "has no cascade" in str(done.exception)
