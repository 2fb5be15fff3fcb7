"""A batch that several processes hold is normalised as one: forward, backward, running statistics.

Threads stand for processes: what they add up comes from a barrier instead of a network (real
processes: tests/training/test_workers.py).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from patchdeploy.patch.joined import (
    Partners,
    find_partners,
    join_moments,
    joined_with,
    normalize_joined,
)


def together(count: int, work: Callable[[Partners], Any]) -> list[Any]:
    """What ``work`` gives to each of ``count`` partners that run at the same time."""
    barrier = threading.Barrier(count, timeout=30)
    given_in: list[Tensor | None] = [None] * count
    made: list[Any] = [None] * count
    failed: list[BaseException] = []

    def run(place: int) -> None:
        def add(tensor: Tensor) -> None:
            given_in[place] = tensor.clone()
            barrier.wait()
            total = sum(one for one in given_in if one is not None)
            barrier.wait()
            assert isinstance(total, Tensor)
            tensor.copy_(total)

        try:
            made[place] = work(Partners(place, count, add))
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failed:
        raise failed[0]
    return made


def make_norm(momentum: float | None, seed: int) -> nn.BatchNorm2d:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(3, momentum=momentum).double()
    for one in (*norm.parameters(), norm.running_mean):
        assert one is not None
        nn.init.normal_(one)
    return norm


def split(x: Tensor, counts: Sequence[int]) -> list[Tensor]:
    return [part.clone().requires_grad_() for part in torch.split(x, list(counts))]


@given(
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    px=st.integers(1, 3),
    momentum=st.sampled_from([0.1, 0.03, None]),
    offset=st.sampled_from([0.0, 50.0]),
    seed=st.integers(0, 1000),
)
def test_parts_of_a_batch_are_normalised_as_the_whole_batch(
    counts: list[int], px: int, momentum: float | None, offset: float, seed: int
) -> None:
    """In float64, where every sum here has at most 16 * 9 terms of a size up to offset + 5, and the
    loss' gradients are at most 100: 1e-9 is four digits above what rounding can do.
    """
    torch.manual_seed(seed)
    x = torch.randn(sum(counts), 3, px, px, dtype=torch.float64) + offset
    wanted = torch.randn_like(x)
    whole_x, whole = x.clone().requires_grad_(), make_norm(momentum, seed)
    out = whole.train()(whole_x)
    ((out - wanted) ** 3).mean().backward()

    parts, targets = split(x, counts), torch.split(wanted, counts)
    norms = [make_norm(momentum, seed) for _ in counts]

    def work(partners: Partners) -> Tensor:
        place = partners.place
        own = normalize_joined(norms[place], parts[place], partners)
        (((own - targets[place]) ** 3).mean() * counts[place] / sum(counts)).backward()
        return own.detach()

    made = together(len(counts), work)
    near: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(torch.cat(made), out.detach(), **near)
    torch.testing.assert_close(torch.cat([one.grad for one in parts]), whole_x.grad, **near)
    for name in ("weight", "bias"):
        summed = sum(getattr(one, name).grad for one in norms)
        torch.testing.assert_close(summed, getattr(whole, name).grad, **near)
    for norm in norms:  # the same bits in each
        torch.testing.assert_close(norm.running_mean, whole.running_mean, **near)
        torch.testing.assert_close(norm.running_var, whole.running_var, **near)
        assert torch.equal(norm.running_mean, norms[0].running_mean)
        assert torch.equal(norm.running_var, norms[0].running_var)


def test_moments_of_several_tasks_are_joined_task_by_task() -> None:
    """Of each task's images another number, in each process too."""
    torch.manual_seed(0)
    counts = [[3, 5], [4, 2]]  # by process, by task
    values = [[torch.randn(n, 4, dtype=torch.float64) + 3 for n in row] for row in counts]

    def work(partners: Partners) -> tuple[Tensor, Tensor, Tensor]:
        own = values[partners.place]
        mean = torch.stack([one.mean(0) for one in own])
        var = torch.stack([one.var(0, correction=0) for one in own])
        return join_moments(mean, var, counts[partners.place], partners)

    first, second = together(2, work)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    for task in range(2):
        both = torch.cat([values[0][task], values[1][task]])
        torch.testing.assert_close(first[0][task], both.mean(0))
        torch.testing.assert_close(first[1][task], both.var(0, correction=0))
        torch.testing.assert_close(first[1][task] * first[2][task], both.var(0))


def test_a_half_precision_batch_is_normalised_in_float32_and_stays_half() -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.bfloat16)
    parts = torch.split(x, 2)
    norms = [make_norm(0.1, 0).float() for _ in range(2)]
    made = together(2, lambda one: normalize_joined(norms[one.place], parts[one.place], one))
    assert {one.dtype for one in made} == {torch.bfloat16}
    whole = make_norm(0.1, 0).float().train()(x.float())
    # rounded once, to 8 bits
    torch.testing.assert_close(torch.cat(made).float(), whole, rtol=2**-8, atol=1e-6)


def test_partners_hold_within_their_block_alone_and_nest() -> None:
    one, other = (Partners(place, 2, lambda _: None) for place in range(2))
    assert find_partners() is None
    with joined_with(one):
        with joined_with(other):
            assert find_partners() is other
        assert find_partners() is one
        with joined_with(None):
            assert find_partners() is None
    with pytest.raises(ZeroDivisionError), joined_with(one):
        raise ZeroDivisionError
    assert find_partners() is None
