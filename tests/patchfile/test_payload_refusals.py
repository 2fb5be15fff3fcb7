"""Hostile payloads end in a typed error with a code, and a second reader gives the same code."""

import struct
import tracemalloc
import zlib

import pytest
from coding_cases import (
    assert_same,
    framed,
    label_bytes,
    make_header,
    part,
    payload_of,
    planes,
    zeros,
    zlib_stream,
)
from payload_cases import END, MOST, NUMBERS, TABLE, decode, refusal, with_part

from patchdeploy.errors import (
    PatchRefusedError,
)
from patchdeploy.patchfile.parts import (
    PARTS,
    read_parts,
)
from patchdeploy.patchfile.payload import all_sites, decode_payload

# -- refusals, part by part ------------------------------------------------------------------------


def test_the_parts_of_these_tests_are_good_until_one_is_changed():
    found = decode(payload_of(zeros()))
    assert found.classes == ("0", "1", "2")
    assert found.golden is None
    assert_same(decode(payload_of(zeros(), 1)).values[24], found.values[24])


def test_sites_must_be_one_run_of_every_slot():
    good = payload_of(zeros())
    assert all_sites(TABLE) == ((0, 12),)
    for sites in (((0, 11),), ((0, 13),), ((1, 11),), ((0, 5), (6, 6))):
        shown = [list(run) for run in sites]
        assert str(refusal(good, sites=sites)) == (
            f"patch refused (sites): sites is {shown}; it must be [[0,12]]: every slot of this "
            f"base{END}"
        )
    many = tuple((2 * k, 1) for k in range(500))
    assert refusal(good, sites=many).got == "[[0, 1], [2, 1], [4, 1], [6, 1]]"


def test_more_classes_than_the_head_has_rows_are_refused():
    contents = zeros(4)
    assert decode(payload_of(contents), 4).values[24].weight_scale.shape == (12,)
    for classes in (5, 65_536):
        contents["labels"] = label_bytes(*(b"%d" % k for k in range(classes)))
        error = refusal(payload_of(contents), classes)
        assert str(error) == (
            f"patch refused (sites): classes is {classes}; it must be at most 4, the head's rows "
            f"in this base{END}"
        )


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_not_there_is_refused(name):
    at = sum(len(part(k, zeros()[each])) for k, each in enumerate(PARTS[: NUMBERS[name]]))
    for length in range(10):
        assert str(refusal(payload_of(zeros())[: at + length])) == (
            f"patch refused (parts): {name} is {length}; it must be a part of 10 bytes and "
            f"more{END}"
        )


@pytest.mark.parametrize("name", PARTS)
def test_a_part_with_another_number_or_an_unknown_method_is_refused(name):
    number, content = NUMBERS[name], zeros()[name]
    for wrong, method in ((number + 1, 0), (255, 1), (number, 2), (number, 255)):
        payload = payload_of(zeros())
        old = part(number, content)
        payload = payload.replace(old, framed(wrong, method, len(content), content), 1)
        error = refusal(payload)
        assert str(error) == (
            f"patch refused (parts): {name} is ({wrong}, {method}); it must be part {number} by "
            f"method 0 or 1{END}"
        )


def test_a_part_twice_is_refused():
    head = part(7, zeros()["head"])
    payload = payload_of(zeros()).replace(head, head + head)
    assert refusal(payload).got == "(7, 0)"


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_says_more_than_it_may_hold_is_not_inflated(name):
    content = bytes(MOST[name] + 1)
    for method in (0, 1):
        assert str(refusal(with_part(name, content, method))) == (
            f"patch refused (inflate): {name} length is {MOST[name] + 1}; it must be at most "
            f"{MOST[name]}{END}"
        )
    assert refusal(with_part(name, b"", length=2**32 - 1)).got == str(2**32 - 1)
    fits = with_part(name, bytes(MOST[name]), 1)
    assert len(read_parts(fits, MOST)[name]) == MOST[name]


def test_a_stored_part_of_another_length_than_it_says_is_refused():
    payload = with_part("head", bytes(8), length=9)
    assert str(refusal(payload)) == (
        f"patch refused (parts): head length is 8; it must be inside the payload{END}"
    )


def test_a_part_that_reaches_beyond_the_payload_is_refused():
    payload = bytearray(payload_of(zeros()))
    struct.pack_into("<I", payload, len(payload) - 6, 3)  # the last part, of 2 bytes
    assert str(refusal(bytes(payload))) == (
        f"patch refused (parts): golden length is 3; it must be inside the payload{END}"
    )


def test_bytes_after_the_last_part_are_refused():
    payload = payload_of(zeros())
    assert str(refusal(payload + b"\0")) == (
        f"patch refused (parts): payload is {len(payload) + 1}; it must be {len(payload)} bytes, "
        f"those of its parts{END}"
    )


STREAM = zlib_stream(bytes(9))
BROKEN = {
    "9 bytes": STREAM + b"\0",  # a byte after its end
    "9 bytes and more": zlib_stream(bytes(9))[:-1] or b"",
    "0 bytes and more": b"",
    "10 bytes and more": zlib_stream(bytes(1000)),
    "8 bytes": zlib_stream(bytes(8)),
    "10 bytes": zlib_stream(bytes(10)),
}


@pytest.mark.parametrize("found", BROKEN)
def test_a_stream_that_gives_another_length_or_does_not_end_with_its_part_is_refused(found):
    body = BROKEN[found]
    if found == "9 bytes and more":  # all bytes, but the end of the stream is missing
        body = struct.pack("<BHH", 0, 9, 9 ^ 0xFFFF) + bytes(9)
    payload = payload_of(zeros()).replace(part(7, bytes(9)), framed(7, 1, 9, body))
    assert str(refusal(payload)) == (
        f"patch refused (inflate): head is {found}; it must be 9 bytes from the whole part{END}"
    )


def test_bytes_that_are_no_stream_are_refused():
    payload = payload_of(zeros()).replace(part(7, bytes(9)), framed(7, 1, 9, b"\xff" * 9))
    assert str(refusal(payload)) == (
        "patch refused (inflate): head is Error -3 while decompressing data: invalid block type; "
        f"it must be a raw deflate stream{END}"
    )


@pytest.mark.parametrize("said", [9, 2**18])
def test_a_bomb_is_stopped_before_it_takes_memory(said):
    """1 GiB of zeros in 1 MB: whatever it says, no more is inflated than the part may hold."""
    name = "head" if said == 9 else "notes"
    bomb = repeated_zeros(2**30)
    payload = payload_of(zeros()).replace(
        part(NUMBERS[name], zeros()[name]), framed(NUMBERS[name], 1, said, bomb)
    )
    header = make_header(payload, TABLE, 3, (24,))
    tracemalloc.start()
    try:
        with pytest.raises(PatchRefusedError) as caught:
            decode_payload(payload, header, TABLE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "inflate"
    # The part's bytes are cut out of the payload and what was not inflated is copied once more; the
    # content, 256 KiB at most, stands in zlib's blocks and once more joined; 64 KiB for the rest.
    assert peak < 2 * len(bomb) + 2 * said + 2**16


def repeated_zeros(count: int) -> bytes:
    """A raw deflate stream of ``count`` zeros, a multiple of 2^20, made from one block."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return block * (count // 2**20) + zlib_stream(b"")


# -- refusals, content by content ------------------------------------------------------------------

TWO = label_bytes(b"0", b"1")
BAD_LABELS = {
    "0, 0 of them different": b"",
    "2, 2 of them different": TWO,
    "3, 2 of them different": label_bytes(b"0", b"1", b"0"),
    "4, 4 of them different": label_bytes(b"0", b"1", b"2", b"3"),
    "3, 3 of them different": label_bytes(b"0", b"1", b"2") + b"\0",
    "4, 3 of them different": label_bytes(b"0", b"1", b"", b"0") + bytes(2**20 - 20),
}


@pytest.mark.parametrize("found", BAD_LABELS)
def test_labels_that_are_not_so_many_different_ones_are_refused(found):
    assert str(refusal(with_part("labels", BAD_LABELS[found]))) == (
        f"patch refused (parts): labels is {found}; it must be 3 labels, each once{END}"
    )


def test_a_label_that_is_cut_or_no_utf_8_is_refused():
    cut = refusal(with_part("labels", TWO + struct.pack("<H", 3) + b"ab"))
    assert cut.got == "3, 3 of them different"
    broken = refusal(with_part("labels", TWO + label_bytes(b"\xff")))
    assert str(broken) == (
        "patch refused (parts): labels is 'utf-8' codec can't decode byte 0xff in position 0: "
        f"invalid start byte; it must be UTF-8{END}"
    )


BAD_NOTES = {
    b"": ("JSON", "Expecting value: line 1 column 1 (char 0)"),
    b"{": ("JSON", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    b"{}{}": ("JSON", "Extra data: line 1 column 3 (char 2)"),
    b'{"a":NaN}': ("JSON", "NaN is no finite number"),
    b'{"a":-Infinity}': ("JSON", "-Infinity is no finite number"),
    b'{"a":1e999}': ("JSON", "1e999 is no finite number"),
    b'{"a":' + b"9" * 400 + b"}": ("JSON", "9" * 20 + " is no finite number"),
    b"[]": ("a JSON object", "list"),
    b"3": ("a JSON object", "int"),
    b'{"a":' + b"[" * 32 + b"]" * 32 + b"}": ("at most 32 levels deep", "33"),
    b"\xff{}": (
        "UTF-8",
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ),
}


@pytest.mark.parametrize("content", BAD_NOTES, ids=lambda one: repr(one[:20]))
def test_notes_that_are_no_json_object_are_refused(content):
    expected, got = BAD_NOTES[content]
    assert str(refusal(with_part("notes", content))) == (
        f"patch refused (parts): notes is {got}; it must be {expected}{END}"
    )


def test_notes_that_are_far_too_deep_are_refused():
    error = refusal(with_part("notes", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))
    assert (error.code, error.expected) == ("parts", "JSON")
    assert error.got.startswith("maximum recursion depth exceeded")


@pytest.mark.parametrize(
    ("name", "content", "expected", "got"),
    [
        ("steps", bytes(7), "8 bytes over this base", "7"),
        ("kernels", bytes(32), "33 bytes over this base", "32"),
        ("head", bytes(8), "9 bytes over this base", "8"),
        ("head", b"", "9 bytes over this base", "0"),
        ("activations", bytes(4), "at least 5 bytes over this base", "4"),
        ("activations", bytes(7), "6 bytes over this base", "7"),
        ("scales", bytes(2), "1 bytes over this base", "2"),
        ("biases", b"\1" + bytes(12), "12 bytes over this base", "13"),
    ],
)
def test_a_part_of_another_length_than_the_base_gives_it_is_refused(name, content, expected, got):
    assert str(refusal(with_part(name, content))) == (
        f"patch refused (parts): {name} length is {got}; it must be {expected}{END}"
    )


@pytest.mark.parametrize(
    ("name", "content", "count", "got"),
    [
        ("scales", b"", 11, "6 in 0 bytes"),
        ("biases", b"\1" + bytes(10), 11, "1 in 11 bytes"),
        ("scales", b"\6" + bytes(50), 11, "6 in 51 bytes"),
        ("scales", b"\xff" + bytes(50), 11, "255 in 51 bytes"),
        ("activations", bytes(5), 5, "6 in 0 bytes"),
        ("activations", bytes(5) + b"\2" + bytes(9), 5, "2 in 10 bytes"),
    ],
)
def test_planes_that_are_cut_or_too_many_are_refused(name, content, count, got):
    assert str(refusal(with_part(name, content))) == (
        f"patch refused (parts): {name} is {got}; it must be 0 to 5 planes of {count} bytes{END}"
    )


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "9 in 0 bytes"),
        (b"\0", "0 in 1 bytes"),
        (b"\0\1", "0 in 2 bytes"),
        (b"\0\0\0", "0 in 3 bytes"),
        (b"\1\0" + bytes(191), "1 in 193 bytes"),
        (b"\1\0" + bytes(192), "1 in 194 bytes"),
        (b"\1\0" + bytes(192 + 5), "1 in 199 bytes"),
        (b"\1\0" + bytes(192 + 7), "1 in 201 bytes"),
        (b"\x09\0" + bytes(8 * 198), "9 in 1586 bytes"),
    ],
)
def test_a_self_test_that_does_not_fit_is_refused(content, got):
    assert str(refusal(with_part("golden", content))) == (
        f"patch refused (parts): golden is {got}; it must be 0 to 8 thumbnails with a score for "
        f"each runtime, resolution and class{END}"
    )


def test_a_self_test_of_eight_images_is_taken():
    content = b"\x08\xff" + bytes(8 * 192) + bytes(range(48))
    found = decode(with_part("golden", content)).golden
    assert found.tolerance_lsb == 255
    assert found.scores["onnx"][24].tolist()[1] == [3, 4, 5]
    assert found.scores["tflite"][24].tolist()[0] == [24, 25, 26]


def test_steps_that_are_none_are_refused_by_value():
    for steps in (b"\x0d\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\x81"):
        assert refusal(with_part("steps", steps)).code == "values"


def test_parts_are_checked_before_values():
    """A file that breaks both gets the code of the earlier check, in every language."""
    contents = zeros()
    contents["activations"] = bytes(5) + planes(-0x3D000000, 0, 0, 0, 0)
    assert refusal(payload_of(contents)).code == "values"
    contents["steps"] = b"\x0d" * 8
    assert refusal(payload_of(contents)).field == "steps"
    for name, bad in (("labels", TWO), ("notes", b"[]"), ("golden", b"\0\1"), ("head", b"")):
        assert refusal(payload_of({**contents, name: bad})).code == "parts"
    error = refusal(payload_of({**contents, "labels": TWO})[:-1])
    assert (error.code, error.field) == ("parts", "golden length")
