"""The report: one page that holds all it shows, with the numbers that were measured."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from patchdeploy.cascade import Cascade, CascadeRule, Certificate, Stage
from patchdeploy.cascade.describe import CascadeRow
from patchdeploy.errors import StorageError
from patchdeploy.evaluate_cascade import CascadeEvaluation
from patchdeploy.report import (
    Accuracy,
    CascadeResult,
    Latency,
    ReportData,
    Sample,
    Swap,
    TrainedBytes,
    check_packages,
    device_rows,
    format_percent,
    format_points,
    group_files,
    int8_drops,
    render_report,
    write_report,
)

TASKS, RESOLUTIONS, RUNTIMES = ("digits", "<fur & moon>"), (32, 48, 64), ("litert", "onnxruntime")
METHODS = ("patch", "head", "all")
VOID = {"br", "img", "meta"}


def accuracies():
    rows = []
    for t, task in enumerate(TASKS):
        for k, px in enumerate(RESOLUTIONS):
            rows.append(Accuracy(task, "patch", "float", px, 0.61 + 0.1 * k + 0.013 * t, 500))
            for r, runtime in enumerate(RUNTIMES):
                top1 = 0.608 + 0.1 * k + 0.013 * t + 0.001 * r
                rows.append(Accuracy(task, "patch", runtime, px, top1, 500))
        for m, method in enumerate(METHODS[1:]):
            rows.append(Accuracy(task, method, "float", 64, 0.532 + 0.41 * m + 0.01 * t, 500))
    return rows


@pytest.fixture
def data():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    return ReportData(
        title="two tasks",
        device={"cpu": "Some CPU", "memory_bytes": 25_276_502_016, "flags": "", "os": None},
        accuracies=accuracies(),
        trained=[
            TrainedBytes(task, method, 1234 + k, 4 * (1234 + k))
            for task in TASKS
            for k, method in enumerate(METHODS)
        ],
        sizes={
            "cards": [{"value": "0.96 MB", "label": "base"}],
            "files": [
                {"path": "float/a.onnx", "bytes": 9_000_001, "what": "float; does not ship"},
                {"path": "base.onnx", "bytes": 812_271, "what": "base; ships"},
            ],
            "growth": [{"label": "patches", "tasks": [1, 2], "bytes": [1e6, 1.2e6]}],
        },
        latencies=[
            Latency(runtime, px, threads, 0.1 * px / threads, 0.05 * px, 0.2 * px, 40)
            for runtime in RUNTIMES
            for threads in (1, 2)
            for px in RESOLUTIONS
        ],
        swaps=[Swap("litert", "cold", 2.345, 40), Swap("litert", "resident", 0.012, 40)],
        agreement=[
            {"check": "hash", "passed": True, "detail": "11 of 11"},
            {"check": "overlay", "passed": False, "detail": "differs"},
            {"check": "runtime", "passed": None, "detail": "not installed"},
        ],
        samples=[Sample(TASKS[0], image, "7", "1", 0.87), Sample(TASKS[1], image, "a", "a", 0.5)],
        seconds={"train": 12.34},
    )


class Page(HTMLParser):
    """Balance of tags, everything that would be fetched, and the cells of the tables by row."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.rows = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in <{tag}>"
        self.sources += [value for key, value in attributes if key in ("src", "href", "data")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if {"td", "th"} & set(self.open) and self.rows[-1]:
            self.rows[-1][-1] += text.strip()


def test_the_page_is_balanced_html_that_holds_every_picture(data):
    text = render_report(data)
    page = Page(text)
    assert page.open == []
    assert len(page.sources) == 4 + len(data.samples)
    assert all(place.startswith("data:image/") for place in page.sources)
    outside = re.sub(r"data:image/[^\"]*", "", text)
    for word in ("http://", "https://", "url(", "@import", "<script"):
        assert word not in outside
    assert "<fur" not in text
    assert "&lt;fur &amp; moon&gt;" in text


def evaluation(task="digits"):
    certificate = Certificate(64, 0.02, 0.95, 900, True)
    rule = CascadeRule("margin", (Stage(32, 40, 0), Stage(64, 0, 0)))
    rows = (
        CascadeRow("cascade", (32, 64), (0.75, 0.25), 0.5, 0.91, (0.004, 0.0, 0.01), 75, 0.9, 0.9),
        CascadeRow("32 px", (32,), (1.0,), 0.75, 0.85, (0.064, 0.05, 0.08), 0, None, None),
        CascadeRow("64 px", (64,), (1.0,), 0.0, 0.914, (0.0, 0.0, 0.0), 0, None, None),
    )
    return CascadeEvaluation(
        task, "litert", 100, Cascade(rule, certificate), "macs", rows, True, False, 0.01
    )


def test_cascades_have_a_row_and_a_picture_or_the_reason_why_there_is_none(data):
    assert "Cascades" not in render_report(data)
    results = (
        CascadeResult(TASKS[0], evaluation()),
        CascadeResult(TASKS[1], None, "80 images <are> few"),
    )
    text = render_report(replace(data, cascades=results))
    page = Page(text)
    assert len(page.sources) == 5 + len(data.samples)
    rows = [tuple(row) for row in page.rows]
    assert ("digits", "32 > 64", "75 / 25", "50.0 %", "91.0 %", "91.4 %") in rows
    assert (TASKS[1], "none: 80 images <are> few") in rows
    assert "at most 2.00 points below the largest resolution at 95 % confidence" in text
    none = render_report(replace(data, cascades=results[1:]))
    assert "Certified:" not in none


def test_every_row_shows_the_numbers_that_were_measured(data):
    rows = [tuple(row) for row in Page(render_report(data)).rows]
    # float, litert, onnxruntime and the mean drop of the two: (0.2 + 0.1) / 2 points
    assert ("digits", "32", "61.0 %", "60.8 %", "60.9 %", "0.15") in rows
    assert ("", "64", "82.3 %", "82.1 %", "82.2 %", "0.15") in rows
    assert ("digits", "last layer only", "1,235", "4.9 kB", "53.2 %", "500") in rows
    assert ("", "patch", "1,234", "4.9 kB", "81.0 %", "500") in rows
    assert ("", "all weights", "1,236", "4.9 kB", "94.2 %", "500") in rows
    assert ("litert", "2", "48", "2.40 ms", "2.40 to 9.60 ms", "40") in rows
    assert ("litert", "cold", "2.345 ms", "40") in rows
    assert ("base.onnx", "812,271") in rows
    assert ("memory", "25.3 GB") in rows
    assert ("train", "12.3") in rows
    assert [row[1] for row in rows if row[0] in ("hash", "overlay", "runtime") and len(row) == 3] \
        == ["pass", "FAIL", "skipped"]  # fmt: skip


def test_a_wrong_prediction_is_marked_and_says_what_is_right(data):
    text = render_report(data)
    assert text.count('class="sample wrong"') == 1
    assert re.search(r"<b>1</b> 87 %\s*<br>is 7", text)


def test_what_was_not_measured_is_a_dash_and_not_a_zero(data):
    kept = [a for a in data.accuracies if (a.runtime, a.resolution) != ("litert", 48)]
    rows = [tuple(row) for row in Page(render_report(replace(data, accuracies=kept))).rows]
    assert ("", "48", "71.0 %", "–", "70.9 %", "0.10") in rows


def test_the_json_holds_the_same_numbers_and_no_picture(data, tmp_path):
    path = write_report(data, tmp_path / "out")
    document = json.loads((tmp_path / "out/report.json").read_text())
    assert path.read_text() == render_report(data)
    assert [Accuracy(**row) for row in document["accuracies"]] == list(data.accuracies)
    assert [Latency(**row) for row in document["latencies"]] == list(data.latencies)
    assert all("image" not in row for row in document["samples"])


def test_the_same_data_give_the_same_page(data):
    assert render_report(data) == render_report(data)


def test_a_place_that_cannot_be_written_is_a_storage_error_and_stays_as_it_was(data, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StorageError, match="cannot write"):
        write_report(data, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


def test_figures_are_rounded_without_a_negative_zero():
    assert format_points(-0.00001) == "0.00"
    assert format_points(0.0125) == "1.25"
    assert format_points(None) == format_percent(None) == "–"
    assert format_percent(1.0) == "100.0 %"


def test_the_drop_is_float_minus_int8_of_the_patch_alone():
    rows = [
        Accuracy("a", "patch", "float", 32, 0.9, 10),
        Accuracy("a", "patch", "litert", 32, 0.7, 10),
        Accuracy("a", "head", "litert", 32, 0.1, 10),
        Accuracy("b", "patch", "litert", 32, 0.1, 10),  # no float figure: no drop
    ]
    assert int8_drops(rows) == {("a", 32): pytest.approx(0.2, abs=1e-12)}


def test_files_that_ship_come_first_and_long_lists_that_do_not_are_folded():
    rows = [{"path": str(k), "bytes": k, "what": "does not ship"} for k in range(4)]
    rows += [{"path": "p", "bytes": 7, "what": "ships"}]
    first, second = group_files(rows)
    assert (first["what"], first["folded"], first["bytes"]) == ("ships", False, 7)
    assert (second["what"], second["folded"], second["bytes"]) == ("does not ship", True, 6)


def test_a_device_without_a_value_has_no_row():
    assert device_rows({"load_average": 1.5, "cpu": None, "memory_bytes": 1e9}) == [
        ("load average", "1.5"),
        ("memory", "1.0 GB"),
    ]


def test_the_packages_of_the_page_are_there():
    check_packages()
