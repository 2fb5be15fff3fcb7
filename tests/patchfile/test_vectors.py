"""vectors.json: what it holds is what its script makes, and our reader says what it says."""

import base64
import hashlib
import json
import re

import pytest
from container_cases import TRUSTED
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from make_vectors import PATH, encode, make_vectors

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import Policy, check_patch_file
from patchdeploy.patchfile.keys import TrustedKeys

VECTORS = json.loads(PATH.read_text())
CASES = VECTORS["container"]
CODES = (
    *("too_large", "truncated", "magic", "header_length", "reserved", "signature_count"),
    *("unsigned", "key_unknown", "key_repeated", "signature", "threshold"),
    *("header_text", "header_field", "length", "payload_hash"),
    *("runtime", "engine", "base", "task", "resolution", "sequence", "expired"),
)


def file_of(case: dict) -> bytes:
    return base64.b64decode(case["file"]) + bytes(case.get("zeros", 0))


def policy_of(case: dict) -> Policy:
    fields = {**VECTORS["policy"], **case["policy"]}
    keys, threshold = fields.pop("trusted"), fields.pop("threshold")
    trusted = None
    if keys is not None:
        trusted = TrustedKeys(
            tuple(None if key is None else bytes.fromhex(key) for key in keys), threshold
        )
    sides = fields.pop("resolutions")
    resolutions = None if sides is None else frozenset(sides)
    return Policy(trusted, **fields, resolutions=resolutions)


def test_the_file_holds_what_its_script_makes():
    kept = {key: VECTORS[key] for key in make_vectors()}
    assert encode(kept) == encode(make_vectors())


def test_every_code_of_checks_1_to_6_has_a_vector_and_every_name_is_its_own():
    assert {case["code"] for case in CASES} == {"ok", *CODES}
    assert len({case["name"] for case in CASES}) == len(CASES)


def test_the_page_names_every_code_once_in_the_order_of_the_checks_but_truncated_twice():
    page = (PATH.parents[2] / "docs" / "patch-format.md").read_text()
    table = page.split("## Order of checks")[1].split("## Payload")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    found = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
    assert found.count("truncated") == 2
    found.reverse()
    found.remove("truncated")  # the second, after the signature count
    found.reverse()
    later = ["sites", "inflate", "parts", "work", "values", "result", "load", "self_test", "commit"]
    assert found == [*CODES, *later]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_our_reader_says_what_the_vector_says(case):
    data = file_of(case)
    if case["code"] != "ok":
        with pytest.raises(PatchRefusedError) as caught:
            check_patch_file(data, policy_of(case))
        assert caught.value.code == case["code"]
        return
    checked = check_patch_file(data, policy_of(case))
    assert list(checked.signed_by) == case["signed_by"]
    assert checked.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "case", [one for one in CASES if one["code"] == "ok"], ids=lambda case: case["name"]
)
def test_a_reader_written_from_the_page_alone_finds_the_same_parts(case):
    """The layout once more in plain numbers, with nothing of the package but the test keys."""
    data = file_of(case)
    assert data[:8] == b"PDPATCH1"
    length = data[8] | data[9] << 8 | data[10] << 16 | data[11] << 24
    count = data[12]
    assert data[13:16] == b"\0\0\0"
    header = data[16 : 16 + length]
    at = 16 + length
    for _ in range(count):
        public = Ed25519PublicKey.from_public_bytes(TRUSTED.keys[data[at]])
        signed = b"patchdeploy patch file, version 1\0" + data[:12] + header
        public.verify(data[at + 1 : at + 65], signed)
        at += 65
    fields = json.loads(header)
    assert fields["payload"]["bytes"] == len(data) - at
    assert fields["payload"]["sha256"] == hashlib.sha256(data[at:]).hexdigest()
    checked = check_patch_file(data, policy_of(case))
    assert checked.payload == data[at:]
    assert checked.header.to_bytes() == header
    found = (checked.header.task, checked.header.sequence, checked.header.expires)
    assert found == (fields["task"], fields["sequence"], fields["expires"])
