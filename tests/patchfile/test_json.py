"""Canonical JSON: one text for one value, everything else refused before it can cost anything."""

import json
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.errors import CanonicalTextError
from patchdeploy.patchfile.json import encode_canonical, parse_canonical

PLAIN = st.text([chr(k) for k in range(0x20, 0x7F) if chr(k) not in '\\"'])
DOCUMENTS = st.recursive(
    st.integers(0, 2**53 - 1) | PLAIN,
    lambda one: st.lists(one, max_size=5) | st.dictionaries(PLAIN, one, max_size=5),
    max_leaves=30,
)


@given(DOCUMENTS)
def test_what_is_encoded_is_parsed_back_unless_it_is_too_deep(document):
    data = encode_canonical(document)
    levels = depth(document)
    if levels <= 8:
        assert parse_canonical(data) == document
    else:
        with pytest.raises(CanonicalTextError, match=f"{levels} levels"):
            parse_canonical(data)


def depth(document: object) -> int:
    inside = document.values() if isinstance(document, dict) else document
    if isinstance(document, dict | list):
        return 1 + max(map(depth, inside), default=0)
    return 0


@given(st.binary(max_size=40) | st.text('{}[]:,"019 ab\\', max_size=40).map(str.encode))
def test_any_bytes_are_parsed_to_what_gives_the_same_bytes_or_refused(data):
    try:
        document = parse_canonical(data)
    except CanonicalTextError:
        return
    assert encode_canonical(document) == data
    assert document == json.loads(data)


REFUSED = {
    b"": "something else at offset 0; it must be JSON",
    b'{"a":1}\n': "byte 0x0a at offset 7; it must be printable ASCII without backslash",
    b'"\\u0061"': "byte 0x5c at offset 1; it must be printable ASCII without backslash",
    b'"\x7f"': "byte 0x7f at offset 1; it must be printable ASCII without backslash",
    b'"\xc3\xa9"': "byte 0xc3 at offset 1; it must be printable ASCII without backslash",
    b'{"a": 1}': "' ' outside a string; it must be objects, lists, strings and whole numbers from "
    "0, with no space between",
    b"-1": "'-' outside a string; it must be objects, lists, strings and whole numbers from 0, "
    "with no space between",
    b"1.5": "'.' outside a string; it must be objects, lists, strings and whole numbers from 0, "
    "with no space between",
    b"null": "'n' outside a string; it must be objects, lists, strings and whole numbers from 0, "
    "with no space between",
    b"9007199254740992": "9007199254740992; it must be integers from 0 to 9007199254740991",
    b"1" + b"0" * 400: "10000000000000000000... of 401 digits; it must be integers from 0 to "
    "9007199254740991",
    b"[" * 9 + b"]" * 9: "9 levels; it must be at most 8 levels deep",
    b'{"b":1,"a":2}': "another text at offset 2; it must be in canonical order, each key once",
    b'{"a":1,"a":1}': "another text at offset 6; it must be in canonical order, each key once",
    b"12 ": "' ' outside a string; it must be objects, lists, strings and whole numbers from 0, "
    "with no space between",
    b"[1][2]": "something else at offset 3; it must be JSON",
}


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: repr(data[:20]))
def test_a_text_that_is_not_canonical_is_refused_with_the_rule(data):
    with pytest.raises(CanonicalTextError) as caught:
        parse_canonical(data)
    assert str(caught.value) == f"text is not canonical: it has {REFUSED[data]}"


def test_the_largest_integer_and_the_deepest_text_are_taken():
    assert parse_canonical(b"9007199254740991") == 2**53 - 1
    assert encode_canonical(parse_canonical(b"[" * 8 + b"]" * 8)) == b"[" * 8 + b"]" * 8


def test_brackets_inside_strings_do_not_count_as_levels():
    assert parse_canonical(b'["' + b"[" * 50 + b'"]') == ["[" * 50]


def test_null_is_taken_where_it_is_allowed_and_only_whole():
    assert parse_canonical(b'[null,"null"]', allow_null=True) == [None, "null"]
    for data in (b"nul", b"nnullull", b"[nu,ll]", b"nullnull", b"true"):
        with pytest.raises(CanonicalTextError):
            parse_canonical(data, allow_null=True)


@pytest.mark.parametrize("one", [b"[", b'{"a":', b"[]", b"9", b'"', b'["",'])
def test_a_full_header_of_one_thing_never_reaches_the_recursion_limit(one):
    data = (one * 65_536)[:65_536]
    assert 10 * sys.getrecursionlimit() < 65_536  # so a parser that recursed would have failed
    with pytest.raises(CanonicalTextError):
        parse_canonical(data)


def test_the_error_survives_a_trip_between_processes():
    error = CanonicalTextError("the rule", "the value")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.expected, again.got) == (str(error), "the rule", "the value")
