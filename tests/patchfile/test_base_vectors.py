"""base_vectors.json: over base files as both runtimes read them, our reader says what it says."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import PatchRefusedError, RuntimeBackendError
from patchdeploy.patchfile import Policy
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.pack import check_results, open_patch
from patchdeploy.runtime.litert import LiteRTBackend
from patchdeploy.runtime.ort import OnnxRuntimeBackend
from patchdeploy.runtime.self_test import run_self_test
from patchdeploy.slots import SlotTable, overlay
from patchdeploy.storage import sha256_hex

VECTORS = json.loads(Path(__file__).with_name("base_vectors.json").read_text())
CASES = VECTORS["cases"]
TABLE = CodingTable.from_bytes(base64.b64decode(VECTORS["coding_table"]))
BASES = {
    name: {
        runtime: (
            base64.b64decode(one["file"]),
            SlotTable.from_json(json.dumps(one["slots"]).encode()),
        )
        for runtime, one in of.items()
    }
    for name, of in VECTORS["bases"].items()
}


def open_case(case):
    """The patch of a case: every one passes checks 1 to 8."""
    policy = dict(VECTORS["policy"])
    keys = tuple(map(bytes.fromhex, policy.pop("trusted")))
    trusted = TrustedKeys(keys, policy.pop("threshold"))
    return open_patch(base64.b64decode(case["file"]), Policy(trusted, **policy), TABLE)


def open_backend(base, runtime):
    """The back end over one base file; a bundle is all that it asks for the file."""
    file, table = BASES[base][runtime]
    bundle = SimpleNamespace(base=lambda name: (file, table))
    if runtime == "tflite":
        return LiteRTBackend(bundle, threads=1)
    return OnnxRuntimeBackend(bundle, threads=1)


@pytest.mark.parametrize("runtime", ["tflite", "onnx"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_our_reader_says_what_the_vector_says(case, runtime):
    checked, patch = open_case(case)
    code = "ok"
    try:
        check_results(checked, patch, {runtime: BASES[case["base"]][runtime]})
        found = run_self_test(open_backend(case["base"], runtime), runtime, patch, TABLE)
        assert (found is None) == (patch.golden is None)
    except PatchRefusedError as error:
        code = error.code
    except RuntimeBackendError:  # the base file alone is refused already, before any patch
        code = "load"
    assert code == case["codes"][runtime]


def test_every_code_of_check_9_has_a_vector_on_both_runtimes():
    for runtime in ("tflite", "onnx"):
        found = {case["codes"][runtime] for case in CASES}
        assert found >= {"ok", "load", "self_test", "result"}, runtime
    assert len({case["name"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("runtime", ["tflite", "onnx"])
def test_the_base_with_the_patch_laid_over_it_is_the_file_whose_hash_stands_there(runtime):
    _, patch = open_case(CASES[0])
    expected = VECTORS["results"][runtime]
    assert expected.keys() == {str(px) for px in patch.values}
    for px, values in patch.values.items():
        file, table = BASES["whole"][runtime]
        assert sha256_hex(bytes(overlay(file, table, {px: values}))) == expected[str(px)]
        assert sha256_hex(file) != expected[str(px)]
