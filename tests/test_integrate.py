"""docs/integrate.md: what it quotes is the small reader, which says what the vectors say."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
import slow_decoder
import small_reader
from bundle_cases import KEY, make_bundle
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from patchdeploy.bundle import open_bundle
from patchdeploy.slots import overlay

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/integrate.md").read_text()
FOLDER = ROOT / "tests/patchfile"
CONTAINER, PAYLOAD, BASE = (
    json.loads((FOLDER / name).read_text())
    for name in ("vectors.json", "payload_vectors.json", "base_vectors.json")
)


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def file_of(case: dict) -> bytes:
    return base64.b64decode(case["file"]) + bytes(case.get("zeros", 0))


def policy_of(vectors: dict, case: dict) -> dict:
    return {"allow_unsigned": False, **vectors["policy"], **case.get("policy", {})}


def code_of(call, *arguments) -> str:
    try:
        call(*arguments)
    except slow_decoder.Refused as error:
        return str(error)
    return "ok"


def read_and_check(file: bytes, policy: dict) -> None:
    """Steps 1 to 4."""
    text, _, payload = small_reader.read_container(file)
    small_reader.check_signatures(file, policy, verify)
    small_reader.check_policy(small_reader.read_header(text), payload, policy)


@pytest.mark.parametrize("case", CONTAINER["container"], ids=lambda case: case["name"])
def test_steps_1_to_4_give_the_code_of_every_container_vector(case):
    assert code_of(read_and_check, file_of(case), policy_of(CONTAINER, case)) == case["code"]


@pytest.mark.parametrize("case", PAYLOAD["cases"], ids=lambda case: case["name"])
def test_step_5_gives_the_code_of_every_payload_vector(case):
    table = slow_decoder.read_table(base64.b64decode(PAYLOAD["coding_table"]))
    found = code_of(small_reader.open_patch, file_of(case), policy_of(PAYLOAD, case), verify, table)
    assert found == case["code"]


@pytest.mark.parametrize("name", ["tflite", "onnx"])
@pytest.mark.parametrize("case", BASE["cases"], ids=lambda case: case["name"])
def test_steps_6_and_7_give_a_model_or_code_result_as_the_base_vectors_say(case, name):
    """ "load" and "self_test" need a runtime: up to there such a file is sound."""
    base = BASE["bases"][case["base"]][name]
    table, policy = base64.b64decode(BASE["coding_table"]), policy_of(BASE, case)
    arguments = (policy, verify, table, base64.b64decode(base["file"]), base["slots"])
    found = {code_of(small_reader.make_model, file_of(case), *arguments, px) for px in sides(case)}
    assert found == {"result" if case["codes"][name] == "result" else "ok"}


def sides(case: dict) -> list[int]:
    return json.loads(small_reader.read_container(file_of(case))[0])["resolutions"]


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_the_model_of_each_resolution_has_the_hash_of_the_base_vectors(name):
    case, base = BASE["cases"][0], BASE["bases"]["whole"][name]
    table, policy = base64.b64decode(BASE["coding_table"]), policy_of(BASE, case)
    arguments = (policy, verify, table, base64.b64decode(base["file"]), base["slots"])
    for px, sha256 in BASE["results"][name].items():
        model = small_reader.make_model(file_of(case), *arguments, int(px))
        assert hashlib.sha256(model).hexdigest() == sha256


def test_a_bundle_that_was_made_here_gives_the_packages_bytes(tmp_path):
    """Depthwise and pointwise kernels, products, both layouts."""
    bundle = make_bundle(tmp_path / "b", "squeeze_excitation", signed=True)
    policy = {"trusted": [KEY.public.hex()], "threshold": 1, "allow_unsigned": False}
    for name in bundle.formats:
        data, table = open_bundle(bundle.path).base(name)
        slots = json.loads((bundle.path / f"base.{name}.slots.json").read_text())
        for task in bundle.tasks:
            file = bundle.read(bundle.task(task).file)
            for px, values in bundle.patch(task).values.items():
                coding = bundle.read(bundle.manifest.coding)
                model = small_reader.make_model(file, policy, verify, coding, data, slots, px)
                assert model == overlay(data, table, {px: values})


def test_a_changed_byte_of_the_base_or_of_the_file_gives_no_model():
    case, base = BASE["cases"][0], BASE["bases"]["whole"]["onnx"]
    table, policy = base64.b64decode(BASE["coding_table"]), policy_of(BASE, case)
    data = bytearray(base64.b64decode(base["file"]))
    data[-1] ^= 1
    arguments = (policy, verify, table)
    call = small_reader.make_model
    assert code_of(call, file_of(case), *arguments, bytes(data), base["slots"], 16) == "result"
    good = base64.b64decode(base["file"])
    for at in (0, 9, 40, len(file_of(case)) - 1):
        changed = bytearray(file_of(case))
        changed[at] ^= 1
        assert code_of(call, bytes(changed), *arguments, good, base["slots"], 16) != "ok"


def test_every_line_of_code_that_the_page_quotes_is_the_readers():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    source = (ROOT / "tests/small_reader.py").read_text()
    assert len(blocks) >= 5
    for block in blocks:
        assert block.strip() in source, block


def test_every_step_of_the_reader_is_on_the_page_with_the_vectors_that_check_it():
    steps = re.findall(r"^# step (\d): (.*)$", (ROOT / "tests/small_reader.py").read_text(), re.M)
    assert [number for number, _ in steps] == list("1234567")
    for number, _ in steps:
        section = re.search(rf"^### {number}\. .*?(?=^##|\Z)", PAGE, re.M | re.DOTALL)
        assert section is not None, number
        assert re.search(r"vectors\.json|wycheproof_ed25519\.json", section[0]), number
