"""Write base_vectors.json: a small base as both runtimes read it, and patch files over it.

Run it by hand when the format changes, and read the difference. The codes of check 9 stand here by
hand. The base files are what the writers made on that day: a reader must go on reading them, so no
test compares them with what the writers make now.
"""

import base64
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from ai_edge_litert.schema_py_generated import Model
from bundle_cases import KEY, make_bundle, make_patch

from patchdeploy.bundle import Bundle
from patchdeploy.patchfile.golden import Golden
from patchdeploy.patchfile.pack import (
    BaseFiles,
    GoldenInputs,
    Release,
    Signer,
    pack_patch,
    result_sha256,
)
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex

PATH = Path(__file__).with_name("base_vectors.json")
CASE, TASK, SIDES, WIDE = "branches", "first", (16, 24), (16, 24, 32)
DEPRECATED_CODE, CODE = 4, 10
"""Places of an operator code's two fields in its FlatBuffers vtable (TFLite's schema)."""
PLACEHOLDER, NO_OPERATOR = 127, 2**20
"""What the first field holds where the second one is valid, and a number of no operator."""


ONNX_TAKES_IT = "result; an ONNX base file serves every resolution"


def codes_of(code: str) -> dict[str, str]:
    """By format."""
    if code == ONNX_TAKES_IT:
        return {"onnx": "ok", "tflite": "result"}
    return {"onnx": code, "tflite": code}


def thumbnails() -> np.ndarray:
    """uint8 [2, 8, 8, 3]: two ramps, one along each side."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    return np.stack([np.stack([one, 255 - one, one.T], axis=-1) for one in (ramp, ramp.T)])


def broken_tflite(file: bytes) -> bytes:
    """``file`` with a number that is no operator's in the place of its first operator's."""
    data = bytearray(file)
    code = Model.GetRootAs(data, 0).OperatorCodes(0)
    for field, value in (
        (DEPRECATED_CODE, PLACEHOLDER.to_bytes()),
        (CODE, NO_OPERATOR.to_bytes(4, "little")),
    ):
        offset = code._tab.Offset(field)
        assert offset, "the writer leaves no field of an operator code out"
        at = code._tab.Pos + offset
        data[at : at + len(value)] = value
    return bytes(data)


def broken_onnx(file: bytes) -> bytes:
    """``file`` with an operator that ONNX does not have."""
    assert b"QLinearConv" in file
    return file.replace(b"QLinearConv", b"QLinearCone")


def with_table(file: bytes, table: SlotTable) -> tuple[bytes, SlotTable]:
    """``file`` and the slot table that is its own."""
    return file, replace(table, base_sha256=sha256_hex(file))


def pack(bundle: Bundle, bases: BaseFiles, patch: PatchFile, golden: bool = True) -> bytes:
    """A signed file."""
    inputs = GoldenInputs(bundle.reference(), thumbnails()) if golden else None
    release = Release(1, signers=(Signer(KEY, 0),))
    return pack_patch(patch, bundle.coding_table, bases, release=release, golden=inputs).data


def with_other_scores(patch: PatchFile) -> PatchFile:
    """``patch`` with scores that its model does not give."""
    scores = {
        name: {px: np.full((2, len(patch.classes)), 127, np.int8) for px in patch.values}
        for name in ("onnx", "tflite")
    }
    return replace(patch, golden=Golden(thumbnails(), scores, 0))


def make_base_vectors(folder: Path) -> dict:
    """Everything that the file holds; ``folder`` is for bundles on their way."""
    bundle = make_bundle(folder / "bundle", CASE, tasks=(), resolutions=SIDES, signed=True)
    wide = make_bundle(folder / "wide", CASE, tasks=(), resolutions=WIDE, signed=True)
    assert wide.coding_table.sha256 == bundle.coding_table.sha256
    bases = bundle.base_files()
    broken = {
        "tflite": with_table(broken_tflite(bases["tflite"][0]), bases["tflite"][1]),
        "onnx": with_table(broken_onnx(bases["onnx"][0]), bases["onnx"][1]),
    }
    patch = make_patch(CASE, TASK, 1, SIDES)[1]
    good = pack(bundle, bases, patch)
    files = [
        ("a patch of this base", "whole", good, "ok"),
        ("a patch without a self-test", "whole", pack(bundle, bases, patch, golden=False), "ok"),
        ("a patch that was packed over other base files", "unloadable", good, "result"),
        (
            "a patch with a resolution that the base file lacks",
            "whole",
            pack(wide, wide.base_files(), make_patch(CASE, TASK, 1, WIDE)[1]),
            ONNX_TAKES_IT,
        ),
        ("a model that no runtime runs", "unloadable", pack(bundle, broken, patch), "load"),
        (
            "scores that its model does not give",
            "whole",
            pack(bundle, bases, with_other_scores(patch), golden=False),
            "self_test",
        ),
    ]
    return {
        "about": "check 9 of docs/patch-format.md, over base files; keys are test keys",
        "policy": {"trusted": [KEY.public.hex()], "threshold": 1, "task": TASK},
        "coding_table": text(bundle.read(bundle.manifest.coding)),
        "bases": {
            name: {
                runtime: {"file": text(file), "slots": json.loads(table.to_json())}
                for runtime, (file, table) in sorted(of.items())
            }
            for name, of in (("unloadable", broken), ("whole", bases))
        },
        "results": {
            runtime: {str(px): result_sha256(patch.values[px], px, *base) for px in SIDES}
            for runtime, base in sorted(bases.items())
        },
        "cases": [
            {"name": name, "base": base, "file": text(data), "codes": codes_of(code)}
            for name, base, data, code in files
        ],
    }


def text(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        PATH.write_text(json.dumps(make_base_vectors(Path(made)), indent=1, sort_keys=True) + "\n")
