"""The container: what is signed comes back, and every fault stops at its own check.

Rows of the fault table: 1 bit flips and mutants, 2 truncated and extended, 3 hostile headers that
are validly signed, 4 keys, 5 and 6 wrong base, task, runtime, engine, 8 expiry.
"""

import logging
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from container_cases import (
    GOOD,
    KEYS,
    PAYLOAD,
    TRUSTED,
    document,
    forge,
    headers,
    make_header,
    sha,
    text,
    try_mutants,
    try_signed_mutants,
    verdict,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import (
    MAX_FILE_BYTES,
    Policy,
    add_signature,
    build_patch,
    check_patch_file,
    check_signatures,
    read_container,
    signed_message,
)
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.keys import TrustedKeys

POLICY = Policy(TRUSTED)
TWO = Policy(TrustedKeys(TRUSTED.keys, 2))
DEVELOPMENT = Policy(None, allow_unsigned=True)

DAMAGED = "the file is damaged or was not made by patchdeploy; fetch or pack it again"
FORGED = "do not use the file; fetch it again, or ask who made it to sign it"
ELSEWHERE = "use a patch that was packed for this app and base"
MESSAGES = {
    "too_large": (
        GOOD + bytes(MAX_FILE_BYTES + 1 - len(GOOD)),
        POLICY,
        "file length is 8454421 bytes or more; it must be at most 8454420 bytes; do not use the "
        "file; no patch is that long",
    ),
    "truncated": (
        GOOD[:15],
        POLICY,
        f"file length is 15 bytes; it must be at least 16 bytes; {DAMAGED}",
    ),
    "magic": (
        forge(magic=b"PDPATCH2"),
        POLICY,
        f"bytes 0 to 7 is b'PDPATCH2'; it must be b'PDPATCH1'; {DAMAGED}",
    ),
    "header_length": (
        forge(header_bytes=1),
        POLICY,
        f"header length is 1 bytes; it must be from 2 to 65536 bytes; {DAMAGED}",
    ),
    "reserved": (
        forge(reserved=b"\1\2\3"),
        POLICY,
        f"bytes 13 to 15 is 010203; it must be zero; {DAMAGED}",
    ),
    "signature_count": (
        forge(count=5),
        POLICY,
        f"signature count is 5; it must be at most 4; {DAMAGED}",
    ),
    "unsigned": (
        forge(signers=()),
        POLICY,
        "signature count is 0; it must be at least 1; sign the patch; unsigned files are for "
        "development alone and must be allowed there",
    ),
    "key_unknown": (
        forge(signers=(4,)),
        Policy(TrustedKeys(TRUSTED.keys[:4], 1)),
        f"key index is 4; it must be that of a trusted key; {FORGED}",
    ),
    "key_repeated": (
        forge(signers=(0, 0)),
        POLICY,
        f"key index is 0 again; it must be one that signed once; {FORGED}",
    ),
    "signature": (
        GOOD.replace(b'"classes":5', b'"classes":6'),
        POLICY,
        f"signature of key 0 is not valid; it must be valid; {FORGED}",
    ),
    "threshold": (
        GOOD,
        TWO,
        "number of keys that signed is 1; it must be at least 2; have the patch signed with more "
        "of the trusted keys",
    ),
    "header_text": (
        forge(b"{}{}"),
        POLICY,
        "header is something else at offset 2; it must be JSON; pack the patch again with this "
        "version of patchdeploy",
    ),
    "header_field": (
        forge(document(classes=1)),
        POLICY,
        "header.classes is 1; it must be an integer from 2 to 65536; pack the patch again with "
        "this version of patchdeploy",
    ),
    "length": (
        GOOD + b"\0",
        POLICY,
        f"payload length is 8 bytes; it must be 7 bytes; {DAMAGED}",
    ),
    "payload_hash": (
        GOOD[:-1] + b"D",
        POLICY,
        f"payload SHA-256 is {sha(b'payloaD')}; it must be {sha(b'payload')}; {DAMAGED}",
    ),
    "runtime": (
        GOOD,
        replace(POLICY, runtime="coreml"),
        f"runtime at hand is coreml; it must be one of onnx; {ELSEWHERE}",
    ),
    "engine": (
        forge(document(engine=3)),
        POLICY,
        "engine version that the patch needs is 3; it must be at most 2; upgrade patchdeploy in "
        "the app",
    ),
    "base": (
        GOOD,
        replace(POLICY, base_sha256=sha(b"another")),
        f"base SHA-256 is {sha(b'base')}; it must be {sha(b'another')}; {ELSEWHERE}",
    ),
    "task": (
        GOOD,
        replace(POLICY, task="food"),
        f"task is flowers; it must be food; {ELSEWHERE}",
    ),
    "sequence": (
        GOOD,
        replace(POLICY, floor=8),
        "sequence is 7; it must be at least 8; fetch a newer patch; an older one may hold "
        "mistakes that were corrected since",
    ),
    "expired": (
        forge(document(expires=99)),
        replace(POLICY, now=99),
        "time of expiry is 99; it must be after 99; fetch a newer patch; if the clock is wrong, "
        "set it",
    ),
}


def refused(action, *arguments) -> PatchRefusedError:
    with pytest.raises(PatchRefusedError) as caught:
        action(*arguments)
    return caught.value


@pytest.mark.parametrize("code", MESSAGES)
def test_each_code_says_what_it_found_what_it_wants_and_what_to_do(code):
    data, policy, message = MESSAGES[code]
    error = refused(check_patch_file, data, policy)
    assert str(error) == f"patch refused ({code}): {message}"
    assert str(error) == (
        f"patch refused ({error.code}): {error.field} is {error.got}; it must be "
        f"{error.expected}; {error.remedy}"
    )


def test_the_error_survives_a_trip_between_processes():
    error = refused(check_patch_file, GOOD, TWO)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_bytes_that_change_after_the_check_are_not_the_ones_that_are_used():
    good = bytearray(forge(make_header().to_bytes(), PAYLOAD))
    checked = check_patch_file(good, POLICY)
    before = bytes(checked.payload)
    good[-len(before) :] = bytes(len(before))
    assert checked.payload == before != bytes(len(before))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.binary(min_size=1, max_size=300))
def test_what_is_built_and_signed_is_what_is_checked(data, payload):
    header = data.draw(headers(payload))
    signers = data.draw(st.lists(st.integers(0, 4), max_size=4, unique=True))
    file = build_patch(header, payload)
    for index in signers:
        file = add_signature(file, KEYS[index], index)
    checked = check_patch_file(file, replace(POLICY, engine=2**31, allow_unsigned=True))
    assert checked.header == header
    assert checked.payload == payload
    assert checked.payload.readonly
    assert checked.signed_by == tuple(signers)
    assert checked.sha256 == sha(file)
    assert file == forge(header.to_bytes(), payload, tuple(signers))


def test_a_built_file_has_these_bytes():
    built = build_patch(make_header(), PAYLOAD)
    assert built == forge(signers=())
    assert add_signature(built, KEYS[0], 0) == GOOD
    assert add_signature(GOOD, KEYS[2], 2) == forge(signers=(0, 2))


def test_the_signed_message_is_context_start_and_header():
    expected = b"patchdeploy patch file, version 1\0PDPATCH1\3\0\0\0abc"
    assert signed_message(b"abc") == expected


def test_every_flipped_bit_is_refused():
    codes = set()
    for at in range(len(GOOD)):
        for bit in range(8):
            data = bytearray(GOOD)
            data[at] ^= 1 << bit
            for policy in (POLICY, DEVELOPMENT):
                codes.add(verdict(bytes(data), policy))
    assert "ok" not in codes
    assert {"magic", "header_length", "reserved", "signature_count", "unsigned"} < codes
    assert {"truncated", "key_unknown", "signature", "payload_hash"} < codes


def test_every_flipped_bit_of_a_file_signed_twice_is_refused_even_where_one_would_do():
    file = forge(signers=(0, 1))
    for at in range(0, len(file)):
        data = bytearray(file)
        data[at] ^= 1 << at % 8
        assert verdict(bytes(data), POLICY) != "ok"


@pytest.mark.parametrize("signers", [(0,), (1, 0), ()], ids=["signed", "twice", "unsigned"])
def test_every_truncation_is_refused(signers):
    file = forge(signers=signers)
    policy = replace(POLICY, allow_unsigned=True)
    assert verdict(file, policy) == "ok"
    codes = [verdict(file[:end], policy) for end in range(len(file))]
    assert set(codes) == {"truncated", "length"}
    assert codes.count("length") == len(PAYLOAD)


def test_every_extension_is_refused():
    rng = np.random.default_rng(5)
    tail = rng.integers(0, 256, 4096, np.uint8).tobytes()
    lengths = [*range(1, 130), *rng.integers(130, 4096, 200), 4095, 4096]
    for length in lengths:
        assert verdict(GOOD + tail[:length], POLICY) == "length"
        assert verdict(GOOD + bytes(int(length)), POLICY) == "length"


def test_no_random_mutant_is_taken():
    found = try_mutants(3000, seed=1)
    assert found["ok"] == 0
    assert found.total() == 3000
    assert len(found) >= 8  # the mutants reach many checks, not the first alone


def test_mutants_of_a_header_that_are_validly_signed_get_a_verdict():
    found = try_signed_mutants(3000, seed=2)
    assert set(found) <= {"ok", "same", "header_length", *LATER_CODES}
    assert found["header_text"] > 100
    assert found["header_field"] > 0
    # A changed digit of a hash that only later checks compare is another valid header.
    assert found["ok"] < 300


LATER_CODES = {"header_text", "header_field", "length", "payload_hash", "engine"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=9), one, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from([None, *document()]))
def test_any_json_signed_as_a_header_or_as_one_field_of_it_ends_in_a_typed_verdict(value, key):
    header = text(value if key is None else {**document(), key: value})
    code = verdict(forge(header), POLICY)
    assert code in {"ok", "header_length", *LATER_CODES}
    if code not in {"header_length", "header_text", "header_field"}:
        # A small integer is a good number of classes: then it is a header, of these very bytes.
        assert PatchHeader.from_bytes(header).to_bytes() == header


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_signed_as_a_header_end_in_a_typed_verdict(header):
    assert verdict(forge(header), POLICY) in {"header_length", "header_text", "header_field"}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_end_in_a_typed_verdict(data, start):
    assert verdict(GOOD[:12] * start + data, POLICY) != "ok"
    assert verdict(b"PDPATCH1" * start + data, DEVELOPMENT) != "ok"


@pytest.mark.parametrize("one", [b"[", b'{"a":', b"9", b'"', b"[]", b'["",'])
def test_a_full_header_of_one_thing_signed_ends_in_a_typed_error(one):
    header = (one * 65_536)[:65_536]
    assert verdict(forge(header), POLICY) == "header_text"


def test_the_header_is_not_looked_at_before_its_signature_verifies():
    wrong_key = replace(POLICY, trusted=TrustedKeys(TRUSTED.keys[1:], 1))
    assert verdict(forge(b"not JSON"), wrong_key) == "signature"
    assert verdict(forge(b"not JSON"), TWO) == "threshold"
    assert verdict(forge(b"not JSON"), POLICY) == "header_text"


def test_the_head_of_a_file_can_be_checked_before_its_payload_arrives():
    container = read_container(GOOD[: -len(PAYLOAD)])
    assert check_signatures(container, POLICY) == (0,)
    assert PatchHeader.from_bytes(container.header).payload_bytes == len(PAYLOAD)


def test_the_threshold_counts_different_keys():
    for count in range(1, 5):
        signers = tuple(range(count))
        for threshold in range(1, 5):
            policy = Policy(TrustedKeys(TRUSTED.keys, threshold))
            expected = "ok" if count >= threshold else "threshold"
            assert verdict(forge(signers=signers), policy) == expected
    assert verdict(forge(signers=(0, 0)), TWO) == "key_repeated"


def test_a_valid_signature_does_not_excuse_one_that_is_not():
    good = forge(signers=(0, 1))
    entry = good[-65 - len(PAYLOAD) : -len(PAYLOAD)]
    broken = entry[:1] + entry[1:-1] + bytes([entry[-1] ^ 1])
    assert verdict(good.replace(entry, broken), POLICY) == "signature"
    assert verdict(good.replace(entry, b"\5" + entry[1:]), POLICY) == "key_unknown"


def test_a_revoked_key_signs_no_more_while_the_others_keep_their_index():
    revoked = Policy(TrustedKeys((None, *TRUSTED.keys[1:]), 1))
    assert verdict(forge(signers=(0,)), revoked) == "key_unknown"
    assert verdict(forge(signers=(1, 0)), revoked) == "key_unknown"
    assert verdict(forge(signers=(1,)), revoked) == "ok"


def test_no_trusted_keys_take_no_signed_file():
    assert verdict(GOOD, Policy(None)) == "key_unknown"
    assert verdict(GOOD, DEVELOPMENT) == "key_unknown"


def test_an_unsigned_file_is_taken_where_it_is_allowed_and_loudly(caplog):
    file = forge(signers=())
    assert verdict(file, POLICY) == "unsigned"
    assert not caplog.records
    for _ in range(2):
        assert check_patch_file(file, DEVELOPMENT).signed_by == ()
    assert [(one.levelno, one.name) for one in caplog.records] == 2 * [
        (logging.WARNING, "patchdeploy.patchfile")
    ]
    assert caplog.messages[0] == (
        "UNSIGNED patch file taken: anyone can have made it; never ship this setting"
    )


def test_a_signed_file_is_taken_without_a_warning(caplog):
    assert verdict(GOOD, replace(POLICY, allow_unsigned=True)) == "ok"
    assert not caplog.records


def test_unsigned_is_off_by_default():
    assert Policy(TRUSTED).allow_unsigned is False


def test_a_patch_for_each_of_5_bases_fits_that_base_alone():
    bases = [(sha(b"%d" % k), 1000 + k) for k in range(4)] + [(sha(b"0"), 1001)]
    for made in bases:
        file = forge(document(base={"sha256": made[0], "bytes": made[1]}))
        for at_hand in bases:
            policy = replace(POLICY, base_sha256=at_hand[0], base_bytes=at_hand[1])
            assert verdict(file, policy) == ("ok" if made == at_hand else "base")


def test_a_patch_for_each_task_runtime_and_engine_fits_there_alone():
    names = ("a", "b", "a-", "a_b", "ab")
    for made in names:
        task = forge(document(task=made))
        runtime = forge(document(results={made: {"64": sha(b"")}}))
        for at_hand in names:
            same = made == at_hand
            assert verdict(task, replace(POLICY, task=at_hand)) == ("ok" if same else "task")
            code = verdict(runtime, replace(POLICY, runtime=at_hand))
            assert code == ("ok" if same else "runtime")
    for needed in range(1, 5):
        for engine in range(1, 5):
            code = verdict(forge(document(engine=needed)), replace(POLICY, engine=engine))
            assert code == ("ok" if needed <= engine else "engine")


def test_a_sequence_from_the_floor_on_is_taken():
    for floor, code in ((0, "ok"), (6, "ok"), (7, "ok"), (8, "sequence"), (2**53, "sequence")):
        assert verdict(GOOD, replace(POLICY, floor=floor)) == code


def test_a_patch_expires_at_its_second_and_0_is_never():
    file = forge(document(expires=1000))
    for now, code in ((0, "ok"), (999, "ok"), (1000, "expired"), (1001, "expired")):
        assert verdict(file, replace(POLICY, now=now)) == code
    assert verdict(file, POLICY) == "ok"  # no clock, no demand
    assert verdict(GOOD, replace(POLICY, now=2**60)) == "ok"


def test_no_demand_is_made_where_the_policy_makes_none():
    fields = document(task="x", base={"bytes": 5, "sha256": sha(b"x")}, sequence=1, expires=1)
    assert verdict(forge(fields), POLICY) == "ok"


def test_a_patch_is_built_only_of_a_payload_that_its_header_names():
    assert refused(build_patch, make_header(), PAYLOAD + b"!").code == "length"
    assert refused(build_patch, make_header(), b"PAYLOAD").code == "payload_hash"


def test_nobody_signs_a_damaged_file():
    for data, code in (
        (GOOD[:20], "truncated"),
        (GOOD + b"!", "length"),
        (GOOD[:-1] + b"D", "payload_hash"),
        (forge(b"not JSON"), "header_text"),
    ):
        assert refused(add_signature, data, KEYS[1], 1).code == code


@pytest.mark.parametrize("index", [-1, 256])
def test_a_key_index_is_one_byte(index):
    assert str(refused(add_signature, GOOD, KEYS[1], index)) == (
        f"patch refused (key_unknown): key index is {index}; it must be from 0 to 255; use the "
        "key's position in the list of trusted keys"
    )


def test_a_key_signs_once():
    assert str(refused(add_signature, GOOD, KEYS[0], 0)) == (
        "patch refused (key_repeated): key index is 0 again; it must be one that signed once; "
        "sign with another key"
    )


def test_a_fifth_signature_finds_no_place():
    assert str(refused(add_signature, forge(signers=(0, 1, 2, 3)), KEYS[4], 4)) == (
        "patch refused (signature_count): signature count is 5; it must be at most 4; pack the "
        "patch again to sign it anew"
    )


def test_the_largest_file_is_taken_and_checking_it_needs_one_copy_of_its_payload():
    payload = bytes(8 * 2**20)
    file = add_signature(build_patch(make_header(payload), payload), KEYS[0], 0)
    check_patch_file(file, POLICY)  # loads what is loaded once
    tracemalloc.start()
    checked = check_patch_file(file, POLICY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert checked.payload == payload
    # The payload that is handed out, and less than 1 MiB for all the rest: with the file itself
    # that is the file + 9 MiB, inside the goal of the file + 16 MiB.
    assert peak < len(payload) + 2**20


def test_refusing_a_file_copies_nothing_of_its_payload():
    payload = bytes(8 * 2**20)
    file = add_signature(build_patch(make_header(payload), payload), KEYS[0], 0)
    wrong = file[:-1] + b"\1"
    verdict(wrong, POLICY)
    tracemalloc.start()
    assert verdict(wrong, POLICY) == "payload_hash"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
