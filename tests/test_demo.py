"""The demo in short, through the installed command, and the page that it leaves."""

import json
import os
import subprocess
import sysconfig
from html.parser import HTMLParser
from pathlib import Path

import pytest

from patchdeploy.bundle import open_bundle
from patchdeploy.data import load_packaged, overlapping
from patchdeploy.demo import TASKS, DemoConfig, _parts, mean_drop
from patchdeploy.report import Accuracy

COMMAND = str(Path(sysconfig.get_path("scripts")) / "patchdeploy")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run(
        [COMMAND, "demo", "--quick", "--out", str(folder), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed.json").write_text(done.stdout)
    return folder


class Links(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.places = []
        self.open = []

    def handle_starttag(self, tag, attributes):
        self.places += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_demo_verifies_its_bundle_and_says_where_things_are(out):
    printed = json.loads((out / "printed.json").read_text())
    assert printed["verified"] is True
    assert Path(printed["report"]).is_file()
    bundle = open_bundle(printed["bundle"])
    assert len(bundle.tasks) == 2
    assert bundle.manifest.resolutions == (32, 48)
    for row in printed["accuracies"]:
        assert 0 <= row["top1"] <= 1
        assert row["images"] > 0


def test_the_report_is_one_page_that_fetches_nothing(out):
    links = Links()
    links.feed((out / "report.html").read_text())
    assert links.open == []
    assert len(links.places) >= 4 + 2 * 8  # four plots, eight sample images a task
    for place in links.places:
        assert place.startswith("data:image/"), place[:60]


def test_the_report_shows_the_numbers_of_its_json(out):
    page = (out / "report.html").read_text()
    document = json.loads((out / "report.json").read_text())
    for row in document["accuracies"]:
        assert f"{100 * row['top1']:.1f} %" in page
    for row in document["latencies"]:
        assert f"{row['median_ms']:.2f}" in page
    for row in document["sizes"]["files"]:
        assert f"{row['bytes']:,}" in page
    assert document["device"]["cpu"] in page


def test_five_tasks_of_different_sources_at_three_resolutions_and_no_test_image_in_training():
    config = DemoConfig()
    assert len(config.tasks) == len(TASKS) >= 4
    assert len(config.resolutions) >= 3
    labels = set()
    for task in config.tasks:
        train, test = load_packaged(task)
        labels.add(train.classes)
        assert overlapping(train, test) == []
    assert len(labels) >= 4  # two of the sources both hold the ten digits


def test_the_mean_drop_pairs_each_int8_figure_with_its_float_one():
    rows = [
        Accuracy("a", "patch", "float", 32, 0.90, 10),
        Accuracy("a", "patch", "litert", 32, 0.80, 10),
        Accuracy("a", "patch", "onnxruntime", 32, 0.88, 10),
        Accuracy("a", "head", "float", 32, 0.10, 10),
    ]
    assert mean_drop(rows) == pytest.approx((0.10 + 0.02) / 2)


def test_bytes_by_part_are_shown_where_one_task_alone_has_a_cascade():
    tasks = {
        "plain": {"part_bytes": {"labels": 3, "values": 90}, "file_bytes": 200},
        "routed": {"part_bytes": {"labels": 4, "values": 80, "cascade": 39}, "file_bytes": 230},
    }
    for order in (("plain", "routed"), ("routed", "plain")):
        shown = _parts({name: tasks[name] for name in order})
        assert shown["columns"] == ["labels", "values", "cascade", "file"]
        assert {row["task"]: row["bytes"] for row in shown["rows"]} == {
            "plain": [3, 90, 0, 200],
            "routed": [4, 80, 39, 230],
        }
