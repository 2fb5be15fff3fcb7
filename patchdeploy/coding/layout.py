"""Where a base's flat arrays keep the head, and what its rows hold that a task does not use.

In: a `QuantizedBase`. Out: its `PatchLayout`; the rows beyond a task's classes follow from
`masked_head_rows`, so no file stores them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from patchdeploy.documents import Field
from patchdeploy.errors import ConfigError
from patchdeploy.graph import tied_values
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.slots import PatchValues

MAX_LENGTH = 2**31 - 1
"""Of a flat array."""
MASKED_BIAS = -131072
"""int32 bias of a masked row: with `masked_scale` its output is far below -128."""


@dataclass(frozen=True)
class PatchLayout:
    """The lengths of a base's flat arrays, and where its head lies in them.

    Attributes:
        rows: output channels of all convolutions; the length of weight_scale and bias.
        elements: int8 values of all patch-owned kernels.
        sites: activation sites.
        head_row: first of the head's ``head_capacity`` rows.
        head_element: first of the head's kernel elements, ``head_row_elements`` a row.
        head_input, head_output: activation sites of what the head reads and writes.
    """

    rows: int
    elements: int
    sites: int
    head_row: int
    head_capacity: int
    head_element: int
    head_row_elements: int
    head_input: int
    head_output: int

    def __post_init__(self) -> None:
        values = [getattr(self, one.name) for one in fields(self)]
        head_rows_end = self.head_row + self.head_capacity
        head_end = self.head_element + self.head_capacity * self.head_row_elements
        if (
            any(type(value) is not int or value < 0 for value in values)
            or self.head_capacity < 1
            or head_rows_end > self.rows
            or head_end > self.elements
            or max(self.head_input, self.head_output) >= self.sites
        ):
            raise ConfigError(
                f"patch layout {self} does not hold together; the head lies inside rows, elements "
                "and sites; take it from the base with patch_layout"
            )


def read_layout(value: Field) -> PatchLayout:
    """The layout in a document.

    Raises:
        FileFormatError: naming the field that breaks a rule.
    """
    names = [one.name for one in fields(PatchLayout)]
    body = value.keys(names)
    lengths = {name: body[name].integer(0, MAX_LENGTH) for name in names}
    try:
        return PatchLayout(**lengths)
    except ConfigError as error:
        raise value.error(f"{value.name}: {error}") from error


def patch_layout(base: QuantizedBase) -> PatchLayout:
    """The layout that every patch of ``base`` follows."""
    layout = base.layout()
    ties = tied_values(base.graph)
    head = next(conv for conv in base.graph.convolutions() if conv.name == base.graph.head)
    return PatchLayout(
        rows=layout.rows,
        elements=layout.elements,
        sites=len(layout.sites),
        head_row=layout.row_start[head.name],
        head_capacity=base.head_capacity,
        head_element=layout.weight_start[head.name],
        head_row_elements=base.weights[head.name].size // base.head_capacity,
        head_input=layout.sites.index(ties[head.input]),
        head_output=layout.sites.index(ties[head.output]),
    )


def masked_scale(x_scale: np.float32, y_scale: np.float32) -> np.float32:
    """weight_scale of a masked head row: float32(float32(y_scale / x_scale) / 256).

    The requantisation multiplier x_scale * weight_scale / y_scale is then 2^-8 up to rounding,
    and MASKED_BIAS = -2^17 requantises to -512: it saturates to -128 in every arithmetic.
    """
    with np.errstate(over="ignore", under="ignore"):  # check_patch refuses what comes of it
        ratio = np.float32(np.float32(y_scale) / np.float32(x_scale))
        return np.float32(ratio / np.float32(256))


def masked_head_rows(values: PatchValues, classes: int, layout: PatchLayout) -> PatchValues:
    """``values`` with the head rows from ``classes`` on masked out; new arrays."""
    scale = masked_scale(
        values.activation_scale[layout.head_input], values.activation_scale[layout.head_output]
    )
    rows, elements = padding_rows(classes, layout)
    weight_scale, bias = values.weight_scale.copy(), values.bias.copy()
    weights = values.weights.copy()
    weight_scale[rows], bias[rows], weights[elements] = scale, MASKED_BIAS, 0
    return PatchValues(
        weight_scale, bias, values.activation_scale, values.activation_zero_point, weights
    )


def padding_rows(classes: int, layout: PatchLayout) -> tuple[slice, slice]:
    """The head's rows from ``classes`` on, and their kernel elements, in the flat arrays."""
    rows = slice(layout.head_row + classes, layout.head_row + layout.head_capacity)
    first = layout.head_element + classes * layout.head_row_elements
    end = layout.head_element + layout.head_capacity * layout.head_row_elements
    return rows, slice(first, end)
