"""The header: round trips, one text for one header, and a typed error for everything else."""

from dataclasses import replace

import pytest
from container_cases import PAYLOAD, document, headers, make_header, sha, text
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile.header import PatchHeader

REMEDY = "pack the patch again with this version of patchdeploy"
UPGRADE = f"a newer patchdeploy may read it: upgrade patchdeploy in the app, or {REMEDY}"
NEWER = ("encoding text", "format", "encoding", "unknown key")
"""What a later version may write."""


def refused(code: str, action, *arguments) -> PatchRefusedError:
    with pytest.raises(PatchRefusedError) as caught:
        action(*arguments)
    assert caught.value.code == code
    return caught.value


@given(headers())
def test_a_header_comes_back_from_its_bytes(header):
    data = header.to_bytes()
    again = PatchHeader.from_bytes(data)
    assert again == header
    assert again.to_bytes() == data


def test_the_bytes_of_a_header_are_these():
    expected = (
        f'{{"base":{{"bytes":1000,"sha256":"{sha(b"base")}"}},"classes":5,"encoding":"parts-1",'
        f'"engine":1,"expires":0,"format":1,"payload":{{"bytes":7,"sha256":"{sha(PAYLOAD)}"}},'
        f'"resolutions":[64],"results":{{"onnx":{{"64":"{sha(b"result")}"}}}},"sequence":7,'
        '"sites":[[0,3]],"task":"flowers"}'
    )
    assert make_header().to_bytes() == expected.encode() == text(document())


def test_the_order_of_resolutions_is_kept_since_the_first_is_the_one_others_follow():
    hashes = {px: sha(b"%d" % px) for px in (96, 128, 64)}
    header = make_header(resolutions=(96, 128, 64), results={"onnx": hashes})
    assert PatchHeader.from_bytes(header.to_bytes()).resolutions == (96, 128, 64)


KEYS = (
    "base, classes, encoding, engine, expires, format, payload, resolutions, results, sequence, "
    "sites, task"
)
FIELD_MESSAGES = {
    "not an object": ([1], f"header is [1]; it must be an object with the keys {KEYS}"),
    "unknown key": (document(zebra=1), f"header key is 'zebra'; it must be one of {KEYS}"),
    "missing key": (document(task=None), "header.task is missing; it must be there"),
    "format": ({"format": 2}, "header.format is 2; it must be the integer 1"),
    "encoding": (
        document(encoding="parts-3"),
        "header.encoding is 'parts-3'; it must be one of parts-1, parts-2",
    ),
    "encoding text": (
        document(encoding=["parts-1"]),
        "header.encoding is ['parts-1']; it must be one of parts-1, parts-2",
    ),
    "engine of optional parts": (
        document(encoding="parts-2"),
        "header.engine is 1; it must be an integer from 2 to 2147483647",
    ),
    "integer": (
        document(classes=1),
        "header.classes is 1; it must be an integer from 2 to 65536",
    ),
    "hash": (
        document(base={"bytes": 1, "sha256": "AB"}),
        "header.base.sha256 is 'AB'; it must be 64 lower-case hexadecimal digits",
    ),
    "task": (
        document(task="../" + "a" * 90),
        f"header.task is '../{'a' * 73}...; it must be 1 to 64 of a-z, 0-9, underscore and hyphen",
    ),
    "sides": (
        document(resolutions=[64, 64]),
        "header.resolutions is [64, 64]; it must be different sides",
    ),
    "list": (document(sites=[]), "header.sites is []; it must be a list of 1 to 65536"),
    "runtimes": (
        document(results=[]),
        "header.results is []; it must be an object of 1 to 8 runtimes",
    ),
    "runtime": (
        document(results={"A": {}}),
        "header.results key is 'A'; it must be 1 to 32 of a-z, 0-9, underscore and hyphen",
    ),
    "result": (
        document(results={"onnx": {"96": sha(b"")}}),
        "header.results.onnx.64 is missing; it must be there",
    ),
    "run": (
        document(sites=[[0, 3], 4]),
        "header.sites[1] is 4; it must be a list of first and count",
    ),
    "touching": (
        document(sites=[[0, 3], [3, 1]]),
        "header.sites[1][0] is 3; it must be an integer from 4 to 2147483646",
    ),
}


@pytest.mark.parametrize("name", FIELD_MESSAGES)
def test_a_field_against_its_rule_is_refused_by_name(name):
    fields, message = FIELD_MESSAGES[name]
    error = refused("header_field", PatchHeader.from_bytes, text(fields))
    remedy = UPGRADE if name in NEWER else REMEDY
    assert str(error) == f"patch refused (header_field): {message}; {remedy}"


def test_every_key_is_required():
    for key in document():
        error = refused("header_field", PatchHeader.from_bytes, text(document(**{key: None})))
        assert (error.field, error.got) == (f"header.{key}", "missing")


BOUNDS = [
    ("classes", lambda n: document(classes=n), 2, 65_536),
    ("engine", lambda n: document(engine=n), 1, 2**31 - 1),
    ("expires", lambda n: document(expires=n), 0, 2**53 - 1),
    ("sequence", lambda n: document(sequence=n), 1, 2**53 - 1),
    ("base", lambda n: document(base={"bytes": n, "sha256": sha(b"")}), 1, 2**53 - 1),
    ("payload", lambda n: document(payload={"bytes": n, "sha256": sha(b"")}), 1, 2**23),
    (
        "resolution",
        lambda n: document(resolutions=[n], results={"onnx": {str(n): sha(b"")}}),
        1,
        4096,
    ),
    ("first", lambda n: document(sites=[[n, 1]]), 0, 2**31 - 2),
    ("first after a run", lambda n: document(sites=[[0, 4], [n, 1]]), 5, 2**31 - 2),
    ("count", lambda n: document(sites=[[0, n]]), 1, 2**31 - 1),
    ("count up to the end", lambda n: document(sites=[[2**31 - 9, n]]), 1, 8),
    ("task length", lambda n: document(task="a" * n), 1, 64),
    ("runtime length", lambda n: document(results={"a" * n: {"64": sha(b"")}}), 1, 32),
    ("hash length", lambda n: document(base={"bytes": 1, "sha256": "a" * n}), 64, 64),
    (
        "runtimes",
        lambda n: document(results={f"r{k}": {"64": sha(b"")} for k in range(n)}),
        1,
        8,
    ),
    (
        "resolutions",
        lambda n: document(
            resolutions=list(range(1, n + 1)),
            results={"onnx": {str(k + 1): sha(b"") for k in range(n)}},
        ),
        1,
        16,
    ),
]


@pytest.mark.parametrize(
    ("make", "least", "most"), [one[1:] for one in BOUNDS], ids=[one[0] for one in BOUNDS]
)
def test_a_bound_is_taken_and_one_beyond_is_refused(make, least, most):
    for inside in {least, most}:
        assert PatchHeader.from_bytes(text(make(inside))).to_bytes() == text(make(inside))
    for outside in (least - 1, most + 1):
        with pytest.raises(PatchRefusedError) as caught:
            PatchHeader.from_bytes(text(make(outside)))
        # A number that JSON may hold is refused by its field, any other by the text.
        assert caught.value.code == ("header_field" if 0 <= outside < 2**53 else "header_text")


WRONG = st.sampled_from([0, 1, "", "1", "a" * 64, [], [[]], [1, 2], {}, {"64": 1}, 2**53 - 1])
PLACES = [
    (key, inner)
    for key, value in document().items()
    for inner in ([None, *value] if isinstance(value, dict) else [None])
]


@given(st.sampled_from(PLACES), WRONG)
def test_any_value_at_any_place_gives_a_header_of_the_same_bytes_or_a_typed_error(place, value):
    key, inner = place
    fields = document()
    fields[key] = value if inner is None else {**fields[key], inner: value}
    try:
        header = PatchHeader.from_bytes(text(fields))
    except PatchRefusedError as error:
        found = error.code
    else:
        found = "ok" if header.to_bytes() == text(fields) else "other bytes"
    assert found in {"ok", "header_field"}


def test_a_text_that_is_not_canonical_is_refused_with_the_rule():
    error = refused("header_text", PatchHeader.from_bytes, b'{"format": 1}')
    assert str(error) == (
        "patch refused (header_text): header is ' ' outside a string; it must be objects, lists, "
        f"strings and whole numbers from 0, with no space between; {REMEDY}"
    )


@pytest.mark.parametrize(
    "changes",
    [{"classes": 1}, {"task": "A"}, {"sites": ()}, {"sequence": True}, {"expires": 1.0}],
    ids=str,
)
def test_a_header_that_breaks_a_rule_cannot_be_made(changes):
    refused("header_field", lambda: replace(make_header(), **changes))


def test_a_header_of_too_many_sites_has_no_bytes():
    header = make_header(sites=tuple((10_000 + 2 * k, 1) for k in range(8000)))
    assert len(text(document(sites=[]))) + 8000 * len("[10000,1],") - 1 == 80_416
    assert str(refused("header_length", header.to_bytes)) == (
        "patch refused (header_length): header length is 80416 bytes; it must be from 2 to 65536 "
        "bytes; let the patch set whole runs of slots, not scattered ones"
    )
