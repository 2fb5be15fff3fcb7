"""JSON of another's making: each rule, on its last good and its first bad value."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.documents import (
    DECIMAL,
    HEX64,
    HEX64_RULE,
    MAX_VALUES,
    parse_document,
    parse_tensor_notes,
)
from patchdeploy.errors import FileFormatError, SlotTableError

REMEDY = "use the file that patchdeploy wrote: copy it again, or export it again"


def parse(text, **options):
    return parse_document(text.encode(), "document", 1 << 20, **options)


def message(call, *arguments, **options):
    with pytest.raises(FileFormatError) as caught:
        call(*arguments, **options)
    return str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_a_document_within_the_bounds_is_what_it_says(value):
    assert parse(json.dumps(value), most_depth=40).value == value


@given(st.binary(max_size=60))
def test_any_bytes_are_a_document_or_a_typed_error(data):
    try:
        parse_document(data, "document", 50)
    except FileFormatError as error:
        assert str(error).startswith("document is")  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[" * 17 + "]" * 17, "too deep; it must be at most 16 levels deep"),
        ("[" * 100_000 + "]" * 100_000, "deeper than can be parsed"),
        ("[1," * 9, "does not parse (Expecting value"),
        ('{"a":1,"b":2,"a":3}', "does not parse (key 'a' comes twice)"),
        ("[NaN]", "NaN is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("[1e999]", "1e999 is no finite number"),
        ("[" + "9" * 309 + "]", "an integer of 309 characters"),
        ('["\\ud800"]', "with the text '\\ud800'"),
        ('{"\\udfff":1}', "with the text '\\udfff'"),
        ("[" + "0," * MAX_VALUES + "0]", "of up to 2000001 values"),
    ],
)
def test_what_is_beyond_a_bound_is_refused(text, found):
    said = message(parse_document, text.encode(), "document", 1 << 24)
    assert said.startswith("document is ")
    assert found in said
    assert said.endswith(REMEDY)


def test_the_last_good_values_of_each_bound_pass():
    assert parse("[" * 16 + "]" * 16)
    assert parse("[" + "9" * 308 + "]").value == [int("9" * 308)]
    assert parse_document(b"[1]", "document", 3)
    assert message(parse_document, b"[1] ", "document", 3).startswith(
        "document is 4 bytes long; it must be at most 3 bytes"
    )
    assert message(parse_document, b"\xff", "document", 3).startswith("document is of 1 bytes")
    assert message(parse_document, "[1]".encode("utf-16"), "document", 99)


@pytest.mark.parametrize(
    ("text", "read", "rule"),
    [
        ("true", lambda one: one.integer(0, 5), "an integer from 0 to 5"),
        ("1.0", lambda one: one.integer(0, 5), "an integer from 0 to 5"),
        ('"1"', lambda one: one.integer(0, 5), "an integer from 0 to 5"),
        ("6", lambda one: one.integer(0, 5), "an integer from 0 to 5"),
        ("-1", lambda one: one.integer(0, 5), "an integer from 0 to 5"),
        ("true", lambda one: one.number(0, 5), "a number from 0 to 5"),
        ('"1"', lambda one: one.number(0, 5), "a number from 0 to 5"),
        ("5.1", lambda one: one.number(0, 5), "a number from 0 to 5"),
        ("1", lambda one: one.flag(), "true or false"),
        ("null", lambda one: one.flag(), "true or false"),
        ("1", lambda one: one.short_text(5), "a text of 0 to 5 characters"),
        ('"123456"', lambda one: one.short_text(5), "a text of 0 to 5 characters"),
        ('""', lambda one: one.short_text(5, least=1), "a text of 1 to 5 characters"),
        ('"0"', lambda one: one.text(HEX64, HEX64_RULE), HEX64_RULE),
        ("0", lambda one: one.text(HEX64, HEX64_RULE), HEX64_RULE),
        ('"c"', lambda one: one.choice(("a", "b")), "one of a, b"),
        ("[]", lambda one: one.choice(("a", "b")), "one of a, b"),
        ("{}", lambda one: one.items(3), "a list"),
        ('"ab"', lambda one: one.items(3), "a list"),
        ("[]", lambda one: one.keys(("a",)), "an object"),
        ("[]", lambda one: one.table(DECIMAL, "a side", 3), "an object"),
    ],
)
def test_a_value_of_another_type_or_range_names_the_field_and_the_rule(text, read, rule):
    field = parse(f'{{"a": [{text}]}}').keys(("a",))["a"].items(1)[0]
    shown = re.escape(repr(json.loads(text)))
    with pytest.raises(
        FileFormatError, match=rf"^document\.a\[0\] is {shown}; it must be {rule}; "
    ):
        read(field)


def test_good_values_are_given_as_they_are():
    body = parse('{"a": 5, "b": 5, "c": "x", "d": false, "e": [1, 2], "f": {"16": 1}}').keys(
        ("a", "b", "c", "d", "e"), ("f", "g")
    )
    assert (body["a"].integer(5, 5), body["b"].number(0, 5)) == (5, 5.0)
    assert type(body["b"].number(0, 5)) is float
    assert (body["c"].choice("xy"), body["c"].short_text(1), body["d"].flag()) == ("x", "x", False)
    assert [one.integer(1, 2) for one in body["e"].items(2, least=2)] == [1, 2]
    assert body["f"].table(DECIMAL, "a side", 1, least=1)["16"].integer(1, 1) == 1


def test_keys_and_lengths_have_rules_too():
    document = parse('{"a": 1, "b": [1, 2], "016": 3}')
    assert message(document.keys, ("a", "c")).startswith(
        "unknown key 'b' in document; the keys are a, c; export it again or upgrade"
    )
    assert message(document.keys, ("a", "b", "016", "c")).startswith("document has no key 'c'; ")
    assert message(document.table, DECIMAL, "a side", 3).startswith(
        "document: a key is 'a'; it must be a side; "
    )
    assert message(document.table, DECIMAL, "a side", 2).startswith(
        "document: its number of keys is 3; it must be 0 to 2; "
    )
    body = document.keys(("a", "b", "016"))
    assert message(body["b"].items, 1).startswith("document.b: its length is 2; it must be 0 to 1")


def test_the_error_is_of_the_kind_that_the_reader_asks_for():
    with pytest.raises(SlotTableError):
        parse("[", error=SlotTableError)
    with pytest.raises(SlotTableError):
        parse("[]", error=SlotTableError).keys(("a",))


def notes(text, length=None):
    head = text.encode()
    return (len(head) if length is None else length).to_bytes(8, "little") + head


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "says that its header has 0"),
        (notes("{}"), "without notes"),
        (notes("[]"), "without notes"),
        (notes('{"__metadata__":[]}'), "without notes"),
        (notes('{"__metadata__":{"a":1}}'), "without notes"),
        (notes('{"__metadata__":{"a":"\\\\ud800"}}'), "does not parse"),
        (notes("{}", 2**63), "says that its header has 9223372036854775808"),
        (notes('{"__metadata__":{"a":"[["}}'), "does not parse"),
    ],
)
def test_a_tensor_file_without_its_notes_is_refused(data, words):
    with pytest.raises(FileFormatError, match=words):
        parse_tensor_notes(data, "a", "file", 4)


def test_the_notes_of_a_tensor_file_are_a_document():
    data = notes('{"__metadata__":{"a":"[1]"}}')
    assert parse_tensor_notes(data, "a", "file", 4).value == [1]
