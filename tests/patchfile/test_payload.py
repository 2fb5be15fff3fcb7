"""Payloads: what goes in comes out, of real and of any codes; and what no file can hold."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import slow_decoder
from coding_cases import (
    FIELDS,
    SIDES,
    assert_same,
    deflated,
    header_fields,
    make_header,
    make_patch,
    payload_of,
    real_case,
    tiny_table,
    tiny_values,
    uniform_steps,
    with_classes,
    zeros,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from payload_cases import END, NUMBERS, SLOW, TABLE, decode

from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.coding.grid import exact_steps
from patchdeploy.errors import (
    ConfigError,
    HeadCapacityError,
    PatchFileError,
    PatchRefusedError,
    UnknownResolutionError,
)
from patchdeploy.patchfile.golden import Golden
from patchdeploy.patchfile.parts import (
    PARTS,
    deflate,
    pack_planes,
    part_lengths,
)
from patchdeploy.patchfile.payload import decode_payload, encode_payload


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
