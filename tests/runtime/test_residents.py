"""The cache of residents: built once, least recently used out first, safe under threads."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from patchdeploy.runtime.residents import Residents


@dataclass
class Weight:
    """A resident that only weighs something."""

    resident_bytes: int = 10

    def run(self, images):
        return np.zeros((len(images), 2), np.float32)


def test_the_least_recently_used_goes_first_and_the_newest_stays():
    residents = Residents(budget_bytes=30)
    for px in (1, 2, 3):
        residents.get(("task", px), Weight)
    residents.get(("task", 1), Weight)
    residents.get(("task", 4), Weight)
    assert residents.keys() == (("task", 3), ("task", 1), ("task", 4))
    assert residents.resident_bytes() == 30
    residents.get(("task", 5), lambda: Weight(100))
    assert residents.keys() == (("task", 5),)


def test_no_budget_keeps_everything_and_a_budget_of_nothing_keeps_one():
    for budget, kept in ((None, 5), (0, 1)):
        residents = Residents(budget)
        for px in range(5):
            residents.get(("task", px), Weight)
        assert len(residents.keys()) == kept


def test_a_second_call_finds_what_the_first_one_built():
    residents = Residents(None)
    first, built = residents.get(("task", 1), Weight)
    again, built_again = residents.get(("task", 1), Weight)
    assert first is again
    assert (built, built_again) == (True, False)
    residents.evict(("task", 1))
    residents.evict(("task", 1))  # nothing happens
    assert residents.get(("task", 1), Weight)[0] is not first


def test_many_threads_build_one_resident_once_and_others_do_not_wait():
    residents = Residents(None)
    started, go_on = threading.Event(), threading.Event()
    builds = []

    def slow():
        builds.append(1)
        started.set()
        assert go_on.wait(10)
        return Weight()

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(residents.get(("slow", 1), slow)[0]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    begin = time.perf_counter()
    residents.get(("other", 1), Weight)  # while the slow one is being built
    waited = time.perf_counter() - begin
    assert not go_on.is_set()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(set(map(id, found))) == 1
    assert waited < 5  # far below the 10 s after which the slow build fails


def test_a_build_that_fails_is_raised_and_leaves_nothing():
    residents = Residents(None)

    def fail():
        raise ValueError("refused")

    for _ in range(2):
        with pytest.raises(ValueError, match="refused"):
            residents.get(("task", 1), fail)
    assert residents.keys() == ()
    assert residents.get(("task", 1), Weight)[1]
