"""The benchmark of a patch's bytes: its coders, its pairing, the command from nothing to a page.

The command runs once in a process of its own, and once more over what the first run kept: 50 s of
one core in all, which is most of this file's time.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
for folder in (str(ROOT / "benchmarks"), str(ROOT / "tests")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from coded_report import UncertainGoal, list_goals, mean_gap  # noqa: E402
from coded_sizes import gap, moved_by_training, rebuild, remembered  # noqa: E402
from coding_cases import tiny_table, tiny_values  # noqa: E402
from entropy_coders import decode_range, encode_range, sizes_of  # noqa: E402

from patchdeploy.coding.grid import CodedRows  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"
WAYS = ("plain", "shared", "compact")


# -- coders ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(-3, 3), st.integers(-40, 40), st.integers(-(2**33), 2**33)),
        max_size=120,
    ),
    st.lists(st.integers(0, 120), max_size=4),
)
def test_the_range_coder_decodes_what_it_coded(numbers, cuts):
    codes = np.array(numbers, np.int64)
    ends = [*sorted(min(cut, len(numbers)) for cut in cuts), len(numbers)]
    np.testing.assert_array_equal(decode_range(encode_range(codes, ends), ends), codes)


def test_the_range_coder_carries_through_a_long_run_of_the_likely_bit():
    codes = np.zeros(200_000, np.int64)
    codes[::9973] = -1
    packed = encode_range(codes, [len(codes)])
    np.testing.assert_array_equal(decode_range(packed, [len(codes)]), codes)
    # 21 of 200,000 are not 0: 21 * log2(200000 e / 21) = 308 bits and a sign each, and what
    # learning a probability costs: half of log2(200000) bits. The floor of 2^-16 on it adds
    # 200,000 * 2^-16 / ln 2 = 4 bits.
    assert len(packed) <= (308 + 21 + 9 + 4) / 8 + 8


def test_every_coder_comes_near_the_entropy_of_one_distribution():
    codes = np.rint(np.random.default_rng(0).laplace(0, 3, 12_000)).astype(np.int64)
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    entropy = -(share * np.log2(share)).sum() * len(codes) / 8
    found = sizes_of(codes, [4_000, len(codes)])
    # An adaptive coder learns some 30 probabilities, each half of log2(12000) bits = 25 bytes in
    # all, twice as the layers change: within 2 %. Huffman codes waste at most 0.086 bit over the
    # share of the likeliest (Gallager 1978): below 7 % of 4 bits, and tables.
    assert 0.98 * entropy <= found["adaptive range coder"] <= 1.02 * entropy
    for name in ("deflate (zlib)", "deflate (zopfli)", "zstd -22"):
        assert 0.98 * entropy <= found[name] <= 1.1 * entropy


# -- pairing and plain formats ---------------------------------------------------------------------


def test_a_gap_pairs_images():
    right = np.array([True, True, False, True])
    reference = np.array([True, False, False, False])
    # Differences 0, 1, 0, 1: mean 1/2, sample variance 1/3, over 4 images.
    assert gap(right, reference) == {
        "points": 50.0,
        "error": pytest.approx(100 * math.sqrt(1 / 3 / 4)),
    }
    assert gap(right, right) == {"points": 0.0, "error": 0.0}


def test_the_mean_of_gaps_has_the_error_of_independent_tasks():
    assert mean_gap([{"points": 1.0, "error": 3.0}, {"points": -2.0, "error": 4.0}]) == (-0.5, 2.5)


def test_a_goal_inside_its_own_error_is_undecided():
    assert UncertainGoal("points", 0.13, 0.1, 0.22).verdict == "undecided"
    assert UncertainGoal("points", -0.17, 0.1, 0.22).verdict == "undecided"
    assert UncertainGoal("points", -0.17, 0.1, 0.1).verdict == "met"
    assert UncertainGoal("points", 0.2, 0.1, 0.04).verdict == "missed by 100.0%"


def test_values_are_restored_from_what_training_moved():
    table, values = tiny_table(), tiny_values()
    rows = CodedRows.of(table, 3)
    octaves, shifts = moved_by_training(values, rows)
    found = rebuild(values, rows, octaves, shifts)
    # float64 logarithms and one rounding to float32: the neighbour at most; a bias then moves by
    # 2^-24 of its accumulator, which is below 2^20 here: the nearest integer, or the one beside it.
    np.testing.assert_array_max_ulp(found.weight_scale, values.weight_scale, 1)
    assert np.abs(found.bias.astype(np.int64) - values.bias).max() <= 1
    coarse = rebuild(values, rows, np.rint(octaves), shifts)
    assert (coarse.weight_scale != values.weight_scale).any()


def test_scores_are_remembered_by_what_the_values_hold():
    calls = []

    def score(px, values):
        calls.append(px)
        return np.zeros((1, 2), np.float32)

    known = remembered(score)
    for px, seed in ((64, 1), (64, 1), (64, 2), (32, 1)):
        known(px, tiny_values(seed=seed))
    assert calls == [64, 64, 32]


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder in which the command ran twice; raises where it fails."""
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("first", "again"):
        done = subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "patch_bytes.py", "--quick"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.txt").write_text(done.stdout)
        results = folder / "out/benchmarks/quick/patch_bytes.json"
        (folder / f"{name}.json").write_text(results.read_text())
    return folder


def read(folder: Path, name: str = "first"):
    return json.loads((folder / f"{name}.json").read_text())


def test_every_way_is_measured_and_adds_up(folder):
    records = read(folder)["records"]
    assert [one["way"] for one in records] == list(WAYS)
    for one in records:
        first, both = one["choice"]["bytes"]
        parts = ("steps", "activations", "scales", "biases")
        assert first["scale_bias"] == sum(first[part] for part in parts)
        assert one["choice"]["further_share"] == [
            (both["scale_bias"] - first["scale_bias"]) / first["scale_bias"]
        ]
        assert first["file"] > first["scale_bias"] + first["head"]
        assert len(one["choice"]["right"]) == one["test_images"] == 100
        top1 = one["choice"]["test"][str(one["plan"]["sides"][0])]["top1"]
        assert top1 == pytest.approx(one["choice"]["right"].count("1"))
        last = one["choice"]["test"][str(one["plan"]["sides"][-1])]
        floats = last["top1"] - last["to_float"]["points"]
        assert one["last_float_right"].count("1") == pytest.approx(floats)


def test_curves_lose_bytes_as_the_budget_grows(folder):
    for one in read(folder)["records"]:
        budgets = [point for point in one.get("curve", ()) if point["kind"] == "budget"]
        sizes = [point["scale_bias"] for point in budgets]
        assert sizes == sorted(sizes, reverse=True)
        if one["way"] == "plain":
            raw = {p["kind"]: p["scale_bias"] for p in one["curve"]}
            assert max(sizes) < raw["int8 per layer, deflated"] < raw["fp16, deflated"]
            assert raw["fp16, deflated"] < raw["slot values"]
            for files in one["whole_files"].values():
                assert (
                    files["bsdiff"] is None or files["bsdiff"] > one["choice"]["bytes"][0]["file"]
                )


def test_goals_and_tables_are_printed_and_written(folder):
    document = read(folder, "again")
    page = (folder / "out/benchmarks/quick/patch-bytes.md").read_text()
    assert page in (folder / "again.txt").read_text()
    for goal in list_goals(document["records"], document["times"]):
        assert f"| {goal.what} |" in page
    plain, shared, _ = (one["last_float_right"] for one in document["records"])
    paired = [one for one in document["goals"] if one["what"].startswith("shared: the same")]
    # One task of 100 images: a point each. What neither or both get right is no error.
    turned = sum(a != b for a, b in zip(plain, shared, strict=True))
    lost = plain.count("1") - shared.count("1")
    error = math.sqrt((turned - lost**2 / 100) / 99) * 10
    assert [(one["value"], one["error"]) for one in paired] == [pytest.approx((lost, error))]
    assert turned > 0
    assert (folder / "out/benchmarks/quick/patch-bytes.png").read_bytes().startswith(PNG)


def test_a_second_run_measures_nothing_anew(folder):
    assert ": training" in (folder / "first.txt").read_text()
    again = (folder / "again.txt").read_text()
    assert ": training" not in again
    assert ": probing" not in again
    assert read(folder, "again")["records"] == read(folder)["records"]
