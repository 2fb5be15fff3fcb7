"""From training to an app: the API as README shows it, and a reader that knows the docs alone."""

import hashlib
import json

import numpy as np
import pytest
from cli_cases import answer, here, refused, write_folder
from slow_decoder import decode, read_table

from patchdeploy.base import Base
from patchdeploy.bundle import patched
from patchdeploy.data import load_packaged
from patchdeploy.evaluate import sample
from patchdeploy.export import CalibrationConfig, export_bundle
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.runtime import Engine
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.verify import verify_bundle

SIZES = (32, 48)
DTYPES = {
    "weight_scale": np.float32,
    "bias": np.int32,
    "activation_scale": np.float32,
    "activation_zero_point": np.int8,
    "weights": np.int8,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained task of two classes and one of ten (with depthwise kernels), saved and exported."""
    root = tmp_path_factory.mktemp("whole")
    base = Base.embedded()
    settings = TrainConfig(epochs=1, batch_size=16)
    data, patches = {}, []
    for task, count, kinds in (
        ("faces", 100, ("scale_bias", "head")),
        ("surfaces", 80, ("scale_bias", "depthwise", "head")),
    ):
        data[task] = sample(load_packaged(task)[0], count)
        patch = train_patch(
            base, data[task], settings, PatchConfig(kinds), resolutions=SIZES, quiet=True
        )
        patch.save_pretrained(root / task)
        patches.append(Patch.from_pretrained(root / task))
    few = CalibrationConfig(images=32)
    bundle = export_bundle(
        root / "bundle", base, patches, data, config=few, float_files=True, unsigned=True
    )
    return bundle


def test_a_trained_task_verifies_and_classifies_as_well_as_its_float_network(made):
    _, test = load_packaged("faces")
    report = verify_bundle(made.path, {"faces": test}, reference_limit=4)
    assert report.ok, [check.detail for check in report.failures]
    rows = [check.numbers for check in report.checks if check.name == "accuracy"]
    assert len(rows) == 2 * len(SIZES)
    for row in rows:
        assert row["images"] == 80
        # Five of 80 images; seen 0 to 1. A wrong scale or class order costs a third or more.
        assert abs(row["drop_points"]) <= 100 * 5 / 80
    with Engine.open(made.path) as engine:
        engine.swap_to("faces", 48)
        assert engine.classify(np.asarray(test.images[0])).label in test.classes
        engine.swap_to("surfaces", 32)
        assert len(engine.classify(np.asarray(test.images[0])).scores) == 10


def test_a_run_of_two_tasks_exports_over_the_base_that_it_left(tmp_path):
    for task in ("faces", "fashion"):
        write_folder(tmp_path / task, task, 10, classes=2)
    (tmp_path / "both.toml").write_text(
        'method = "tasks"\nresolutions = [32]\n[training]\nepochs = 1\nbatch_size = 8\n'
        f'[[task]]\nname = "faces"\nimages = "{tmp_path / "faces"}"\n'
        f'[[task]]\nname = "garments"\nimages = "{tmp_path / "fashion"}"\n'
    )
    run = tmp_path / "run"
    found = answer("train", tmp_path / "both.toml", "--out", run, "--quiet")
    patches, calibration = [], []
    for task, folder in (("faces", "faces"), ("garments", "fashion")):
        patches += ["--patch", run / found["tasks"][task]["patch"]]
        calibration += ["--calibration", f"{task}={tmp_path / folder}"]
    trained = f"trained:{run / found['network']}"
    options = [*patches, *calibration, "--formats", "onnx", "--unsigned", "--fine"]
    report = answer("export", tmp_path / "bundle", *options, "--base", trained)
    assert set(report["tasks"]) == {"faces", "garments"}
    refused(here("export", tmp_path / "other", *options), 2, "was trained on base")
    with Engine.open(tmp_path / "bundle", runtime="onnxruntime") as engine:
        image = next((tmp_path / "faces" / "face").iterdir())
        assert engine.classify(image, task="faces", resolution=32).label in ("face", "other")


def slot_bytes(slot, values):
    """docs/slots.md: what each kind writes."""
    run = slice(slot["start"], slot["start"] + slot["count"])
    dtype = {"f32": "<f4", "i32": "<i4", "i64": "<i8", "i8": "i1", "u8": "u1"}[slot["dtype"]]
    kind, shift = slot["kind"], 128 if slot["dtype"] == "u8" else 0
    if kind == "bias_scale":
        scale = values["activation_scale"][slot["x_index"]]
        return (scale * values["weight_scale"][run]).astype(dtype).tobytes()
    if kind == "weight":
        axes = {"ohwi": (0, 1, 2, 3), "1hwo": (3, 1, 2, 0), "oihw": (0, 3, 1, 2)}[slot["layout"]]
        kernel = values["weights"][run].reshape(slot["shape"]).transpose(axes)
        return (kernel.astype(np.int16) + shift).astype(dtype).tobytes()
    if kind == "activation_zero_point":
        return (values[kind][run].astype(np.int64) + shift).astype(dtype).tobytes()
    return values[kind][run].astype(dtype).tobytes()


@pytest.mark.parametrize("task", ["faces", "surfaces"])
@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_a_reader_written_from_the_docs_alone_makes_the_same_model(made, task, name):
    text = (made.path / "manifest.json").read_bytes()
    manifest = json.loads(text)
    own = manifest.pop("manifest_sha256")

    def canonical(document):
        return json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"

    assert hashlib.sha256(canonical(manifest).encode()).hexdigest() == own
    assert canonical({**manifest, "manifest_sha256": own}).encode() == text
    for path, entry in manifest["files"].items():
        data = (made.path / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    where = manifest["converters"][name]
    model = bytearray((made.path / where["file"]).read_bytes())
    table = json.loads((made.path / where["slots"]).read_text())
    assert (table["base_bytes"], table["base_sha256"]) == (
        len(model),
        hashlib.sha256(model).hexdigest(),
    )
    entry = manifest["tasks"][task]
    coding = (made.path / manifest["coding"]).read_bytes()
    patch = (made.path / entry["file"]).read_bytes()
    length = int.from_bytes(patch[8:12], "little")
    header = json.loads(patch[16 : 16 + length])
    assert header["base"] == {"bytes": len(coding), "sha256": manifest["base_sha256"]}
    payload = patch[16 + length + 65 * patch[12] :]
    assert hashlib.sha256(payload).hexdigest() == header["payload"]["sha256"]
    decoded = decode(payload, header, read_table(coding))
    assert list(decoded.labels) == entry["classes"]
    held = entry["resolutions"] if table["resolutions"] else entry["resolutions"][:1]
    for px in reversed(held):  # what all resolutions share ends with the smallest's values
        found = decoded.values[px]._asdict()
        values = {key: np.array(one, DTYPES[key]) for key, one in found.items()}
        for row in table["slots"]:
            slot = dict(zip(table["slot_fields"], row, strict=True))
            if slot["resolution"] in (None, px):
                written = slot_bytes(slot, values)
                model[slot["offset_bytes"] : slot["offset_bytes"] + len(written)] = written
    assert bytes(model) == patched(made, task, name)
    alone = max(held)
    wanted = hashlib.sha256(patched(made, task, name, alone)).hexdigest()
    assert header["results"][name][str(alone)] == wanted
    assert hashlib.sha256(model).hexdigest() != table["base_sha256"]
