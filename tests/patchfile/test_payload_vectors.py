"""payload_vectors.json is what its script makes; our reader decodes what it says, or its code."""

import base64
import hashlib
import json

import numpy as np
import pytest
import slow_decoder
from coding_cases import FIELDS
from container_cases import TRUSTED
from make_payload_vectors import PATH, cascade_entry, coding_table, encode, make_payload_vectors

from patchdeploy.cascade import SCORE_KINDS
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import Policy, check_patch_file
from patchdeploy.patchfile.golden import enlarge
from patchdeploy.patchfile.payload import decode_payload

VECTORS = json.loads(PATH.read_text())
CASES = VECTORS["cases"]
GOOD = [case for case in CASES if case["code"] == "ok"]
BAD = [case for case in CASES if case["code"] != "ok"]
TABLE = CodingTable.from_bytes(base64.b64decode(VECTORS["coding_table"]))


def checked(case: dict):
    """Checks 1 to 6, which every case passes."""
    fields = dict(VECTORS["policy"])
    del fields["trusted"], fields["threshold"]
    return check_patch_file(base64.b64decode(case["file"]), Policy(TRUSTED, **fields))


def sha(array: np.ndarray) -> str:
    little = array.dtype.newbyteorder("<")
    return hashlib.sha256(array.astype(little).tobytes()).hexdigest()


def test_the_file_holds_what_its_script_makes():
    assert PATH.read_text() == encode(make_payload_vectors())


def test_the_coding_table_is_the_one_made_by_hand_and_the_policy_names_it():
    assert base64.b64decode(VECTORS["coding_table"]) == coding_table() == TABLE.encoded
    assert VECTORS["policy"]["base_sha256"] == TABLE.sha256
    assert VECTORS["policy"]["base_bytes"] == TABLE.length_bytes


def test_every_code_of_checks_7_and_8_has_a_vector_and_every_name_is_its_own():
    assert {case["code"] for case in CASES} == {
        *("ok", "sites", "inflate", "parts", "work", "values"),
    }
    assert len({case["name"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case["name"])
def test_our_reader_decodes_what_the_vector_says(case):
    one = checked(case)
    patch = decode_payload(one.payload, one.header, TABLE)
    assert list(patch.classes) == case["labels"]
    assert [str(px) for px in patch.values] == list(case["values"])
    for px, values in patch.values.items():
        assert {name: sha(getattr(values, name)) for name in FIELDS} == case["values"][str(px)]
    assert (patch.cascade is not None) == ("cascade" in case)
    if patch.cascade is not None:
        rule, certificate = patch.cascade.rule, patch.cascade.certificate
        stages = [(one.resolution, one.threshold, one.ratio) for one in rule.stages]
        assert case["cascade"] == cascade_entry(
            SCORE_KINDS.index(rule.score),
            certificate.certified,
            certificate.reference,
            round(certificate.tolerance * 1e6),
            round(certificate.confidence * 1e6),
            certificate.images,
            stages,
        )
    assert (patch.golden is not None) == ("tolerance" in case)
    if patch.golden is not None:
        assert patch.golden.tolerance_lsb == case["tolerance"]
        for px in patch.values:
            assert sha(enlarge(patch.golden.thumbnails, px)) == case["enlarged"][str(px)]
        for name, by_side in patch.golden.scores.items():
            for px, scores in by_side.items():
                assert scores.tolist() == case["scores"][name][str(px)]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case["name"])
def test_both_readers_give_the_code_that_the_vector_says(case):
    one = checked(case)
    with pytest.raises(PatchRefusedError) as caught:
        decode_payload(one.payload, one.header, TABLE)
    assert caught.value.code == case["code"]
    header, table = json.loads(one.header.to_bytes()), slow_decoder.read_table(TABLE.encoded)
    with pytest.raises(slow_decoder.Refused) as slow:
        slow_decoder.decode(one.payload, header, table)
    assert str(slow.value) == case["code"]
