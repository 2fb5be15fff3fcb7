"""The command ``cascade``, and what other commands show of one, through the command line."""

import json
import shutil

import numpy as np
import pytest
from bundle_cases import KEY, LABELS, make_bundle, reference_logits, snapshot
from graph_cases import random_images
from PIL import Image
from typer.testing import CliRunner

from patchdeploy.bundle import open_bundle
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
    assert sum(fit["images"]) == COUNT + len(LABELS)
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
