"""Integers as planes of bytes, and deflate: back to the same, and as short as can be."""

import numpy as np
import pytest
import slow_decoder
from coding_cases import (
    zlib_stream,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.patchfile.parts import (
    deflate,
    pack_planes,
    read_planes,
)

# -- planes ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(-(2**39), 2**39 - 1), max_size=20))
def test_planes_give_back_every_integer(numbers):
    array = np.array(numbers, np.int64)
    data = pack_planes(array)
    found, end = read_planes("scales", b"xx" + data, 2, len(numbers))
    assert found.dtype == np.int64
    assert found.tolist() == numbers
    assert end == 2 + len(data)
    assert slow_decoder.read_planes(data, len(numbers)) == numbers


@pytest.mark.parametrize(
    ("numbers", "data"),
    [
        ([], b"\0"),
        ([0, 0, 0], b"\0"),
        ([0, -1, 1, -2, 2], bytes([1, 0, 1, 2, 3, 4])),
        ([-128, 127], bytes([1, 255, 254])),
        ([128, 0], bytes([2, 0, 0, 1, 0])),
        ([-(2**39)], bytes([5, *[255] * 5])),
        ([2**39 - 1], bytes([5, 254, *[255] * 4])),
    ],
)
def test_planes_are_those_of_the_page_and_as_few_as_can_be(numbers, data):
    assert pack_planes(np.array(numbers, np.int64)) == data


@pytest.mark.parametrize("more", [1, 3, 4])
def test_planes_of_zeros_at_the_top_change_nothing(more):
    data = pack_planes(np.array([5, -7], np.int64))
    padded = bytes([data[0] + more]) + data[1:] + bytes(2 * more)
    assert read_planes("scales", padded, 0, 2)[0].tolist() == [5, -7]
    assert slow_decoder.read_planes(padded, 2) == [5, -7]


# -- deflate ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300) | st.integers(0, 3000).map(bytes))
def test_deflated_bytes_inflate_to_themselves_and_are_no_longer_than_zlibs(content):
    stream = deflate(content)
    assert slow_decoder.inflate(stream, len(content)) == content
    assert len(stream) <= len(zlib_stream(content))
