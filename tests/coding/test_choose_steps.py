"""Choosing steps: the water-filling solution where costs are quadratic, and never past the budget.

The scorers are hand-written, so that what each step costs is known exactly.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from coding_cases import real_case, tiny_table, tiny_values, with_classes
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.coding.choose_steps import (
    LEVELS,
    SHARES,
    CodingConfig,
    choose_steps,
    coarsen_head,
    fine_steps,
    steps_of_share,
)
from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodingSteps
from patchdeploy.coding.layout import masked_head_rows
from patchdeploy.coding.probe import Costs, bias_exponents
from patchdeploy.errors import ConfigError, DataError

PX, CLASSES, IMAGES = 32, 4, 50
LABELS = np.zeros(IMAGES, np.int64)
LSB = 2.0**-5
HEAD = 2
"""Index of the head in `tiny_table`: it is coarsened too, so the scorers here do not look at it."""


def third_of_every_step():
    """A base and a task that every step rounds by a third of itself, up or down.

    1/3 is 0.010101... in binary: 1024/3 units of a scale's logarithm lie 1/3 of a step from the
    nearest multiple of any step 2^t, t = 0..10. Shifts of 16/3 do the same for steps up to 2^3.
    Shifts are 0 in the base and do not follow the scale; rows have multipliers of about 2^-18, so
    that a bias unit is small beside all bias steps.
    """
    table = tiny_table()
    rows = table.layout.rows
    table = replace(
        table,
        scale=np.full(rows, 2.0**-18, np.float32),
        beta=np.zeros(rows, np.float32),
        slope=np.zeros(rows, np.float32),
    )
    signs = np.where(np.arange(rows) % 2, -1.0, 1.0)
    scale = (table.scale * np.exp2(signs * 1024 / 3 / 256)).astype(np.float32)
    unit = LSB * scale.astype(np.float64)
    values = replace(
        tiny_values(CLASSES),
        activation_scale=np.full(5, LSB, np.float32),
        weight_scale=scale,
        bias=np.rint(signs[::-1] * 16 / 3 / unit).astype(np.int32),
    )
    return table, masked_head_rows(values, CLASSES, table.layout)


TABLE, VALUES = third_of_every_step()
ROWS = [conv.rows for conv in TABLE.convs]


def steps_seen(values) -> tuple[np.ndarray, np.ndarray]:
    """By convolution, the steps whose rounding by a third explains ``values``: units of a scale's
    logarithm, and output steps.
    """
    octaves = np.log2(values.weight_scale.astype(np.float64) / VALUES.weight_scale)
    shift = values.bias * (LSB * values.weight_scale.astype(np.float64))
    true = VALUES.bias * (LSB * VALUES.weight_scale.astype(np.float64))
    scales, biases = [], []
    for k in range(len(ROWS)):
        rows = TABLE.row_conv == k
        scales.append(3 * 256 * math.sqrt(np.mean(octaves[rows] ** 2)))
        biases.append(3 * math.sqrt(np.mean((shift - true)[rows] ** 2)) / LSB)
    return np.array(scales), np.array(biases)


class Quadratic:
    """Scores whose divergence is the sum of a_l t_l^2 + b_l e_l^2, exactly.

    Two even chances of which one score falls by z cost ln cosh(z / 2); z is solved for. The better
    score stays the first: no answer ever changes.
    """

    def __init__(self, scale, bias, sides=(PX,)):
        self.costs, self.sides, self.calls = Costs(np.array(scale), np.array(bias)), sides, []

    def nats(self, values) -> float:
        scales, biases = steps_seen(values)
        terms = self.costs.scale * scales**2 + self.costs.bias * biases**2
        return float(np.delete(terms, HEAD).sum())

    def __call__(self, px, values):
        assert px in self.sides
        self.calls.append(px)
        fall = 2 * math.acosh(math.exp(self.nats(values)))
        return np.tile(np.array([0.0, -fall] + [-60.0] * (CLASSES - 2), np.float32), (IMAGES, 1))


def test_the_case_of_these_tests_rounds_by_a_third_of_any_step():
    for t in range(11):
        for output_steps in (1 / 64, 1.0, 64.0):
            exponents = bias_exponents({PX: VALUES}, TABLE, np.full(4, output_steps))
            steps = CodingSteps((t,) * 4, exponents)
            codes = encode_values({PX: VALUES}, CLASSES, TABLE, steps)
            scales, biases = steps_seen(decode_values(codes, TABLE)[PX])
            # Two float32 scales are compared, each known to 2^-24: 2 * 3 * 256 * 2^-24 / ln 2 is
            # 1.4e-4 units. Two biases are compared, each known to half a unit: 3 units of at most
            # 2^(-18 + 4/3) output steps are 2.9e-5 of them.
            np.testing.assert_allclose(scales, 2.0**t, atol=1.4e-4)
            np.testing.assert_allclose(biases, output_steps, atol=3e-5)


def filled(costs: Costs, share: float) -> tuple[list[int], list[int]]:
    """The steps of one share in plain numbers: each to the nearest power of two, inside bounds."""
    scales, biases = [], []
    for rows, a, b in zip(ROWS, costs.scale, costs.bias, strict=True):
        scales.append(min(10, max(0, round(math.log2(math.sqrt(share * rows / a))))))
        output_steps = min(64.0, max(2.0**-6, math.sqrt(share * rows / b)))
        biases.append(round(math.log2(output_steps * LSB)))
    return scales, biases


def cost_of(costs: Costs, scales, biases) -> float:
    """Nats of steps 2^t units and 2^e, the head left out."""
    kept = [k for k in range(len(ROWS)) if k != HEAD]
    return sum(
        costs.scale[k] * 4.0 ** scales[k] + costs.bias[k] * (2.0 ** biases[k] / LSB) ** 2
        for k in kept
    )


COSTS = (
    Costs(np.array([1e-6, 4e-5, 1e-9, 3e-8]), np.array([2e-3, 1e-5, 1e-9, 5e-4])),
    Costs(np.array([1e-9, 1e-9, 1e-9, 3e-5]), np.array([1e-2, 3e-7, 1e-9, 3e-7])),
    Costs(np.array([3e-7, 3e-7, 1e-9, 3e-7]), np.array([1e-4, 1e-4, 1e-9, 1e-4])),
)


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("nats", [1e-4, 0.003, 0.01])
def test_quadratic_costs_give_the_water_filling_solution(costs, nats):
    config = CodingConfig(nats=nats, head_share=0.5)
    score = Quadratic(costs.scale, costs.bias)
    choice = choose_steps({PX: VALUES}, LABELS, TABLE, score, config, costs=costs)
    inside = [share for share in SHARES if cost_of(costs, *filled(costs, share)) <= nats]
    expected = filled(costs, max(inside))
    assert ([*choice.steps.scale], [*choice.steps.bias]) == expected
    # 1.4e-4 of a unit, and more where steps are small; scores are float32: 2^-24 of a fall z, and
    # the divergence is quadratic in both.
    assert choice.nats[PX] == pytest.approx(cost_of(costs, *expected), rel=1e-3)
    assert choice.nats[PX] <= nats
    assert choice.points == {PX: 0.0}


@pytest.mark.parametrize("costs", COSTS)
def test_no_step_could_be_traded_for_another_ones(costs):
    """Of a_l d_l^2 / N_l, which a common share makes equal, powers of two leave a factor of 4."""
    score = Quadratic(costs.scale, costs.bias)
    config = CodingConfig(nats=0.003)
    steps = choose_steps({PX: VALUES}, LABELS, TABLE, score, config, costs=costs).steps
    shares = []
    for k, rows in enumerate(ROWS):
        if 0 < steps.scale[k] < 10:
            shares.append(costs.scale[k] * 4.0 ** steps.scale[k] / rows)
        output_steps = 2.0 ** steps.bias[k] / LSB
        if 2.0**-6 < output_steps < 64:
            shares.append(costs.bias[k] * output_steps**2 / rows)
    assert len(shares) >= 2
    assert max(shares) <= 4.01 * min(shares)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(1e-12, 1.0), min_size=4, max_size=4),
    st.lists(st.floats(1e-12, 1.0), min_size=4, max_size=4),
    st.sampled_from(SHARES),
)
def test_steps_of_a_share_are_those_of_plain_numbers(scale, bias, share):
    costs = Costs(np.array(scale), np.array(bias))
    steps = steps_of_share({PX: VALUES}, TABLE, costs, share)
    scales, biases = filled(costs, share)
    for found, expected, exact in (
        (steps.scale, scales, [0.5 * math.log2(share * n / a) for n, a in zip(ROWS, scale)]),  # noqa: B905
        (steps.bias, biases, [0.5 * math.log2(share * n / b) for n, b in zip(ROWS, bias)]),  # noqa: B905
    ):
        for one, other, value in zip(found, expected, exact, strict=True):
            # Two ways to the same logarithm differ by a few roundings; at a half they may part.
            assert one == other or abs(value % 1 - 0.5) < 1e-9


def test_a_larger_share_never_makes_a_step_finer():
    before = steps_of_share({PX: VALUES}, TABLE, COSTS[0], SHARES[0])
    for share in SHARES[1:]:
        steps = steps_of_share({PX: VALUES}, TABLE, COSTS[0], share)
        assert all(a <= b for a, b in zip(before.scale, steps.scale, strict=True))
        assert all(a <= b for a, b in zip(before.bias, steps.bias, strict=True))
        before = steps
    assert tuple(sorted(SHARES)) == SHARES


def test_probed_costs_lead_to_the_same_kind_of_steps_inside_the_budget():
    score = Quadratic(COSTS[0].scale, COSTS[0].bias)
    said = []
    choice = choose_steps({PX: VALUES}, LABELS, TABLE, score, progress=said.append)
    assert said == ["head on 7 levels; probing 4 convolutions"]
    assert choice.nats[PX] <= 0.01
    assert choice.steps.scale[1] < choice.steps.scale[3]  # a_1 is 1,000 times a_3
    assert choice.steps.bias[0] < choice.steps.bias[1]
    few = Quadratic(COSTS[0].scale, COSTS[0].bias)
    apart = choose_steps({PX: VALUES}, LABELS, TABLE, score, probe_score=few)
    assert few.calls  # probes go to the smaller set where one is given
    assert apart.steps == choice.steps


# -- the budget ------------------------------------------------------------------------------------


def test_where_nothing_fits_the_budget_steps_are_the_fine_ones():
    def never(px, values):
        same = values.weight_scale.tobytes() == VALUES.weight_scale.tobytes()
        return np.tile(np.float32([0, 0, 0, 0] if same else [0, 9, 0, 0]), (IMAGES, 1))

    choice = choose_steps({PX: VALUES}, LABELS, TABLE, never, costs=COSTS[0])
    assert choice.steps == fine_steps({PX: VALUES}, TABLE)
    assert choice.head_levels == 127
    assert choice.values == {PX: VALUES}
    assert choice.points == {PX: 100.0}
    assert choice.nats[PX] > 1


class Flipping(Quadratic):
    """``wrong`` of the answers turn wrong where a scale is coded by 2^``least`` units or more."""

    def __init__(self, least, wrong):
        super().__init__([1e-12] * 4, [1e-12] * 4)
        self.least, self.wrong = least, wrong

    def __call__(self, px, values):
        scores = super().__call__(px, values)
        if max(np.delete(steps_seen(values)[0], HEAD)) > 0.9 * 2**self.least:
            scores[: self.wrong, 1] = scores[: self.wrong, 0] + np.float32(1e-3)
        return scores


def test_top_1_stops_where_the_divergence_does_not():
    costs = Costs(np.full(4, 1e-6), np.full(4, 1e-9))
    for least in (3, 6):
        choice = choose_steps({PX: VALUES}, LABELS, TABLE, Flipping(least, 25), costs=costs)
        kept = [t for k, t in enumerate(choice.steps.scale) if k != HEAD]
        assert max(kept) == least - 1
        assert choice.points == {PX: 0.0}


@pytest.mark.parametrize(("wrong", "taken"), [(1, True), (4, False)])
def test_a_loss_that_chance_explains_is_taken_and_a_larger_one_is_not(wrong, taken):
    """1 of 50 images is 2 points, its chance 2 points; 4 are 8 points beside 4."""
    costs = Costs(np.full(4, 1e-6), np.full(4, 1e-9))
    choice = choose_steps({PX: VALUES}, LABELS, TABLE, Flipping(3, wrong), costs=costs)
    kept = [t for k, t in enumerate(choice.steps.scale) if k != HEAD]
    assert (max(kept) >= 3) == taken
    assert choice.points == {PX: 2.0 * wrong if taken else 0.0}


def test_every_resolution_stays_inside_the_budget():
    """The smaller one is a hundred times more sensitive: it decides."""

    class TwoSides(Quadratic):
        def nats(self, values):
            return super().nats(values) * (
                100 if values is not VALUES and self.calls[-1] == 16 else 1
            )

        def __call__(self, px, values):
            self.calls.append(px)
            return super().__call__(px, values)

    costs = COSTS[2]
    both = {16: VALUES, PX: VALUES}
    score = TwoSides(costs.scale, costs.bias, (16, PX))
    choice = choose_steps(both, LABELS, TABLE, score, costs=costs)
    alone = choose_steps(
        {PX: VALUES}, LABELS, TABLE, Quadratic(costs.scale, costs.bias), costs=costs
    )
    assert max(choice.nats.values()) == choice.nats[16] <= 0.01
    assert list(choice.values) == [PX, 16]
    assert sum(choice.steps.scale) < sum(alone.steps.scale)


def test_only_the_resolutions_and_images_that_were_given_are_scored():
    score = Quadratic(COSTS[0].scale, COSTS[0].bias)
    choose_steps({PX: VALUES}, LABELS, TABLE, score)
    assert set(score.calls) == {PX}
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        choose_steps({PX: VALUES}, np.zeros(IMAGES + 1, np.int64), TABLE, score)


def test_too_few_images_are_refused_before_anything_is_scored():
    score = Quadratic(COSTS[0].scale, COSTS[0].bias)
    with pytest.raises(DataError) as caught:
        choose_steps({PX: VALUES}, LABELS[:31], TABLE, score)
    assert str(caught.value) == (
        "31 validation images; choosing steps needs at least 32 (500 are usual); hold more out, or "
        "code with the fine default steps"
    )
    assert score.calls == []


@pytest.mark.parametrize(
    "settings_", [{"points": -0.1}, {"nats": 0.0}, {"head_share": 1.0}, {"nats": math.nan}]
)
def test_budgets_that_are_none_are_refused(settings_):
    with pytest.raises(ConfigError) as caught:
        CodingConfig(**settings_)
    fields = {"points": 0.1, "nats": 0.01, "head_share": 0.25, "probe_images": 200, **settings_}
    shown = ", ".join(f"{name}={value}" for name, value in fields.items())
    assert str(caught.value) == (
        f"CodingConfig({shown}): points must be at least 0, nats above 0, head_share in [0, 1); "
        "the defaults are usual"
    )


def test_too_few_images_to_probe_with_are_refused():
    with pytest.raises(ConfigError) as caught:
        CodingConfig(probe_images=31)
    assert str(caught.value) == "probe_images 31; it must be at least 32; 200 are usual"


# -- the head --------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("classes", [2, 7])
def test_a_coarse_head_is_the_same_function_but_for_half_a_level(levels, classes):
    _, table, values = real_case("conv_stack", True)
    layout = table.layout
    fine = with_classes(values, classes, table)[24]
    coarse = coarsen_head(fine, classes, layout, levels)
    rows = slice(layout.head_row, layout.head_row + classes)
    first = layout.head_element
    elements = slice(first, first + classes * layout.head_row_elements)
    kernel = coarse.weights[elements].astype(np.int32)
    assert np.abs(kernel).max() == levels  # a row's largest element is 127
    wide = coarse.weight_scale[rows].astype(np.float64)
    per_element = np.repeat(wide, layout.head_row_elements)
    before = fine.weights[elements] * np.repeat(
        fine.weight_scale[rows].astype(np.float64), layout.head_row_elements
    )
    # Half a level, and the new scale's rounding to float32 of at most `levels` of them.
    bound = per_element * (0.5 + levels * 2.0**-23)
    assert (np.abs(kernel * per_element - before) <= bound).all()
    x_scale = float(fine.activation_scale[layout.head_input])
    real = fine.bias[rows] * x_scale * fine.weight_scale[rows].astype(np.float64)
    after = coarse.bias[rows] * x_scale * wide
    # Half a unit of the new scale, and that scale's rounding.
    assert (np.abs(after - real) <= x_scale * wide * 0.5 + np.abs(real) * 2.0**-23).all()


def test_coarsening_touches_the_heads_used_rows_alone():
    _, table, values = real_case("conv_stack", True)
    layout = table.layout
    fine = with_classes(values, 3, table)[24]
    before = replace(
        fine,
        weights=fine.weights.copy(),
        bias=fine.bias.copy(),
        weight_scale=fine.weight_scale.copy(),
    )
    coarse = coarsen_head(fine, 3, layout, 7)
    used = np.r_[layout.head_row : layout.head_row + 3]
    for name in ("weight_scale", "bias"):
        same = np.delete(getattr(coarse, name) == getattr(fine, name), used)
        assert same.all()
        assert (getattr(coarse, name)[used] != getattr(fine, name)[used]).any()
        assert (getattr(fine, name) == getattr(before, name)).all()
    assert (coarse.weights[: layout.head_element] == fine.weights[: layout.head_element]).all()
    assert (fine.weights == before.weights).all()
    assert (coarse.activation_scale == fine.activation_scale).all()


def test_the_fewest_levels_that_take_their_share_are_kept():
    """A scorer that looks at the head's kernel alone: coarser than 21 levels costs too much."""
    layout = TABLE.layout
    kernel = slice(layout.head_element, layout.head_element + CLASSES * layout.head_row_elements)

    def by_levels(px, values):
        levels = int(np.abs(values.weights[kernel].astype(int)).max())
        fall = 0.0 if levels >= 21 else 1.0
        return np.tile(np.float32([0, -fall, -60, -60]), (IMAGES, 1))

    full = replace(VALUES, weights=VALUES.weights.copy())
    full.weights[kernel] = 127
    choice = choose_steps({PX: full}, LABELS, TABLE, by_levels, costs=COSTS[0])
    assert choice.head_levels == 21
    assert np.abs(choice.values[PX].weights[kernel]).max() == 21


@pytest.mark.parametrize(("losing", "expected"), [(31, 21), (21, 31)])
def test_levels_that_lose_top_1_are_passed_over_and_those_past_the_heads_share_end_it(
    losing, expected
):
    """Half the answers turn at ``losing`` levels; 15 cost ln cosh 0.1 = 0.005 nats of 0.0025."""
    layout = TABLE.layout
    kernel = slice(layout.head_element, layout.head_element + CLASSES * layout.head_row_elements)

    def by_levels(px, values):
        levels = int(np.abs(values.weights[kernel].astype(int)).max())
        fall = {127: 1e-3, 63: 1e-3, 31: 2e-3, 21: 3e-3, 15: 0.2}.get(levels, 1.0)
        scores = np.tile(np.float32([0, -fall, -60, -60]), (IMAGES, 1))
        scores[: 25 if levels == losing else 0, 1] = 1e-4
        return scores

    full = replace(VALUES, weights=VALUES.weights.copy())
    full.weights[kernel] = 127
    choice = choose_steps({PX: full}, LABELS, TABLE, by_levels, costs=COSTS[0])
    assert choice.head_levels == expected


def test_fine_steps_are_a_32nd_octave_and_an_eighth_of_an_output_step():
    activation = np.float32([0.5, 0.1, 0.02, 0.3, 1.0])
    other = replace(VALUES, activation_scale=activation)
    steps = fine_steps({PX: VALUES, 16: other}, TABLE)
    assert steps.scale == (3, 3, 3, 3)
    # log2 of an eighth of min(2^-5, 0.1), min(2^-5, 0.02), min(2^-5, 0.3), min(2^-5, 1).
    assert steps.bias == (-8, -9, -8, -8)


@pytest.mark.parametrize(("scale", "exponent"), [(2.0**-126, -126), (2.0**126, 127)])
def test_exponents_stay_inside_the_format(scale, exponent):
    values = replace(VALUES, activation_scale=np.full(5, scale, np.float32))
    for output_steps in (2.0**-6, 64.0):
        inside = bias_exponents({PX: values}, TABLE, np.full(4, output_steps))
        assert all(-126 <= one <= 127 for one in inside)
    extreme = 2.0**-6 if exponent < 0 else 64.0
    assert bias_exponents({PX: values}, TABLE, np.full(4, extreme)) == (exponent,) * 4
