"""The grid that a patch lies on is found in its values, and only there."""

from dataclasses import replace

import numpy as np
import pytest
from coding_cases import real_case
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import INT32_MAX, MIN_BIAS_STEP, CodingSteps
from patchdeploy.coding.lossless_steps import at_least, lossless_steps

CLASSES = 10
NETWORK = "residual"


def coded(t: int, e: int, px_count: int = 2):
    """(table, values that lie on the grid of t and e, index of the head)."""
    _, table, values = real_case(NETWORK)
    values = dict(sorted(values.items(), reverse=True)[:px_count])
    count = len(table.convs)
    steps = CodingSteps((t,) * count, (e,) * count)
    decoded = decode_values(encode_values(values, CLASSES, table, steps), table)
    head = int(table.row_conv[table.layout.head_row])
    return table, decoded, head


@given(st.integers(0, 6), st.integers(-7, -4))
@settings(max_examples=12, deadline=None)
def test_values_on_a_grid_give_its_steps_and_are_coded_on_them_without_moving(t, e):
    table, values, head = coded(t, e)
    found = lossless_steps(values, table)
    body = [k for k in range(len(table.convs)) if k != head]
    # Coarser where all of a convolution's numbers happen to be even.
    assert all(found.scale[k] >= t for k in body)
    # None where a step is so coarse that no shift of a convolution moves.
    assert all(found.bias[k] >= e or found.bias[k] == MIN_BIAS_STEP for k in body)
    assert sum(found.bias[k] >= e for k in body) > len(body) / 2
    assert sum(found.scale[k] == t for k in body) > len(body) / 2
    assert (found.scale[head], found.bias[head]) == (0, MIN_BIAS_STEP)
    steps = at_least(CodingSteps((t,) * (head + 1), (e,) * (head + 1)), found)
    again = decode_values(encode_values(values, CLASSES, table, steps), table)
    rows = table.row_conv != head
    for px, before in values.items():
        np.testing.assert_array_equal(again[px].weight_scale[rows], before.weight_scale[rows])
        # A shift that is a multiple of 2^e up to half a unit of its bias comes back to that bias
        # or the one beside it.
        assert np.abs(again[px].bias[rows].astype(int) - before.bias[rows]).max() <= 1


def test_values_on_no_grid_and_values_of_the_base_give_no_bound():
    for seed in (0, 1):
        _, table, values = real_case(NETWORK, seed=seed)
        found = lossless_steps(values, table)
        assert set(found.scale) == {0}
        assert sum(e == MIN_BIAS_STEP for e in found.bias) >= len(found.bias) - 1
        fine = fine_steps(values, table)
        assert set(fine.scale) == {3}


def test_a_row_whose_scale_a_runtime_raised_says_nothing_about_the_grid():
    table, values, _ = coded(5, -4, px_count=1)
    found = lossless_steps(values, table)
    (px, one), conv = next(iter(values.items())), table.convs[0]
    scale, bias = one.weight_scale.copy(), one.bias.copy()
    scale[0] *= np.float32(1.2345)
    off = lossless_steps({px: replace(one, weight_scale=scale)}, table)
    assert off.scale[0] == 0
    bias[0] = INT32_MAX - 3 * 255 * 127 * conv.taps
    raised = lossless_steps({px: replace(one, weight_scale=scale, bias=bias)}, table)
    assert (raised.scale[0], raised.bias[0]) == (found.scale[0], found.bias[0])


def test_export_takes_no_finer_steps_than_those_that_a_patch_lies_on():
    table, values, head = coded(5, -3)
    steps = fine_steps(values, table)
    assert all(t >= 5 for k, t in enumerate(steps.scale) if k != head)
    assert all(e >= -3 for k, e in enumerate(steps.bias) if k != head)
    assert steps.scale[head] == 3


def test_bounds_only_make_steps_coarser():
    steps, least = CodingSteps((3, 6), (-5, 2)), CodingSteps((5, 0), (MIN_BIAS_STEP, 4))
    assert at_least(steps, least) == CodingSteps((5, 6), (-5, 4))


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_task_with_its_own_kernels_is_looked_at_in_the_same_way(depthwise):
    _, table, values = real_case(NETWORK, depthwise)
    count = len(table.convs)
    steps = CodingSteps((4,) * count, (-5,) * count)
    decoded = decode_values(encode_values(values, CLASSES, table, steps), table)
    head = int(table.row_conv[table.layout.head_row])
    found = lossless_steps(decoded, table)
    assert all(t >= 4 for k, t in enumerate(found.scale) if k != head)
