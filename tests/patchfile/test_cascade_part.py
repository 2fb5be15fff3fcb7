"""The optional part: a cascade in a payload, read by both readers, and what each refuses."""

import struct
from dataclasses import replace

import pytest
import slow_decoder
from coding_cases import header_fields, make_header, part, zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from payload_cases import SLOW, TABLE, decode, refusal

from patchdeploy.cascade import SCORE_KINDS, Cascade, CascadeRule, Certificate, Stage
from patchdeploy.errors import ConfigError
from patchdeploy.patchfile.cascade_part import MAX_BYTES, cascade_bytes, read_cascade
from patchdeploy.patchfile.parts import PARTS, part_lengths

SIDES = (64, 48, 24)
RULE = CascadeRule("entropy", (Stage(24, 900_000, 2**31), Stage(48, 5, 7), Stage(64, 0, 0)))
CASCADE = Cascade(RULE, Certificate(64, 0.01, 0.95, 1500, True))
NINE = b"".join(part(k, content) for k, content in enumerate(zeros(sides=len(SIDES)).values()))
V2 = {"encoding": "parts-2", "engine": 2}
CONTENT = cascade_bytes(CASCADE, SIDES)


def with_parts(*parts: bytes) -> bytes:
    return NINE + b"".join(parts)


def decode_v2(payload: bytes):
    return decode(payload, sides=SIDES, **V2)


def refusal_v2(payload: bytes):
    return refusal(payload, sides=SIDES, **V2)


def test_a_cascade_comes_back_as_it_was_and_both_readers_agree():
    payload = with_parts(part(9, CONTENT))
    assert decode_v2(payload).cascade == CASCADE
    header = make_header(payload, TABLE, 3, SIDES, **V2)
    slow = slow_decoder.decode(payload, header_fields(header), SLOW).cascade
    stages = [(24, 900_000, 2**31), (48, 5, 7), (64, 0, 0)]
    assert slow == (2, 1, 64, 10_000, 950_000, 1500, stages)
    assert list(part_lengths(payload, optional=True)) == [*PARTS, "cascade"]
    assert len(CONTENT) == 20 + 3 * 9 <= MAX_BYTES


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(SCORE_KINDS),
    st.permutations(SIDES),
    st.integers(1, 3),
    st.integers(0, 2**31 - 1),
    st.integers(1, 2**32 - 1),
    st.integers(1, 999_999),
    st.integers(500_000, 999_999),
    st.integers(1, 2**32 - 1),
    st.booleans(),
)
def test_every_cascade_comes_back(
    kind, order, count, threshold, ratio, tolerance, confidence, images, certified
):
    used = 0 if kind == "margin" else ratio
    stages = [Stage(px, threshold, used) for px in order[: count - 1]]
    rule = CascadeRule(kind, (*stages, Stage(order[count - 1], 0, 0)))
    certificate = Certificate(48, tolerance / 1e6, confidence / 1e6, images, certified)
    cascade = Cascade(rule, certificate)
    content = cascade_bytes(cascade, SIDES)
    assert read_cascade(content, SIDES) == cascade
    assert cascade_bytes(read_cascade(content, SIDES), SIDES) == content


def test_a_file_without_optional_parts_stays_what_it_was():
    assert decode(NINE, sides=SIDES).cascade is None
    old = refusal(with_parts(part(9, CONTENT)), sides=SIDES)  # its header says parts-1
    assert old.code == "parts"


def test_a_part_that_may_be_passed_over_is_passed_over():
    for extra in (part(128, b"later"), part(255, b"", 1), framed_garbage(200)):
        assert decode_v2(with_parts(extra)).cascade is None
        assert decode_v2(with_parts(part(9, CONTENT), extra)).cascade == CASCADE


def framed_garbage(number: int) -> bytes:
    """Said to be deflated, and no deflate stream: a reader that passes over it does not see."""
    return struct.pack("<BBII", number, 1, 2**31, 3) + b"abc"


@pytest.mark.parametrize(
    "extra",
    [
        b"",  # parts-2 promises an optional part
        part(10, b"later"),
        part(127, b"later"),
        part(8, b""),
        part(9, CONTENT) * 2,
        part(128, b"") + part(9, CONTENT),
        part(9, CONTENT)[:-1],
        part(9, CONTENT) + b"x",
        part(9, CONTENT, 2),
        part(9, CONTENT, length=3),
        part(200, b"abc", length=9),
        struct.pack("<BBII", 200, 1, 9, 99) + b"abc",
    ],
)
def test_optional_parts_out_of_order_unknown_or_broken_are_refused(extra):
    assert refusal_v2(with_parts(extra)).code == "parts"


def test_a_cascade_longer_than_any_is_not_inflated():
    error = refusal_v2(with_parts(part(9, bytes(MAX_BYTES + 1), 1)))
    assert error.code == "inflate"
    assert error.field == "cascade length"


def changed(offset: int, form: str, value: int) -> bytes:
    data = bytearray(CONTENT)
    struct.pack_into(form, data, offset, value)
    return bytes(data)


BROKEN = {
    "version": changed(0, "B", 2),
    "score": changed(1, "B", 3),
    "certified": changed(2, "B", 2),
    "stages": changed(3, "B", 0),
    "reference": changed(4, "B", 3),
    "reserved bytes": changed(6, "B", 1),
    "tolerance": changed(8, "<I", 0),
    "confidence": changed(12, "<I", 499_999),
    "images": changed(16, "<I", 0),
    "length": CONTENT + b"x",
    "resolution": changed(20, "B", 3),
}


@pytest.mark.parametrize("field", BROKEN)
def test_a_field_of_a_cascade_against_its_rule_is_refused_by_name(field):
    error = refusal_v2(with_parts(part(9, BROKEN[field])))
    assert error.code == "parts"
    assert error.field == f"cascade {field}"


@pytest.mark.parametrize(
    "content",
    [
        changed(3, "B", 17),
        changed(8, "<I", 10**6),
        changed(12, "<I", 10**6),
        changed(21, "<I", 2**31),
        changed(25, "<I", 0),  # an entropy needs a ratio
        changed(1, "B", 0),  # a margin has none
        changed(29, "B", 2),  # the same resolution twice
        changed(39, "<I", 1),  # the last stage has a threshold
        changed(43, "<I", 1),
        CONTENT[:19],
        CONTENT[:-9],
        b"",
    ],
)
def test_a_cascade_that_no_writer_makes_is_refused(content):
    assert refusal_v2(with_parts(part(9, content))).code == "parts"


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_both_readers_say_the_same_of_every_changed_byte(data):
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    payload = with_parts(part(9, bytes(content)))
    header = make_header(payload, TABLE, 3, SIDES, **V2)
    try:
        slow = slow_decoder.decode(payload, header_fields(header), SLOW).cascade
    except slow_decoder.Refused:
        refusal_v2(payload)
        return
    found = decode_v2(payload).cascade
    stages = [(one.resolution, one.threshold, one.ratio) for one in found.rule.stages]
    certificate = found.certificate
    assert slow == (
        SCORE_KINDS.index(found.rule.score),
        certificate.certified,
        certificate.reference,
        round(certificate.tolerance * 1e6),
        round(certificate.confidence * 1e6),
        certificate.images,
        stages,
    )


def test_a_cascade_of_a_resolution_that_the_patch_lacks_is_not_written():
    with pytest.raises(ConfigError, match="a cascade names 64 px; the patch holds 24, 48 px"):
        cascade_bytes(CASCADE, (48, 24))
    other = replace(CASCADE, certificate=replace(CASCADE.certificate, reference=96))
    with pytest.raises(ConfigError, match="a cascade names 96 px"):
        cascade_bytes(other, SIDES)


@pytest.mark.parametrize("share", [0.0, 1.0, 1e-9])
def test_a_share_that_millionths_cannot_say_is_not_written(share):
    certificate = replace(CASCADE.certificate, tolerance=share)
    with pytest.raises(ConfigError, match="a patch file says it in millionths"):
        cascade_bytes(replace(CASCADE, certificate=certificate), SIDES)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"images": 0}, "no reader takes"), ({"images": 2**32}, "at most"), ({"images": -1}, "-1")],
)
def test_a_certificate_that_no_reader_takes_is_not_written(change, message):
    broken = replace(CASCADE, certificate=replace(CASCADE.certificate, **change))
    with pytest.raises(ConfigError, match=message):
        cascade_bytes(broken, SIDES)


def test_more_stages_than_a_file_holds_are_not_written():
    sides = tuple(range(32, 32 + 17))
    stages = (*(Stage(px, 1, 0) for px in sides[:-1]), Stage(sides[-1], 0, 0))
    many = Cascade(CascadeRule("margin", stages), replace(CASCADE.certificate, reference=32))
    with pytest.raises(ConfigError, match="a cascade of 17 stages"):
        cascade_bytes(many, sides)
