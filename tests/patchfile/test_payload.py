"""Payloads: what goes in comes out, hostile bytes end in a code, and the page is what is built."""

import json
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import slow_decoder
from coding_cases import (
    FIELDS,
    SIDES,
    assert_same,
    deflated,
    framed,
    header_fields,
    label_bytes,
    make_header,
    make_patch,
    part,
    payload_of,
    planes,
    real_case,
    tiny_table,
    tiny_values,
    uniform_steps,
    with_classes,
    zeros,
    zlib_stream,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.errors import (
    ConfigError,
    HeadCapacityError,
    PatchFileError,
    PatchRefusedError,
    UnknownResolutionError,
)
from patchdeploy.patchfile_coding import exact_steps
from patchdeploy.patchfile_golden import Golden
from patchdeploy.patchfile_parts import (
    PARTS,
    deflate,
    pack_planes,
    part_lengths,
    read_parts,
    read_planes,
)
from patchdeploy.patchfile_payload import all_sites, decode_payload, encode_payload
from patchdeploy.patchfile_steps import fine_steps

END = "; pack the task again with its base"
TABLE = tiny_table()
NUMBERS = {name: k for k, name in enumerate(PARTS)}
MOST = {
    "labels": 2**20 + 6,
    "notes": 2**18,
    "steps": 8,
    "activations": 1 + 5 * 6,
    "scales": 1 + 11 * 5,
    "biases": 1 + 11 * 5,
    "kernels": 33,
    "head": 9,
    "golden": 2 + 8 * (192 + 6),
}
"""Over `tiny_table` with 3 classes, 1 resolution, 2 runtimes: by the page."""


def golden_of(sides, classes, runtimes=("onnx", "tflite"), images=2) -> Golden:
    rng = np.random.default_rng(4)
    return Golden(
        rng.integers(0, 256, (images, 8, 8, 3), np.uint8),
        {
            name: {px: rng.integers(-128, 128, (images, classes), np.int8) for px in sides}
            for name in runtimes
        },
        3,
    )


def tiny_task(classes: int = 3, sides=(24, 16)) -> dict:
    return {px: tiny_values(classes, px) for px in sides}


def decode(payload: bytes, classes: int = 3, sides=(24,), table=TABLE, **changes):
    return decode_payload(payload, make_header(payload, table, classes, sides, **changes), table)


def refusal(payload: bytes, classes: int = 3, sides=(24,), **changes) -> PatchRefusedError:
    with pytest.raises(PatchRefusedError) as caught:
        decode(payload, classes, sides, **changes)
    header = make_header(payload, TABLE, classes, sides, **changes)
    with pytest.raises(slow_decoder.Refused) as slow:
        slow_decoder.decode(payload, header_fields(header), SLOW)
    assert str(slow.value) == caught.value.code
    return caught.value


SLOW = slow_decoder.read_table(TABLE.encoded)


def with_part(name: str, content: bytes, method: int = 0, **framing) -> bytes:
    """Good parts but one."""
    contents = zeros()
    parts = [part(k, contents[each]) for k, each in enumerate(PARTS)]
    parts[NUMBERS[name]] = part(NUMBERS[name], content, method, **framing)
    return b"".join(parts)


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depthwise", "count", "classes"),
    [("conv_stack", False, 1, 7), ("conv_stack", True, 3, 2), ("grouped_dilated", True, 2, 7)],
)
def test_a_real_task_comes_back_whole_and_exact_values_bit_for_bit(name, depthwise, count, classes):
    _, table, values = real_case(name, depthwise)
    sides = SIDES[:count]
    task = with_classes({px: values[px] for px in sides}, classes, table)
    patch = make_patch(task, classes, table, golden=golden_of(sides, classes))
    coded = encode_payload(patch, table, exact_steps(table), ("onnx", "tflite"))
    found = decode(coded.payload, classes, sides, table)
    assert (found.task, found.classes, found.metrics) == (patch.task, patch.classes, patch.metrics)
    assert found.base_sha256 == table.sha256
    assert tuple(found.values) == sides
    for px in sides:
        assert_same(found.values[px], task[px])
        assert_same(coded.patch.values[px], task[px])
        for runtime in ("onnx", "tflite"):
            expected = patch.golden.scores[runtime][px]
            np.testing.assert_array_equal(found.golden.scores[runtime][px], expected)
    np.testing.assert_array_equal(found.golden.thumbnails, patch.golden.thumbnails)
    assert found.golden.tolerance_lsb == 3


@pytest.mark.parametrize(
    ("name", "depthwise"),
    [("conv_stack", True), ("residual", False), ("squeeze_excitation", False)],
)
def test_a_reader_written_from_the_page_alone_decodes_the_same(name, depthwise):
    _, table, values = real_case(name, depthwise)
    patch = make_patch(with_classes(values, 6, table), 6, table, golden=golden_of(SIDES, 6))
    coded = encode_payload(patch, table, fine_steps(values, table), ("onnx", "tflite"))
    header = make_header(coded.payload, table, 6, SIDES)
    found = decode_payload(coded.payload, header, table)
    slow_table = slow_decoder.read_table(table.encoded)
    slow = slow_decoder.decode(coded.payload, header_fields(header), slow_table)
    assert_matches(found, slow)
    for px in SIDES:
        assert_same(found.values[px], coded.patch.values[px])
    assert found.values[24].bias.tobytes() != values[24].bias.tobytes()


def assert_matches(found, slow) -> None:
    assert list(found.classes) == slow.labels
    assert found.metrics == slow.notes
    assert list(found.values) == list(slow.values)
    for px, values in found.values.items():
        for name in FIELDS:
            assert getattr(values, name).tolist() == getattr(slow.values[px], name), (px, name)
    if found.golden is None:
        assert (slow.tolerance, slow.thumbnails) == (0, b"")
        return
    assert found.golden.tolerance_lsb == slow.tolerance
    assert found.golden.thumbnails.tobytes() == slow.thumbnails
    for name, by_side in found.golden.scores.items():
        for px, scores in by_side.items():
            assert scores.tolist() == slow.scores[name][px]


@st.composite
def contents_of_any_codes(draw) -> tuple[dict[str, bytes], int, tuple[int, ...]]:
    """Parts whose codes are near good ones, or anywhere, so that each rule of a value is met."""
    classes, count = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    contents, rows = zeros(classes, count), 8 + classes
    t = draw(st.lists(st.sampled_from([0, 0, 1, 5, 12, 255, 13]), min_size=4, max_size=4))
    e = draw(st.lists(st.sampled_from([-8, -8, -3, 0, 30, 127, -128]), min_size=4, max_size=4))
    far = draw(st.sampled_from([1, 30, 1000, 2**20, 2**39 - 1]))
    contents["steps"] = bytes(t) + struct.pack("4b", *e)
    for name, most in (("scales", far), ("biases", max(far, 1000))):
        contents[name] = pack_planes(rng.integers(-most, most + 1, count * rows))
    width = draw(st.sampled_from([0, 2**20, 2**28, 2**39 - 1]))
    points = rng.integers(0, 256, count * 5, np.uint8).tobytes()
    contents["activations"] = points + pack_planes(rng.integers(-width, width + 1, count * 5))
    contents["kernels"] = rng.integers(0, 4, count * 33, np.uint8).tobytes()
    contents["head"] = rng.integers(-127, 128, count * 3 * classes, np.int8).tobytes()
    return contents, classes, (24, 16)[:count]


@settings(deadline=None, max_examples=200)
@given(contents_of_any_codes())
def test_any_codes_give_the_slow_decoders_values_or_its_code(drawn):
    contents, classes, sides = drawn
    payload = payload_of(contents)
    header = make_header(payload, TABLE, classes, sides)
    try:
        slow = slow_decoder.decode(payload, header_fields(header), SLOW)
    except slow_decoder.Refused as error:
        with pytest.raises(PatchRefusedError) as caught:
            decode_payload(payload, header, TABLE)
        assert caught.value.code == str(error)  # noqa: PT017
    else:
        assert_matches(decode_payload(payload, header, TABLE), slow)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_payloads_get_the_same_code_from_both_readers(data):
    payload = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload) - 1))
        kind = data.draw(st.integers(0, 2))
        if kind == 0:
            payload[place] = data.draw(st.integers(0, 255))
        elif kind == 1:
            del payload[place : place + data.draw(st.integers(1, 20))]
        else:
            payload[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    header = make_header(bytes(payload), TABLE, 3, (24, 16))
    try:
        slow = slow_decoder.decode(bytes(payload), header_fields(header), SLOW)
    except slow_decoder.Refused as error:
        with pytest.raises(PatchRefusedError) as caught:
            decode_payload(bytes(payload), header, TABLE)
        assert caught.value.code == str(error)  # noqa: PT017
    else:
        assert_matches(decode_payload(bytes(payload), header, TABLE), slow)


GOOD = encode_payload(
    make_patch(tiny_task(), 3, TABLE, golden=golden_of((24, 16), 3)),
    TABLE,
    uniform_steps(TABLE, 4, -8),
    ("onnx", "tflite"),
).payload


def test_the_largest_resolution_comes_first_whatever_the_order_given():
    task = tiny_task(sides=(16, 24, 18))
    coded = encode_payload(make_patch(task, 3, TABLE), TABLE, uniform_steps(TABLE, 4, -8))
    again = encode_payload(
        make_patch(dict(reversed(task.items())), 3, TABLE), TABLE, uniform_steps(TABLE, 4, -8)
    )
    assert coded.payload == again.payload
    assert list(coded.patch.values) == [24, 18, 16]


def test_the_golden_scores_are_made_from_the_decoded_values():
    seen = []

    def make_golden(patch):
        seen.append(patch)
        return golden_of((24, 16), 3, ("onnx",))

    patch = make_patch(tiny_task(), 3, TABLE)
    coded = encode_payload(patch, TABLE, uniform_steps(TABLE, 8, -4), ("onnx",), make_golden)
    found = decode(coded.payload, 3, (24, 16), runtimes=("onnx",))
    for px in (24, 16):
        assert_same(seen[0].values[px], found.values[px])
        assert seen[0].values[px].bias.tobytes() != patch.values[px].bias.tobytes()
    assert found.golden is not None


def test_one_resolution_alone_is_the_one_among_all():
    header = make_header(GOOD, TABLE, 3, (24, 16))
    every = decode_payload(GOOD, header, TABLE).values
    for px in (24, 16):
        alone = decode_payload(GOOD, header, TABLE, px).values
        assert list(alone) == [px]
        assert_same(alone[px], every[px])
    with pytest.raises(UnknownResolutionError) as caught:
        decode_payload(GOOD, header, TABLE, 20)
    assert str(caught.value) == (
        "patch 'task' holds no 20 px; it has 16, 24; choose one of them or export the task again"
    )


def test_the_bytes_of_each_part_are_counted():
    coded = encode_payload(make_patch(tiny_task(), 3, TABLE), TABLE, exact_steps(TABLE))
    assert tuple(coded.part_bytes) == PARTS
    assert sum(coded.part_bytes.values()) == len(coded.payload)
    assert part_lengths(coded.payload) == coded.part_bytes
    assert part_lengths(memoryview(coded.payload)) == coded.part_bytes


@pytest.mark.parametrize("text", ["", "Straße, 花, \N{GRINNING FACE}", "a\nb\0c", "é" * 1000])
def test_a_label_may_be_any_text(text):
    patch = make_patch(tiny_task(), 3, TABLE, classes=("one", text, "three"))
    coded = encode_payload(patch, TABLE, exact_steps(TABLE))
    assert decode(coded.payload, 3, (24, 16)).classes == ("one", text, "three")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text(max_size=5)
            # A decimal of 17 digits gives every float64 back.
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
            max_leaves=5,
        ),
        max_size=3,
    )
)
def test_notes_come_back(metrics):
    patch = make_patch(tiny_task(sides=(24,)), 3, TABLE, metrics=metrics)
    coded = encode_payload(patch, TABLE, exact_steps(TABLE))
    assert decode(coded.payload).metrics == metrics


# -- what no file can hold -------------------------------------------------------------------------


def cannot(error_type=ConfigError, **changes) -> str:
    steps = changes.pop("steps", exact_steps(TABLE))
    with pytest.raises(error_type) as caught:
        encode_payload(make_patch(tiny_task(), 3, TABLE, **changes), TABLE, steps)
    return str(caught.value)


def test_labels_that_are_too_long_are_refused_when_packed():
    rule = "all together take at most 1048576, one at most 65535; shorten them"
    assert cannot(classes=("a", "b", "c" * 65_536)) == f"labels of 65538 bytes; {rule}"
    most = ("a", "b", "c" * 65_535)
    patch = make_patch(tiny_task(), 3, TABLE, classes=most)
    coded = encode_payload(patch, TABLE, exact_steps(TABLE))
    assert decode(coded.payload, 3, (24, 16)).classes == most


def test_many_labels_that_are_too_long_together_are_refused_when_packed():
    table, classes = tiny_table(20), 17
    labels = tuple(f"{k:02}" + "x" * 65_000 for k in range(classes))
    values = {24: tiny_values(classes, capacity=20)}
    with pytest.raises(ConfigError) as caught:
        encode_payload(
            make_patch(values, classes, table, classes=labels), table, exact_steps(table)
        )
    assert str(caught.value) == (
        "labels of 1105034 bytes; all together take at most 1048576, one at most 65535; shorten "
        "them"
    )


def test_a_label_that_is_no_unicode_text_is_refused_when_packed():
    assert cannot(classes=("a", "b", "c\udc80")) == (
        r"label 'c\udc80' is not Unicode text; a file holds UTF-8; correct the label"
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "Out of range float values are not JSON compliant"),
        (b"bytes", "Object of type bytes is not JSON serializable"),
    ],
)
def test_metrics_that_are_not_json_are_refused_when_packed(value, reason):
    message = cannot(metrics={"a": value})
    assert message.startswith(f"metrics of task 'task' are not JSON ({reason}")
    assert message.endswith(
        "); they may hold finite numbers, text, lists and mappings; convert or remove the value"
    )


def nested(levels: int) -> dict:
    document: object = 1
    for _ in range(levels - 1):
        document = [document]
    return {"a": document}


def test_metrics_that_are_too_long_or_too_deep_are_refused_when_packed():
    rule = "a file holds at most 262144 on 32; remove some"
    assert cannot(metrics={"a": "b" * 2**18}) == (
        f"metrics of task 'task' take 262152 bytes on 1 levels; {rule}"
    )
    assert (
        cannot(metrics=nested(33)) == f"metrics of task 'task' take 71 bytes on 33 levels; {rule}"
    )
    assert "are not JSON" in cannot(metrics=nested(100_000))
    patch = make_patch(tiny_task(), 3, TABLE, metrics=nested(32))
    coded = encode_payload(patch, TABLE, exact_steps(TABLE))
    assert decode(coded.payload, 3, (24, 16)).metrics == nested(32)


def test_a_patch_or_steps_that_do_not_fit_are_refused_when_packed():
    bad = replace(tiny_values(), weights=np.full(45, -128, np.int8))
    assert "weights[0] is -128" in cannot(PatchFileError, values={24: bad})
    assert "exported head has 4 rows" in cannot(HeadCapacityError, classes=tuple("abcde"))
    assert cannot(PatchRefusedError, steps=uniform_steps(TABLE, 13, 0)) == (
        f"patch refused (values): steps is (0, 13); it must be 0 to 12 or 255{END}"
    )


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


def test_a_part_is_stored_where_deflate_would_not_make_it_shorter():
    random = np.random.default_rng(1).bytes(9)
    task = tiny_task(sides=(24,))
    coded = encode_payload(make_patch(task, 3, TABLE), TABLE, exact_steps(TABLE))
    at, methods = 0, {}
    for name, length in coded.part_bytes.items():
        methods[name] = coded.payload[at + 1]
        assert coded.payload[at] == NUMBERS[name]
        stored, body = struct.unpack_from("<II", coded.payload, at + 2)
        assert body + 10 == length
        assert (body < stored) == (methods[name] == 1)
        at += length
    assert set(methods.values()) == {0, 1}
    assert len(deflate(random)) > len(random)
    assert len(deflated(bytes(70_000))) == 70_010


def test_the_same_patch_gives_the_same_bytes():
    patch = make_patch(tiny_task(), 3, TABLE, metrics={"b": 1, "a": [json.loads("0.1")]})
    one = encode_payload(patch, TABLE, exact_steps(TABLE)).payload
    assert encode_payload(patch, TABLE, exact_steps(TABLE)).payload == one
    swapped = replace(patch, metrics=dict(reversed(patch.metrics.items())))
    assert encode_payload(swapped, TABLE, exact_steps(TABLE)).payload == one
