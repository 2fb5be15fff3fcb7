"""``make arm`` itself, without an emulator: its words, its counts, its page."""

import json
import os
import shutil
from pathlib import Path

import machine
import numpy as np
import over_bionic
import pytest
from arm_page import write_page
from bundle_cases import make_bundle
from compare_scores import compare_scores, executor_scores
from graph_cases import CLASSES, random_images
from processors import PROCESSORS, make_prefix

from patchdeploy.quantize.runtimes import arithmetic_of

HERE = Path(__file__).parent
PAGE = machine.REPOSITORY / "docs/arm.md"


def test_the_page_is_what_the_results_say(tmp_path):
    write_page(HERE / "results", tmp_path / "arm.md")
    assert PAGE.read_text() == (tmp_path / "arm.md").read_text()


def test_a_part_without_a_result_is_said_to_be_missing(tmp_path):
    write_page(tmp_path, tmp_path / "arm.md")
    page = (tmp_path / "arm.md").read_text()
    assert page.count("Not run: `make arm PARTS=") == 5


def test_every_processor_gave_equal_scores_and_a_whole_verify():
    """What is claimed elsewhere: the executor's bits on every core, and no check that failed."""
    found = json.loads((HERE / "results/scores.json").read_text())["found"]
    assert set(found) == {one.name for one in PROCESSORS}
    for one in found.values():
        assert one["machine"] == "aarch64"
        assert one["verify"]["failed"] == 0
        assert one["verify"]["passed"] > 100
        for counts in one["scores"].values():
            assert counts["executor"]["equal"] == counts["scores"] > 4000
        assert one["scores"]["litert"]["x86-64"]["equal"] == one["scores"]["litert"]["scores"]


@pytest.mark.parametrize(
    ("system", "processor", "words"),
    [
        ("Darwin", "arm64", "it needs x86-64 Linux, and this is arm64 Darwin"),
        ("Linux", "aarch64", "it needs x86-64 Linux, and this is aarch64 Linux"),
    ],
)
def test_another_machine_is_told_what_is_needed(monkeypatch, system, processor, words):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    assert machine.missing() == words


def test_a_user_who_is_not_root_and_one_without_tools_are_told_so(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.missing() == (
        "it needs root, to unpack Debian's packages; run it in a container"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert machine.missing() == "it needs mmdebstrap: apt-get install mmdebstrap"
    assert over_bionic.missing() == "it needs JDK 17 and Maven, and there is no java and no mvn"


def test_a_score_that_moved_is_counted(tmp_path):
    bundle = make_bundle(tmp_path / "b", tasks=("first",))
    images = {f"first.{px}": random_images(3, px) for px in (16, 24)}
    np.savez(tmp_path / "images.npz", **images)
    own = dict(executor_scores(bundle.path, tmp_path / "images.npz"))
    np.savez(tmp_path / "here.npz", **own)
    output = bundle.manifest.layout.head_output
    step = bundle.patch("first").values[24].activation_scale[output]
    own["litert.first.24"] = (
        own["litert.first.24"] + np.eye(1, CLASSES, dtype=np.float32) * 2 * step
    )
    np.savez(tmp_path / "there.npz", **own)
    executor = executor_scores(bundle.path, tmp_path / "images.npz")
    files = (tmp_path / "there.npz", tmp_path / "here.npz")
    found = compare_scores(bundle.path, *files, executor)
    scores = 6 * CLASSES
    same = {"equal": scores, "equal_top1": 6, "largest_lsb": 0}
    assert found["onnxruntime"] == {"scores": scores, "images": 6, "x86-64": same, "executor": same}
    assert found["litert"]["x86-64"]["equal"] == scores - 3
    assert found["litert"]["x86-64"]["largest_lsb"] == 2


def test_the_executor_is_asked_in_arms_arithmetic(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "b", tasks=("first",))
    np.savez(tmp_path / "images.npz", **{"first.16": random_images(1, 16)})
    asked = []

    def note(format_name, kind):
        asked.append((format_name, kind))
        return arithmetic_of(format_name, kind)

    monkeypatch.setattr("compare_scores.arithmetic_of", note)
    executor_scores(bundle.path, tmp_path / "images.npz")
    assert asked == [("tflite", "arm64"), ("onnx", "arm64")]


def test_a_processor_shows_its_own_features_over_links_to_the_root(tmp_path):
    (tmp_path / "root/usr").mkdir(parents=True)
    last = PROCESSORS[-1]
    prefix = make_prefix(last, tmp_path / "root", tmp_path / "prefixes")
    make_prefix(last, tmp_path / "root", tmp_path / "prefixes")  # again: nothing is in the way
    shown = (prefix / "proc/cpuinfo").read_text()
    assert shown.count("processor\t: ") == 2
    assert " i8mm " in shown
    assert (prefix / "usr").resolve() == tmp_path / "root/usr"


def test_the_processors_are_one_of_each_width_of_product():
    assert [one.product for one in PROCESSORS] == ["smlal", "sdot", "smmla"]
    assert len({one.part for one in PROCESSORS}) == 3
