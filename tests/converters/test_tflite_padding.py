"""Padding schemes: which windows TFLite reads must be the windows that the graph means."""

from __future__ import annotations

import pytest
from graph_cases import GRAPH_CASES
from hypothesis import assume, given
from hypothesis import strategies as st
from patchdeploy_tflite.padding import Axis, choose_padding, never_negative

from patchdeploy.graph import window_output


def _windows(scheme: str, size: int, explicit: tuple[int, int], axis: Axis) -> list[list[int]]:
    """Input positions that each output reads, as schema.fbs and TFLite's ComputePadding say."""
    padded = size + sum(explicit)
    if scheme == "SAME":
        count = -(-padded // axis.stride)
        before = max((count - 1) * axis.stride + axis.span - padded, 0) // 2
    else:
        count, before = (padded - axis.span) // axis.stride + 1, 0
    first = -before - explicit[0]
    return [
        [p for p in range(start, start + axis.span) if 0 <= p < size]
        for start in range(first, first + count * axis.stride, axis.stride)
    ]


def _axis(size: int, kernel: int, stride: int, dilation: int, before: int, output: int) -> Axis:
    return Axis(size, output, dilation * (kernel - 1) + 1, stride, before)


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    ceil_mode=st.booleans(),
)
def test_the_windows_read_are_those_of_the_graph(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int, ceil_mode: bool
) -> None:
    output = window_output(size, kernel, stride, before, after, dilation, ceil_mode)
    assume(output >= 1)
    axis = _axis(size, kernel, stride, dilation, before, output)
    chosen = choose_padding(axis, axis)
    starts = [k * stride - before for k in range(output)]
    meant = [[p for p in range(s, s + axis.span) if 0 <= p < size] for s in starts]
    assert _windows(chosen.scheme, size, chosen.explicit[:2], axis) == meant
    assert chosen.explicit[:2] == chosen.explicit[2:]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "output", "scheme", "needs_pad"),
    [
        (224, 3, 1, 1, 224, "SAME", False),
        (225, 3, 2, 1, 113, "SAME", False),
        (224, 3, 2, 0, 112, "SAME", False),  # TensorFlow's (0, 1)
        (224, 3, 2, 1, 112, "VALID", True),  # PyTorch's (1, 1): SAME would pad the end
        (224, 1, 2, 0, 112, "VALID", False),
        (7, 7, 1, 0, 1, "VALID", False),
        (224, 1, 1, 1, 226, "VALID", True),
    ],
)
def test_a_pad_is_there_only_where_no_scheme_fits(
    size: int, kernel: int, stride: int, before: int, output: int, scheme: str, needs_pad: bool
) -> None:
    axis = _axis(size, kernel, stride, 1, before, output)
    chosen = choose_padding(axis, axis)
    assert (chosen.scheme, chosen.needs_pad) == (scheme, needs_pad)


def test_a_scheme_must_fit_both_axes() -> None:
    same = _axis(8, 3, 1, 1, 1, 8)
    valid = _axis(8, 1, 1, 1, 0, 8)
    odd = _axis(8, 3, 2, 1, 1, 4)
    assert choose_padding(same, valid).scheme == "SAME"
    assert choose_padding(same, odd).explicit == (1, 1, 1, 0)


def test_only_values_that_end_in_a_relu_are_never_negative() -> None:
    assert never_negative(GRAPH_CASES["branches"]()) == {
        "stem:out",
        "pool1:out",
        "left:out",
        "right:out",
        "after:out",
        "pool3:out",
    }
    assert "add_plain:out" not in never_negative(GRAPH_CASES["residual"]())
    assert "fc2:out" not in never_negative(GRAPH_CASES["squeeze_excitation"]())
