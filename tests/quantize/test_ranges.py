"""Ranges to scales and zero points: what each operator fixes, and every runtime's limits."""

import numpy as np
import pytest
from graph_cases import GRAPH_CASES, GraphBuilder, branches, conv_stack, residual
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.errors import QuantizationError
from patchdeploy.graph import Add, Conv2d, GlobalAvgPool, Mul, tied_values
from patchdeploy.quantize.model import SIGMOID_SCALE, ActivationParams
from patchdeploy.quantize.ranges import (
    SCALE_FLOOR,
    Calibration,
    choose_activations,
    params_for_range,
    value_range,
)


def same_range(graph, low=-1.0, high=2.0):
    return dict.fromkeys(graph.channels, (low, high))


def small_steps(graph):
    return {conv.name: 0.01 for conv in graph.convolutions()}


def choose(graph, ranges, steps=None, input_zero_point=-5):
    return choose_activations(graph, input_zero_point, ranges, steps or small_steps(graph))


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_a_range_is_covered_to_within_half_a_step_and_zero_is_a_code(low, high):
    params = params_for_range(low, high)
    scale = float(params.scale)
    assert -128 <= params.zero_point <= 127
    # The zero point is rounded: half a step; float32 rounds the scale: 2^-24 of 255 steps.
    slack = scale * (0.5 + 255 * 2.0**-23)
    assert scale * (-128 - params.zero_point) <= low + slack
    assert scale * (127 - params.zero_point) >= high - slack


def test_one_sided_ranges_have_their_zero_at_the_end():
    assert params_for_range(0.0, 6.0) == ActivationParams(np.float32(6 / 255), -128)
    assert params_for_range(-3.0, 0.0) == ActivationParams(np.float32(3 / 255), 127)


def test_a_value_that_is_constant_zero_gets_the_floor_scale():
    params = params_for_range(0.0, 0.0)
    assert params == ActivationParams(np.float32(SCALE_FLOOR), -128)
    assert params.scale >= np.finfo(np.float32).tiny


def test_relu_starts_at_the_lowest_code_and_relu6_ends_at_six_or_below():
    graph = conv_stack()
    for high in (2.0, 9.0):
        found = choose(graph, same_range(graph, -1.0, high))
        assert found["stem:out"].zero_point == -128
        assert found["expand:out"].zero_point == -128
        assert found["stem:out"].scale == np.float32(min(high, 6.0) / 255)
        assert found["expand:out"].scale == np.float32(high / 255)
        assert found["project:out"].zero_point > -128


def test_the_input_is_fixed_whatever_was_seen():
    graph = conv_stack()
    found = choose(graph, same_range(graph))
    assert found["image"] == ActivationParams(np.float32(1.0), -5)


def test_sigmoid_and_hard_sigmoid_are_fixed_whatever_was_seen():
    graph = GRAPH_CASES["squeeze_excitation"]()
    ranges = {k: v for k, v in same_range(graph).items() if k not in ("sigmoid:out", "fc2:out")}
    found = choose(graph, ranges)
    assert found["sigmoid:out"] == ActivationParams(SIGMOID_SCALE, -128)
    assert found["fc2:out"] == ActivationParams(np.float32(1 / 255), -128)


def test_tied_values_take_the_union_of_their_ranges():
    graph = branches()
    ties = tied_values(graph)
    ranges = same_range(graph, 0.0, 1.0)
    ranges["mix:out"] = (-3.0, 0.5)
    ranges["stem:out"] = (0.0, 4.0)
    found = choose(graph, ranges)
    assert ties["mix:out"] == ties["stem:out"]
    assert found[ties["mix:out"]] == params_for_range(-3.0, 4.0)


def test_a_range_is_needed_for_every_site():
    graph = conv_stack()
    ranges = same_range(graph)
    del ranges["dw1:out"]
    with pytest.raises(QuantizationError) as error:
        choose(graph, ranges)
    assert str(error.value) == (
        "value 'dw1:out' has no calibration range; every value of the graph needs one; calibrate "
        "with the same folded network"
    )


@pytest.mark.parametrize("seen", [(float("nan"), 1.0), (0.0, float("inf")), (1.0, -1.0)])
def test_a_range_that_is_not_finite_or_not_in_order_is_refused(seen):
    with pytest.raises(QuantizationError) as error:
        value_range(None, "stem:out", seen)
    assert str(error.value) == (
        f"value 'stem:out' has calibration range [{seen[0]}, {seen[1]}]; both ends must be finite "
        "and in order; check the calibration images and the patch for NaN or infinity"
    )


@settings(deadline=None)
@given(
    st.sampled_from(["residual", "squeeze_excitation", "conv_stack", "grouped_dilated"]),
    st.integers(0, 2**32 - 1),
)
def test_every_ratio_lies_within_xnnpacks_limits_however_uneven_the_ranges(name, seed):
    graph = GRAPH_CASES[name]()
    rng = np.random.default_rng(seed)
    ranges = {
        v: (-(10.0 ** rng.uniform(-5, 2)), 10.0 ** rng.uniform(-5, 2)) for v in graph.channels
    }
    # hard_sigmoid's range is fixed, so its convolution may not ask for more than 1/255 allows.
    steps = {c.name: 10.0 ** rng.uniform(-4, -2) for c in graph.convolutions()}
    found = choose(graph, ranges, steps)
    for operator in graph.operators:
        y = float(found[tied_values(graph)[operator.output]].scale)
        x = [float(found[tied_values(graph)[v]].scale) for v in operator.inputs]
        if isinstance(operator, Conv2d):
            assert x[0] * steps[operator.name] / y < 256
        elif isinstance(operator, Add):
            assert all(2.0**-10 <= one / y < 256 for one in x)
        elif isinstance(operator, Mul):
            assert 2.0**-16 <= x[0] * x[1] / y < 256
        elif isinstance(operator, GlobalAvgPool):
            assert 2.0**-8 <= x[0] / y < 256


def test_scales_grow_only_where_a_limit_asks_for_it():
    graph = residual()
    ranges = same_range(graph, -1.0, 1.0)
    plain = choose(graph, ranges)
    ranges["branch3:out"] = (-1e-6, 1e-6)  # against a sum of scale 2 / 255: below 2^-10 of it
    grown = choose(graph, ranges)
    assert grown["branch3:out"].scale >= plain["add_plain:out"].scale * 2.0**-10
    for site, params in plain.items():
        if site != "branch3:out":
            assert grown[site] == params


def test_a_multiplier_that_no_scale_can_tame_is_refused():
    g = GraphBuilder()
    x = g.conv("image", "stem", 4)
    y = g.conv(x, "loop", 4)
    x = g.concat((x, y), "concat")  # ties the loop's input to its output
    graph = g.finish(x, "tied_loop")
    steps = small_steps(graph) | {"loop": 1000.0}
    with pytest.raises(QuantizationError, match="convolution 'loop' needs the requantisation"):
        choose(graph, same_range(graph), steps)


def test_a_calibration_is_a_mapping_of_its_ranges():
    calibration = Calibration({"a": (0.0, 1.0)}, {"a": np.zeros(1)})
    assert dict(calibration) == {"a": (0.0, 1.0)}
    assert len(calibration) == 1
