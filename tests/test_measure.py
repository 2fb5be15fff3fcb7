"""The timing core: order, pairing, intervals, memory of a real process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy import measure
from patchdeploy.errors import ConfigError, RuntimeBackendError


class Clock:
    """A hand-written clock: time passes only when a candidate says so."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def spend(self, ms: float) -> None:
        self.now_ns += round(ms * 1e6)


def measure_on(clock: Clock, costs_ms: dict[str, float], **settings: int) -> measure.Measurement:
    calls = {name: (lambda ms=ms: clock.spend(ms)) for name, ms in costs_ms.items()}
    return measure.measure_interleaved(calls, clock_ns=clock, **settings)


def test_a_sample_is_the_time_of_one_call_whatever_inner_is() -> None:
    for inner in (1, 7):
        found = measure_on(Clock(), {"a": 2.0, "b": 3.0}, warmup=2, rounds=5, inner=inner)
        # Exact: the clock counts whole nanoseconds, and 2 ms and 3 ms are whole.
        assert found.samples_ms["a"].tolist() == [2.0] * 5
        assert found.median_ms("b") == 3.0


def test_warm_up_is_not_counted_and_every_candidate_gets_its_calls() -> None:
    calls = {"a": 0, "b": 0}
    clock = Clock()

    def slow_at_first(name: str) -> None:
        calls[name] += 1
        clock.spend(1000.0 if calls[name] <= 3 else 1.0)

    found = measure.measure_interleaved(
        {name: (lambda name=name: slow_at_first(name)) for name in calls},
        warmup=3,
        rounds=4,
        inner=2,
        clock_ns=clock,
    )
    assert calls == {"a": 3 + 4 * 2, "b": 3 + 4 * 2}
    assert max(found.samples_ms["a"].max(), found.samples_ms["b"].max()) == 1.0


def test_a_ratio_pairs_rounds_so_that_a_machine_that_slows_down_does_not_move_it() -> None:
    slowing = 1.5 ** np.arange(9)
    found = measure.Measurement({"a": 4.0 * slowing, "b": 8.0 * slowing}, 0, 9, 1, None)
    # Exact: 8 x and 4 x are the same number but for the exponent, so each quotient is 2.
    assert found.ratio("b", "a") == measure.Ratio("b", "a", 2.0, 2.0, 2.0)
    assert found.ratio("a", "b").median == 0.5
    assert found.samples_ms["a"][-1] > found.samples_ms["b"][0]


@given(st.integers(1, 6), st.integers(0, 100))
def test_each_round_holds_every_candidate_once(count: int, index: int) -> None:
    names = tuple("abcdef"[:count])
    assert sorted(measure.round_order(names, index)) == sorted(names)


def test_over_the_rounds_every_candidate_is_first_and_follows_different_ones() -> None:
    names = ("a", "b", "c")
    orders = [measure.round_order(names, index) for index in range(6)]
    assert {order[0] for order in orders} == set(names)
    for name in names:
        before = {order[order.index(name) - 1] for order in orders if order.index(name) > 0}
        assert before == set(names) - {name}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_the_interval_holds_the_median_and_shrinks_with_more_rounds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    few, many = generator.normal(1.0, 0.1, 20), generator.normal(1.0, 0.1, 2000)
    intervals = [measure.bootstrap_interval(values) for values in (few, many)]
    for values, (low, high) in zip((few, many), intervals, strict=True):
        assert low <= np.median(values) <= high
    # Widths go as 1/sqrt(n): a factor 10 expected, so 1 is ten standard widths away.
    assert intervals[1][1] - intervals[1][0] < intervals[0][1] - intervals[0][0]


def test_json_holds_settings_ratios_and_samples() -> None:
    found = measure_on(Clock(), {"ours": 1.0, "peer": 2.0}, warmup=1, rounds=3, inner=2)
    document = json.loads(json.dumps(found.to_json("peer")))
    assert (document["baseline"], document["warmup"]) == ("peer", 1)
    assert (document["rounds"], document["inner"]) == (3, 2)
    row = document["candidates"]["ours"]
    assert row["samples_ms"] == [1.0, 1.0, 1.0]
    assert row["median_ms"] == 1.0
    assert row["ratio"] == {
        "candidate": "ours",
        "baseline": "peer",
        "median": 0.5,
        "low": 0.5,
        "high": 0.5,
    }


def test_an_unknown_candidate_is_named_with_those_that_are_there() -> None:
    found = measure_on(Clock(), {"a": 1.0, "b": 1.0}, warmup=0, rounds=1)
    with pytest.raises(ConfigError) as caught:
        found.ratio("c", "a")
    assert str(caught.value) == (
        "no candidate 'c' was measured; those measured are a, b; choose one of them"
    )


@pytest.mark.parametrize("counts", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_counts_out_of_range_are_refused(counts: tuple[int, int, int]) -> None:
    warmup, rounds, inner = counts
    with pytest.raises(ConfigError) as caught:
        measure.measure_interleaved({"a": int}, warmup, rounds, inner)
    assert str(caught.value) == (
        f"1 candidates, warmup {warmup}, rounds {rounds}, inner {inner}; there must be a "
        "candidate, warmup at least 0, rounds and inner at least 1; change the one that is not"
    )


def test_no_candidates_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 candidates"):
        measure.measure_interleaved({})


linux_only = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's smaps_rollup"
)


@linux_only
def test_memory_of_a_process_grows_by_what_it_writes_and_shrinks_when_freed() -> None:
    marks = measure.probe_memory(
        """
mark("before")
block = bytearray(int(arguments[0]))
mark("held")
del block
mark("freed")
""",
        ["50000000"],
    )
    grown = {
        name: (
            marks[name].private_bytes - marks["before"].private_bytes,
            marks[name].anonymous_bytes - marks["before"].anonymous_bytes,
            marks[name].pss_bytes - marks["before"].pss_bytes,
        )
        for name in ("held", "freed")
    }
    # A block above malloc's mmap threshold is its own mapping: 50 MB rounded up to pages (and at
    # most one huge page, 2 MiB), beside heap noise well under 1 MB.
    for value in grown["held"]:
        assert 49_000_000 < value < 53_500_000
    for value in grown["freed"]:
        assert abs(value) < 1_000_000


@linux_only
def test_freed_heap_below_a_living_block_is_not_counted() -> None:
    marks = measure.probe_memory(
        """
mark("before")
blocks = [bytearray(100_000) for _ in range(500)]
living = bytearray(100_000)
mark("held")
del blocks
mark("freed")
"""
    )
    # Blocks under malloc's mmap threshold (128 KiB) lie in the heap, with the living one on top:
    # without malloc_trim all 50 MB stay. With it, the living block and heap noise remain.
    assert marks["held"].private_bytes - marks["before"].private_bytes > 49_000_000
    assert marks["freed"].private_bytes - marks["before"].private_bytes < 2_000_000


@linux_only
def test_a_program_that_fails_gives_its_last_words() -> None:
    with pytest.raises(RuntimeBackendError) as caught:
        measure.probe_memory("raise SystemExit('no model')")
    assert str(caught.value) == (
        "the watched program ended with exit code 1; it must end with 0; mend it, its last words "
        "were: no model"
    )


def test_memory_of_a_process_that_is_not_there_is_a_typed_error() -> None:
    with pytest.raises(ConfigError) as caught:
        measure.read_memory("no-such-process")
    assert str(caught.value) == (
        "memory is read from /proc/no-such-process/smaps_rollup, which cannot be read here "
        "(No such file or directory); measure memory on Linux 4.14 or newer, on a process of "
        "your own"
    )


def test_the_device_is_described_with_what_a_number_needs() -> None:
    device = json.loads(json.dumps(measure.describe_device()))
    assert device["cores"] == os.cpu_count()
    assert device["cpu"]
    assert device["versions"]["numpy"] == np.__version__
    assert device["python"] == ".".join(map(str, sys.version_info[:3]))


def test_measuring_loads_no_framework() -> None:
    program = (
        "import sys, patchdeploy.measure as m; m.describe_device();"
        "heavy = 'torch', 'onnx', 'onnxruntime', 'tensorflow';"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
