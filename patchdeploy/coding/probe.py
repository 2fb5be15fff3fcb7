"""What a coarse step costs each convolution: the score's divergence when its values are disturbed.

In: a task's slot values at one resolution, a way to score them. Out: `Costs`. Rounding with a
step d disturbs a value by up to d / 2 either way; probing does the same with random numbers, not
by rounding: a step as large as all that training moved rounds everything to 0, which measures the
whole patch of that layer, not a step. The disturbance grows until it shows: int8 activations round
differently after any change at all, and that costs the same however small the change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.decode import PatchCodes, decode_values
from patchdeploy.coding.encode import encode_values, move_inside
from patchdeploy.coding.grid import MAX_BIAS_STEP, MIN_BIAS_STEP, CodedRows, CodingSteps
from patchdeploy.coding.table import CodingTable
from patchdeploy.slots import PatchValues

Scores = NDArray[np.float32]

FINE_SCALE = 0
FINE_BIAS_LSB = 2.0**-6
"""Of an output step: what counts as not rounded."""
NATS = 0.003
"""A disturbance that costs so much above none at all shows; four times as much is too large."""
FIRST_SCALE, LEAST_SCALE, MOST_SCALE = 2.0**7, 2.0**2, 2.0**11
FIRST_BIAS, LEAST_BIAS, MOST_BIAS = 8.0, 0.25, 128.0
"""Steps that are probed: units of a scale's logarithm, output steps."""
UNSEEN = NATS / 16
"""What a convolution counts for whose largest step does not show."""
SEED = 0


@dataclass(frozen=True, eq=False)
class Costs:
    """By convolution, float64 [n]: nats over the square of the step.

    Attributes:
        scale: a step of one unit of a scale's logarithm.
        bias: a step of one output step.
    """

    scale: NDArray[np.float64]
    bias: NDArray[np.float64]


def probe_costs(
    px: int,
    values: PatchValues,
    classes: int,
    table: CodingTable,
    score: Callable[[int, PatchValues], Scores],
) -> Costs:
    """Costs of every convolution; about two scores for its scales and two for its biases."""
    probe = _Probe.start(px, values, classes, table, score)
    scales, biases = [], []
    scale, bias = FIRST_SCALE, FIRST_BIAS
    for k in range(len(table.convs)):
        cost, scale = _climb(probe.of_scales(k), scale, LEAST_SCALE, MOST_SCALE)
        scales.append(cost / scale**2)
        cost, bias = _climb(probe.of_biases(k), bias, LEAST_BIAS, MOST_BIAS)
        biases.append(cost / bias**2)
    return Costs(np.array(scales), np.array(biases))


def _climb(
    cost_of: Callable[[float], float], step: float, least: float, most: float
) -> tuple[float, float]:
    """(cost, step) of the first step from ``step`` on, by factors of 2, whose cost shows."""
    cost = cost_of(step)
    while cost > 4 * NATS and step > least:
        step /= 2
        cost = cost_of(step)
    while cost < NATS and step < most:
        step *= 2
        cost = cost_of(step)
    return max(cost, UNSEEN), step


@dataclass(frozen=True, eq=False)
class _Probe:
    """Codes in fine steps, and what disturbs them.

    Attributes:
        chances: float64 [N, classes] of the undisturbed values.
        floor: what fine steps cost already.
        output_step: float64 [convs].
        scale_noise, bias_noise: float64 [rows] in [-1/2, 1/2).
    """

    px: int
    codes: PatchCodes
    table: CodingTable
    score: Callable[[int, PatchValues], Scores]
    activation_scale: NDArray[np.float32]
    rows: CodedRows
    chances: NDArray[np.float64]
    floor: float
    output_step: NDArray[np.float64]
    scale_noise: NDArray[np.float64]
    bias_noise: NDArray[np.float64]

    @classmethod
    def start(
        cls,
        px: int,
        values: PatchValues,
        classes: int,
        table: CodingTable,
        score: Callable[[int, PatchValues], Scores],
    ) -> _Probe:
        count = len(table.convs)
        exponents = bias_exponents({px: values}, table, np.full(count, FINE_BIAS_LSB))
        steps = CodingSteps((FINE_SCALE,) * count, exponents)
        codes = encode_values({px: values}, classes, table, steps)
        rows = CodedRows.of(table, classes)
        generator = np.random.default_rng(SEED)
        scale_noise, bias_noise = generator.uniform(-0.5, 0.5, (2, len(rows.conv)))
        chances = softmax(score(px, values))
        return cls(
            px=px,
            codes=codes,
            table=table,
            score=score,
            activation_scale=values.activation_scale,
            rows=rows,
            chances=chances,
            floor=divergence(chances, score(px, decode_values(codes, table)[px])),
            output_step=output_steps({px: values}, table),
            scale_noise=scale_noise,
            bias_noise=bias_noise,
        )

    def of_scales(self, k: int) -> Callable[[float], float]:
        """Step -> cost of disturbing the scales of convolution ``k``."""
        noise = np.where(self.rows.conv == k, self.scale_noise, 0.0) / 2.0**FINE_SCALE
        return lambda step: self._cost(noise * step, np.zeros_like(noise))

    def of_biases(self, k: int) -> Callable[[float], float]:
        """Step -> cost of disturbing the biases of convolution ``k``."""
        unit = self.output_step[k] / 2.0 ** self.codes.steps.bias[k]
        noise = np.where(self.rows.conv == k, self.bias_noise, 0.0) * unit
        return lambda step: self._cost(np.zeros_like(noise), noise * step)

    def _cost(self, scales: NDArray[np.float64], biases: NDArray[np.float64]) -> float:
        """Of adding so many fine steps to the codes; never below 0."""
        fine, steps = self.codes.resolutions[self.px], self.codes.steps
        moved = fine.biases + np.rint(biases).astype(np.int64)
        inside = move_inside(
            fine.scales + np.rint(scales).astype(np.int64),
            moved,
            self.activation_scale,
            steps,
            self.rows,
        )
        disturbed = replace(fine, scales=inside, biases=moved)
        codes = replace(self.codes, resolutions={self.px: disturbed})
        decoded = decode_values(codes, self.table)[self.px]
        return max(divergence(self.chances, self.score(self.px, decoded)) - self.floor, 0.0)


def output_steps(values: Mapping[int, PatchValues], table: CodingTable) -> NDArray[np.float64]:
    """The least scale of each convolution's output over the resolutions, float64 [convs]."""
    sides = np.stack([one.activation_scale for one in values.values()]).min(axis=0)
    return np.asarray(sides[[conv.y_index for conv in table.convs]], np.float64)


def bias_exponents(
    values: Mapping[int, PatchValues], table: CodingTable, steps: NDArray[np.float64]
) -> tuple[int, ...]:
    """The powers of two that the format has nearest to ``steps``, which are in output steps."""
    nearest = np.rint(np.log2(steps * output_steps(values, table)))
    return tuple(int(one) for one in np.clip(nearest, MIN_BIAS_STEP, MAX_BIAS_STEP))


def softmax(scores: Scores) -> NDArray[np.float64]:
    """float64 [N, classes], each row's sum is 1."""
    wide = scores.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def divergence(chances: NDArray[np.float64], scores: Scores) -> float:
    """Mean over images of sum p log(p / q), nats: q of ``scores``."""
    other = softmax(scores)
    tiny = math.ulp(0.0)
    terms = chances * (np.log(np.maximum(chances, tiny)) - np.log(np.maximum(other, 1e-30)))
    return float(terms.sum(axis=1).mean())
