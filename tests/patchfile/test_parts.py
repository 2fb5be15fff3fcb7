"""Integers as planes of bytes, and deflate: back to the same, and as short as can be."""

import zlib

import numpy as np
import pytest
import slow_decoder
from coding_cases import (
    zlib_stream,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile.parts import (
    LONG_BYTES,
    PARTS,
    deflate,
    pack_part,
    pack_planes,
    part_lengths,
    read_parts,
    read_planes,
)

CONTENTS = {name: bytes(range(index)) + b"end" for index, name in enumerate(PARTS)}
"""Too short to deflate, but for this one."""
CONTENTS["steps"] = bytes(50)
PAYLOAD = b"".join(pack_part(index, CONTENTS[name]) for index, name in enumerate(PARTS))
MOST = dict.fromkeys(PARTS, 1000)

# -- parts -----------------------------------------------------------------------------------------


def test_lengths_of_parts_are_those_of_the_payload():
    assert read_parts(PAYLOAD, MOST) == CONTENTS
    lengths = part_lengths(PAYLOAD)
    assert list(lengths) == list(PARTS)
    assert sum(lengths.values()) == len(PAYLOAD)
    place = 0
    for index, name in enumerate(PARTS):
        one = PAYLOAD[place : place + lengths[name]]
        assert one == pack_part(index, CONTENTS[name])
        place += lengths[name]


def break_at(place, byte):
    data = bytearray(PAYLOAD)
    data[place] = byte
    return bytes(data)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (PAYLOAD[:-1], "golden length is 11; it must be inside the payload"),
        (PAYLOAD[:-12], "golden is 9; it must be a part of 10 bytes and more"),
        (PAYLOAD + b"x", f"payload is {len(PAYLOAD) + 1}; it must be {len(PAYLOAD)} bytes, those"),
        (break_at(0, 1), "labels is (1, 0); it must be part 0 by method 0 or 1"),
        (break_at(1, 2), "labels is (0, 2); it must be part 0 by method 0 or 1"),
        (break_at(2, 9), "labels length is 3; it must be inside the payload"),
        (break_at(9, 255), "labels length is 4278190083; it must be inside the payload"),
    ],
)
def test_lengths_are_read_of_no_payload_that_its_reader_refuses(payload, message):
    for read in (part_lengths, lambda data: read_parts(data, MOST)):
        with pytest.raises(PatchRefusedError) as caught:
            read(payload)
        assert str(caught.value).startswith(f"patch refused (parts): {message}")


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


def test_a_long_part_is_searched_once_which_is_as_short_to_a_hundredth():
    zopfli = pytest.importorskip("zopfli.zopfli")
    draw = np.random.default_rng(0)
    content = draw.normal(0, 9, LONG_BYTES + 1).round().astype(np.int8).tobytes()
    stream, searched = deflate(content), zopfli.compress(content)[2:-4]
    assert len(searched) < len(stream)
    assert len(stream) < 1.01 * len(searched)  # noise of this spread: 0.1 % longer
    assert zlib.decompress(stream, -15) == content


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300) | st.integers(0, 3000).map(bytes))
def test_deflated_bytes_inflate_to_themselves_and_are_no_longer_than_zlibs(content):
    stream = deflate(content)
    assert slow_decoder.inflate(stream, len(content)) == content
    assert len(stream) <= len(zlib_stream(content))
