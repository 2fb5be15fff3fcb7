"""The coding table of a base: its own numbers at every row, and a bias that follows its scale."""

from dataclasses import replace

import numpy as np
import pytest
from coding_cases import CAPACITY, SIDES, make_patch, real_case
from graph_cases import GRAPH_CASES, conv_stack

from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.coding.decode import combine, decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.layout import patch_layout
from patchdeploy.coding.make_table import (
    HEAD_SCALE,
    SMALLEST_SCALE,
    doubled_scales,
    make_coding_table,
)
from patchdeploy.fold import fold_patch
from patchdeploy.graph import Conv2d, Norm, tied_values
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.variant import make_affines
from patchdeploy.reference import reference_sha256


def normalised_stack():
    """conv_stack with a normalisation for every bias, as trained networks have."""
    graph, rng = conv_stack(), np.random.default_rng(7)
    parameters = dict(graph.parameters)
    operators = []
    for operator in graph.operators:
        if isinstance(operator, Conv2d) and operator.name != graph.head:
            norm, rows = Norm(f"{operator.name}.bn", 1e-5), operator.out_channels
            parameters.pop(operator.bias)
            operator = replace(operator, bias=None, norm=norm)
            parameters[f"{norm.name}.weight"] = rng.uniform(0.5, 1.5, rows).astype(np.float32)
            parameters[f"{norm.name}.bias"] = rng.normal(0, 0.3, rows).astype(np.float32)
            parameters[f"{norm.name}.running_mean"] = rng.normal(0, 0.5, rows).astype(np.float32)
            parameters[f"{norm.name}.running_var"] = rng.uniform(0.5, 2, rows).astype(np.float32)
        operators.append(operator)
    return replace(graph, operators=tuple(operators), parameters=parameters)


GRAPHS = {**GRAPH_CASES, "normalised": normalised_stack}


def rows_of(table, name: str) -> slice:
    index = [conv.name for conv in table.convs].index(name)
    first = sum(conv.rows for conv in table.convs[:index])
    return slice(first, first + table.convs[index].rows)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_table_describes_every_convolution_of_the_graph(name):
    graph = GRAPHS[name]()
    base = quantize_base(graph, CAPACITY, True)
    table, layout, ties = make_coding_table(base), base.layout(), tied_values(graph)
    assert table.layout == patch_layout(base)
    assert table.reference_sha256 == reference_sha256(base)
    assert layout.sites[table.output_index] == ties[graph.output]
    assert [conv.name for conv in table.convs] == [one.name for one in graph.convolutions()]
    for conv, one in zip(table.convs, graph.convolutions(), strict=True):
        assert (conv.rows, conv.owned) == (base.rows(one.name), one.name in base.patch_owned)
        assert conv.rows * conv.taps == base.weights[one.name].size
        assert layout.sites[conv.x_index] == ties[one.input]
        assert layout.sites[conv.y_index] == ties[one.output]
        assert rows_of(table, one.name).start == layout.row_start[one.name]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_bias_follows_its_scale_where_a_patch_moves_scales_alone(name):
    graph = GRAPHS[name]()
    base = quantize_base(graph, CAPACITY)
    table, rng = make_coding_table(base), np.random.default_rng(2)
    own = fold_patch(graph)
    factors = {
        key: (one / 2 * rng.uniform(0.5, 1.5, one.shape)).astype(np.float32)
        for key, one in doubled_scales(graph).items()
    }
    moved = make_affines(base, fold_patch(graph, factors))
    for conv in graph.convolutions():
        if conv.name == graph.head:
            continue
        rows, after = rows_of(table, conv.name), moved[conv.name]
        slope, beta = table.slope[rows].astype(np.float64), table.beta[rows].astype(np.float64)
        found = beta + slope * after.step
        # slope and beta are float32: half an ulp of each; beta takes slope's rounding out at the
        # base's own scale, so what is left of it is at the distance to the new one.
        distance = np.abs(after.step - table.scale[rows])
        bound = 2.0**-24 * (
            np.abs(beta) + np.abs(slope) * (distance + 2.0**-24 * table.scale[rows])
        )
        assert (np.abs(found - after.bias) <= bound + 1e-15).all()
        if np.abs(own.convs[conv.name].bias).max() > 0:
            still = make_affines(base, own)[conv.name].bias
            assert np.abs(after.bias - still).max() > 1e-3  # the patch moves biases at all


@pytest.mark.parametrize("name", GRAPHS)
def test_scales_are_the_bases_own_and_the_heads_are_neutral(name):
    graph = GRAPHS[name]()
    base = quantize_base(graph, CAPACITY)
    table, affines = make_coding_table(base), make_affines(base, fold_patch(graph))
    for conv in graph.convolutions():
        rows = rows_of(table, conv.name)
        if conv.name == graph.head:
            assert (table.scale[rows] == HEAD_SCALE).all()
            assert not table.beta[rows].any()
            assert not table.slope[rows].any()
        else:
            expected = np.abs(affines[conv.name].step).astype(np.float32)
            np.testing.assert_array_equal(table.scale[rows], expected)


@pytest.mark.parametrize("name", ["conv_stack", "squeeze_excitation", "grouped_dilated"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_base_itself_codes_as_zeros_and_a_patch_does_not(name, depthwise):
    base, table, own = real_case(name, depthwise, 0)
    _, _, moved = real_case(name, depthwise, 1)
    head = rows_of(table, base.graph.head)
    classes = len(make_patch(own, 7, table).classes)

    def codes(values):
        coded = encode_values(values, classes, table, fine_steps(values, table))
        assert decode_values(coded, table).keys() == set(SIDES)
        return coded.resolutions[SIDES[0]]

    zero, other = codes(own), codes(moved)
    shared = np.r_[0 : head.start]  # the head is the last convolution of these graphs
    assert not zero.scales[shared].any()
    assert not zero.biases[shared].any()
    assert not zero.kernels.any()
    assert np.count_nonzero(other.scales[shared]) > 0.5 * shared.size
    assert np.count_nonzero(other.biases[shared]) > 0.5 * shared.size
    assert other.kernels.any() == (depthwise and other.kernels.size > 0)
    assert combine(np.subtract, other, zero).scales[shared].any()


def test_owned_kernels_are_coded_against_the_bases_own_and_the_heads_against_zero():
    graph = conv_stack()
    base = quantize_base(graph, CAPACITY, True)
    table, affines = make_coding_table(base), make_affines(base, fold_patch(graph))
    expected = [affines[name].kernel.reshape(-1) for name in ("dw1", "dw2")]
    layout = table.layout
    np.testing.assert_array_equal(table.kernels[: layout.head_element], np.concatenate(expected))
    assert not table.kernels[layout.head_element :].any()
    assert table.kernels.any()


def test_a_row_that_the_base_switched_off_has_the_least_reference():
    graph = normalised_stack()
    weight = graph.parameters["expand.bn.weight"].copy()
    weight[3] = 0.0
    graph = replace(graph, parameters={**graph.parameters, "expand.bn.weight": weight})
    table = make_coding_table(quantize_base(graph, CAPACITY))
    row = rows_of(table, "expand").start + 3
    assert table.scale[row] == SMALLEST_SCALE == 2.0**-40
    assert table.slope[row] == 0
    assert table.beta[row] == graph.parameters["expand.bn.bias"][3]


def test_a_base_without_parameters_refers_to_the_shared_kernels_scales():
    graph = conv_stack()
    base = quantize_base(graph, CAPACITY, True)
    bare = replace(base, graph=replace(graph, parameters={}))
    table = make_coding_table(bare)
    rows = rows_of(table, "expand")
    np.testing.assert_array_equal(table.scale[rows], base.weight_scales["expand"])
    assert (table.scale >= SMALLEST_SCALE).all()
    for array in (table.beta, table.slope, table.kernels):
        assert not array.any()
    assert table.sha256 != make_coding_table(base).sha256


def test_doubling_doubles_every_scale_and_no_shift():
    graph = normalised_stack()
    once, twice = fold_patch(graph), fold_patch(graph, doubled_scales(graph))
    for conv in graph.convolutions():
        one, other = once.convs[conv.name], twice.convs[conv.name]
        np.testing.assert_array_equal(other.scale, 2 * one.scale)
        if conv.norm is not None:
            beta = graph.parameters[f"{conv.norm.name}.bias"].astype(np.float64)
            # b = beta - s mean: two float64 roundings of each side.
            np.testing.assert_allclose(other.bias - beta, 2 * (one.bias - beta), 0, 1e-15)


def test_the_table_is_the_same_whenever_it_is_made_and_leaves_the_base_alone():
    graph = conv_stack()
    before = {name: array.copy() for name, array in graph.parameters.items()}
    base = quantize_base(graph, CAPACITY)
    assert make_coding_table(base).encoded == make_coding_table(base).encoded
    for name, array in graph.parameters.items():
        np.testing.assert_array_equal(array, before[name])
