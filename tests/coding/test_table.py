"""base.coding: what is written is what is read, and nothing that does not fit is taken."""

import json
from dataclasses import asdict, astuple, replace

import numpy as np
import pytest
import slow_decoder
from coding_cases import real_case, tiny_table
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import FileFormatError
from patchdeploy.storage import sha256_hex

TINY = np.finfo(np.float32).tiny
ARRAYS = ("scale", "beta", "slope", "kernels")


def document_of(table: CodingTable) -> dict:
    return {
        "format": 1,
        "reference_sha256": table.reference_sha256,
        "layout": asdict(table.layout),
        "output_index": table.output_index,
        "conv_fields": ["name", "rows", "taps", "x_index", "y_index", "owned"],
        "convs": [list(astuple(conv)) for conv in table.convs],
    }


def forged(document: object = None, arrays: dict | None = None, key: str = "patchdeploy") -> bytes:
    """A file past every check of ours."""
    table = tiny_table()
    document = document_of(table) if document is None else document
    own = {name: getattr(table, name) for name in ARRAYS}
    text = document if isinstance(document, str) else json.dumps(document)
    return save({**own, **(arrays or {})}, {key: text})


def message_of(data: bytes) -> str:
    with pytest.raises(FileFormatError) as caught:
        CodingTable.from_bytes(data)
    return str(caught.value)


def with_convs(change) -> dict:
    document = document_of(tiny_table())
    change(document["convs"])
    return document


@pytest.mark.parametrize("name", ["conv_stack", "residual", "grouped_dilated"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_table_survives_its_file(name, depthwise):
    table = real_case(name, depthwise)[1]
    again = CodingTable.from_bytes(table.encoded)
    assert (again.reference_sha256, again.layout, again.output_index, again.convs) == (
        *(table.reference_sha256, table.layout, table.output_index, table.convs),
    )
    for array in ARRAYS:
        assert getattr(again, array).tobytes() == getattr(table, array).tobytes()
    assert again.sha256 == table.sha256 == sha256_hex(table.encoded)
    assert again.length_bytes == table.length_bytes == len(table.encoded)
    assert replace(again).encoded == table.encoded  # written once more, not kept


def test_the_same_table_gives_the_same_bytes_and_another_one_others():
    table = tiny_table()
    assert replace(table).encoded == table.encoded
    assert replace(table, beta=table.beta + np.float32(1)).sha256 != table.sha256
    assert replace(table, output_index=4).sha256 != table.sha256


def test_a_file_that_another_program_wrote_keeps_the_hash_of_its_own_bytes():
    data = forged(json.dumps(document_of(tiny_table()), indent=2))
    assert data != tiny_table().encoded
    assert CodingTable.from_bytes(data).sha256 == sha256_hex(data)
    assert CodingTable.from_bytes(data).length_bytes == len(data)


def test_slots_are_sites_then_convolutions_then_owned_kernels():
    table = tiny_table()
    assert table.slot_count == 5 + 4 + 3
    assert table.row_conv.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("case", [("conv_stack", True), ("residual", False)])
def test_a_reader_written_from_the_page_alone_reads_the_same_table(case):
    table = real_case(*case)[1]
    slow = slow_decoder.read_table(table.encoded)
    assert slow.layout == asdict(table.layout)
    assert [tuple(conv.values()) for conv in slow.convs] == [astuple(one) for one in table.convs]
    for array in ARRAYS:
        assert list(getattr(slow, array)) == getattr(table, array).tolist()


@pytest.mark.parametrize("length", [0, 7, 8, 100, 956])
def test_a_cut_file_is_refused(length):
    start = f"coding table of {length} bytes does not parse ("
    end = "); it must be the whole base.coding of a bundle; copy it again or export the base again"
    message = message_of(tiny_table().encoded[:length])
    assert message.startswith(start)
    assert message.endswith(end)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (forged(key="other"), "'patchdeploy'"),
        (forged("[]"), "list indices must be integers or slices, not str"),
        (forged("[" * 100_000), "maximum recursion depth exceeded while decoding a JSON array "),
        (forged({"a": 1}), "'format'"),
        (
            forged(with_convs(lambda convs: convs[0].pop())),
            "zip() argument 2 is shorter than argument 1",
        ),
    ],
)
def test_a_document_that_is_none_is_refused(data, reason):
    assert message_of(data).startswith(
        f"coding table of {len(data)} bytes does not parse ({reason}"
    )


def test_another_format_or_another_key_is_refused():
    document = document_of(tiny_table())
    keys = ["conv_fields", "convs", "format", "layout", "output_index", "reference_sha256"]
    end = f"this version reads format 1 with {keys}; export the base again or upgrade patchdeploy"
    changed = {
        "coding table has format 2 and keys " + str(keys): {**document, "format": 2},
        "coding table has format 1 and keys " + str([*keys, "zebra"]): {**document, "zebra": 1},
        "coding table has format 1 and keys " + str(keys): {**document, "conv_fields": ["name"]},
    }
    for start, one in changed.items():
        assert message_of(forged(one)) == f"{start}; {end}"


def test_an_array_too_many_is_refused():
    assert message_of(forged(arrays={"more": np.zeros(1, np.int8)})) == (
        "coding table has arrays ['beta', 'kernels', 'more', 'scale', 'slope']; it must have "
        "['beta', 'kernels', 'scale', 'slope']; export the base again"
    )


@pytest.mark.parametrize(
    ("name", "array", "found", "expected"),
    [
        ("scale", np.ones(11, np.float32), "float32 (11,)", "float32 (12,)"),
        ("beta", np.ones((12, 1), np.float32), "float32 (12, 1)", "float32 (12,)"),
        ("slope", np.ones(12, np.float64), "float64 (12,)", "float32 (12,)"),
        ("kernels", np.ones(45, np.uint8), "uint8 (45,)", "int8 (45,)"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(name, array, found, expected):
    assert message_of(forged(arrays={name: array})) == (
        f"coding table: {name} is {found}; it must be {expected}; export the base again"
    )


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 7), (1, 0), (1, -1), (1, 1.5), (2, 0), (2, 2**31), (3, 5), (4, 5), (4, -1), (5, 1)],
)
def test_a_convolution_outside_the_table_is_refused(place, value):
    shown = list(astuple(tiny_table().convs[0]))
    shown[place] = value
    names = ("name", "rows", "taps", "x_index", "y_index", "owned")
    text = ", ".join(f"{name}={one!r}" for name, one in zip(names, shown, strict=True))
    document = with_convs(lambda convs: convs[0].__setitem__(place, value))
    assert message_of(forged(document)) == (
        f"coding table: convolution CodedConv({text}) does not fit 5 activation sites; export the "
        "base again"
    )


@pytest.mark.parametrize("value", [-1, 5, 1.0, "3", None])
def test_an_output_that_is_no_site_is_refused(value):
    document = {**document_of(tiny_table()), "output_index": value}
    assert message_of(forged(document)) == (
        f"coding table: output_index is {value!r}; it must be one of 5 activation sites; export "
        "the base again"
    )


def test_convolutions_that_do_not_fill_the_arrays_are_refused():
    fewer = with_convs(lambda convs: convs[0].__setitem__(1, 2))
    foreign = with_convs(lambda convs: convs[1].__setitem__(5, False))
    end = "its layout says 12 and 45; export the base again"
    start = "coding table: its convolutions have"
    assert message_of(forged(fewer)) == f"{start} 11 rows and 45 owned elements; {end}"
    assert message_of(forged(foreign)) == f"{start} 12 rows and 18 owned elements; {end}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_row", 5),
        ("head_capacity", 3),
        ("head_element", 26),
        ("head_row_elements", 2),
        ("head_input", 1),
        ("head_output", 2),
    ],
)
def test_a_head_that_is_no_owned_convolution_is_refused(key, value):
    layout = replace(tiny_table().layout, **{key: value})
    document = {**document_of(tiny_table()), "layout": asdict(layout)}
    assert message_of(forged(document)) == (
        f"coding table: none of its convolutions is the head of {layout}; export the base again"
    )


def test_a_layout_that_does_not_hold_together_is_refused():
    layout = {**asdict(tiny_table().layout), "head_row": 9}
    message = message_of(forged({**document_of(tiny_table()), "layout": layout}))
    assert "does not hold together; the head lies inside rows, elements and sites" in message


@pytest.mark.parametrize("place", [0, 5, 11])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", np.nan),
        ("scale", np.inf),
        ("scale", 0.0),
        ("scale", -1.0),
        ("scale", TINY / 2),
        ("beta", np.nan),
        ("beta", -np.inf),
        ("slope", np.nan),
        ("slope", np.inf),
    ],
)
def test_a_reference_that_decoding_cannot_start_from_is_refused(name, value, place):
    array = getattr(tiny_table(), name).copy()
    array[place] = value
    assert message_of(forged(arrays={name: array})) == (
        "coding table: a reference is NaN, infinite, or a scale that is not positive and normal; "
        "export the base again"
    )


@settings(deadline=None)
@given(st.integers(0, 956), st.integers(1, 255))
def test_a_changed_byte_gives_another_table_or_a_refusal(place, change):
    data = bytearray(tiny_table().encoded)
    data[place] ^= change
    try:
        table = CodingTable.from_bytes(bytes(data))
    except FileFormatError as error:
        assert str(error).startswith("coding table")  # noqa: PT017
    else:
        assert table.sha256 == sha256_hex(bytes(data)) != tiny_table().sha256


def test_the_case_of_these_tests_is_a_table_that_passes():
    data = forged()
    assert set(load(data)) == set(ARRAYS)
    assert CodingTable.from_bytes(data).convs == tiny_table().convs
    assert len(tiny_table().encoded) == 957
