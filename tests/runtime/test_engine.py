"""The Engine on both runtimes: right answers, swaps under load, typed errors."""

import io
import json
import shutil
import sys
import threading

import numpy as np
import onnxruntime
import pytest
import torch
from bundle_cases import LABELS, make_bundle, make_patch, reference_logits
from graph_cases import random_images
from onnx_cases import EXACT_FORMS, in_form
from PIL import Image

from patchdeploy import flatbuffer
from patchdeploy.bundle import add_task, open_bundle, patched, remove_task
from patchdeploy.data import resize_image
from patchdeploy.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    IntegrityError,
    MissingExtraError,
    RuntimeBackendError,
    UnknownResolutionError,
    UnknownTaskError,
    UnreadableImageError,
)
from patchdeploy.runtime import Engine
from patchdeploy.runtime.choose import make_backend
from patchdeploy.runtime.litert import load_interpreter
from patchdeploy.runtime.ort import check_per_run_version
from patchdeploy.runtime.ort_kernels import UNSIGNED, VARIABLE
from patchdeploy.storage import sha256_hex

WAYS = [("litert", "resident"), ("onnxruntime", "resident"), ("onnxruntime", "per_run")]
WAY_IDS = [" ".join(way) for way in WAYS]
ONNX_WAYS = [way for way in WAYS if way[0] == "onnxruntime"]
TASKS = ("first", "second", "third")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("engine") / "bundle", tasks=TASKS)


@pytest.fixture(params=WAYS, ids=WAY_IDS)
def engine(request, bundle):
    runtime, mode = request.param
    with Engine.open(bundle.path, runtime, mode=mode) as opened:
        yield opened


@pytest.mark.parametrize("name", ["conv_stack", "residual", "branches", "asymmetric_padding"])
@pytest.mark.parametrize(("runtime", "mode"), WAYS, ids=WAY_IDS)
def test_every_task_and_resolution_is_bit_equal_to_the_reference(tmp_path, name, runtime, mode):
    made = make_bundle(tmp_path / "b", name)
    found = {}
    with Engine.open(tmp_path / "b", runtime, mode=mode) as opened:
        for px in (16, 24):
            images = random_images(3, px)
            for task in opened.tasks:
                logits = opened.logits(images, task, px)
                expected = reference_logits(made, runtime, task, px, images)
                assert logits.dtype == np.float32
                assert logits.tobytes() == expected.tobytes(), (task, px)
                found[task, px] = logits
    for px in (16, 24):  # a patch changes what comes out
        assert not np.array_equal(found["first", px], found["second", px])


@pytest.mark.parametrize("name", ["conv_stack", "residual", "branches", "asymmetric_padding"])
@pytest.mark.parametrize(("runtime", "mode"), ONNX_WAYS)
def test_unsigned_kernels_give_the_same_bits_on_every_processor(
    tmp_path, monkeypatch, name, runtime, mode
):
    monkeypatch.setenv(VARIABLE, UNSIGNED)
    test_every_task_and_resolution_is_bit_equal_to_the_reference(tmp_path, name, runtime, mode)


def test_a_resident_equals_the_stand_alone_model_in_the_bare_runtimes(bundle):
    image = random_images(1, 24)
    session = onnxruntime.InferenceSession(
        in_form(patched(bundle, "second", "onnx", 24)), providers=["CPUExecutionProvider"]
    )
    alone = {"onnxruntime": session.run(None, {"image": image})[0]}
    make, _, _ = load_interpreter()
    runner = make(model_content=patched(bundle, "second", "tflite"))
    alone["litert"] = runner.get_signature_runner("classify_24")(image=image)["scores"]
    for runtime, expected in alone.items():
        with Engine.open(bundle, runtime) as opened:
            opened.swap_to("first", 16)  # what an earlier task left may not be seen
            found = opened.logits(image, "second", 24)
        assert np.array_equal(found, expected[:, : len(LABELS)])


def test_a_batch_gives_what_its_images_give_one_by_one(engine):
    images = random_images(5, 24)
    together = engine.logits(images, "first", 24)
    for k in range(5):
        assert np.array_equal(engine.logits(images[k : k + 1], "first", 24)[0], together[k])
    predictions = engine.classify(images, "first", 24)
    assert [p.label for p in predictions] == [LABELS[k] for k in together.argmax(1)]
    for single, row in zip(images, predictions, strict=True):
        assert np.array_equal(engine.classify(single, "first", 24).scores, row.scores)
    assert engine.classify([], "first", 24) == []
    assert engine.logits(images[:0], "first", 24).shape == (0, len(LABELS))


def test_a_prediction_holds_scores_their_softmax_and_the_best_first(engine):
    found = engine.classify(random_images(1, 24)[0], "first", 24)
    exact = np.exp(found.scores.astype(np.float64))
    # float64 softmax rounded once to float32: half an ulp, 2^-24 relative
    assert np.allclose(found.probabilities, exact / exact.sum(), rtol=2**-23, atol=0)
    assert found.label == LABELS[int(found.scores.argmax())] == found.top(1)[0][0]
    assert found.probability == found.top(1)[0][1]
    listed = [probability for _, probability in found.top(99)]
    assert listed == sorted(listed, reverse=True)
    assert len(listed) == len(LABELS)
    assert (found.task, found.resolution, found.classes) == ("first", 24, LABELS)


def test_images_of_any_size_and_kind_are_resized_as_the_bundle_says(engine, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (37, 53, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    resized = resize_image(pixels, 24, engine.preprocessing)
    expected = engine.logits(resized[None], "first", 24)[0]
    for image in (pixels, tmp_path / "image.png", str(tmp_path / "image.png")):
        assert np.array_equal(engine.classify(image, "first", 24).scores, expected)
    mixed = engine.classify([Image.fromarray(pixels), pixels, resized], "first", 24)
    assert all(np.array_equal(one.scores, expected) for one in mixed)


def test_a_folder_gives_a_prediction_or_an_error_for_each_image(engine, tmp_path):
    (tmp_path / "deep").mkdir()
    for k, name in enumerate(["b.png", "a.jpg", "deep/c.png"]):
        Image.fromarray(random_images(1, 30, seed=k)[0]).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("no image either")
    results = list(engine.classify_folder(tmp_path, "first", 24))
    names = ["a.jpg", "b.png", "broken.png", "deep/c.png"]
    assert [str(path.relative_to(tmp_path)) for path, _ in results] == names
    for path, outcome in results:
        if path.name == "broken.png":
            assert isinstance(outcome, UnreadableImageError)
        else:
            assert np.array_equal(outcome.scores, engine.classify(path, "first", 24).scores)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        engine.classify_folder(tmp_path / "empty", "first", 24)


def test_a_swap_sets_what_is_used_by_default_and_says_what_it_cost(engine):
    image = random_images(1, 40)[0]
    with pytest.raises(ConfigError) as caught:
        engine.classify(image)
    assert str(caught.value) == (
        "no task named; the bundle has first, second, third; name one, or call swap_to first"
    )
    cold = engine.swap_to("second", 16)
    assert set(cold) == {"patch_ms", "load_ms", "total_ms"}
    assert cold["total_ms"] >= cold["patch_ms"] + cold["load_ms"] > 0
    assert engine.classify(image).task == "second"
    assert engine.classify(image).resolution == 16
    assert engine.classify(image, resolution=24).resolution == 24
    warm = engine.swap_to("second", 16)
    assert warm["patch_ms"] == warm["load_ms"] == 0
    assert engine.swap_to("third")["load_ms"] > 0
    assert engine.classify(image).resolution == 24  # the largest: the base's own is not exported


def test_warming_loads_and_evicting_unloads_without_changing_the_default(engine):
    engine.swap_to("first", 24)
    assert engine.prewarm("second", 16)["load_ms"] > 0
    assert engine.prewarm_in_background("third", 16).result(10)["load_ms"] > 0
    assert engine.residents == (("first", 24), ("second", 16), ("third", 16))
    engine.evict("second", 16)
    assert engine.residents == (("first", 24), ("third", 16))
    assert engine.classify(random_images(1, 24)[0]).task == "first"


@pytest.mark.parametrize(("runtime", "mode"), WAYS, ids=WAY_IDS)
def test_the_least_recently_used_task_goes_within_a_byte_budget(bundle, runtime, mode):
    with Engine.open(bundle, runtime, mode=mode) as opened:
        opened.prewarm("first", 24)
        each = opened.resident_bytes
        assert each > 1000
    with Engine.open(bundle, runtime, mode=mode, budget_bytes=2 * each) as opened:
        for task in ("first", "second", "first", "third"):
            opened.prewarm(task, 24)
        assert opened.residents == (("first", 24), ("third", 24))
        assert opened.resident_bytes <= 2 * each


@pytest.mark.parametrize("budget", [0, None], ids=["every use is a swap", "all resident"])
@pytest.mark.parametrize(("runtime", "mode"), WAYS, ids=WAY_IDS)
def test_threads_that_classify_while_others_swap_get_the_same_bits(bundle, runtime, mode, budget):
    keys = [(task, px) for task in TASKS for px in (16, 24)]
    images = {px: random_images(2, px) for px in (16, 24)}
    with Engine.open(bundle, runtime, mode=mode, budget_bytes=budget) as opened:
        expected = {key: opened.logits(images[key[1]], *key) for key in keys}
        wrong: list[object] = []

        def classify(first: int) -> None:
            try:
                for k in range(24):
                    key = keys[(first + k) % len(keys)]
                    if not np.array_equal(opened.logits(images[key[1]], *key), expected[key]):
                        wrong.append(key)
            except Exception as error:
                wrong.append(error)

        def swap() -> None:
            try:
                for k in range(24):
                    opened.evict(*keys[(5 * k) % len(keys)])
                    opened.swap_to(*keys[k % len(keys)])
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=classify, args=(k,)) for k in range(4)]
        threads += [threading.Thread(target=swap) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_task_added_or_replaced_on_disk_does_not_touch_an_open_engine(bundle, tmp_path):
    path = shutil.copytree(bundle.path, tmp_path / "copy")
    images = random_images(2, 24)
    with Engine.open(path, "onnxruntime") as opened:
        before = opened.logits(images, "first", 24)
        add_task(path, make_patch(task="fourth", seed=44)[1])
        assert np.array_equal(opened.logits(images, "first", 24), before)
        assert opened.tasks == TASKS
    with Engine.open(path, "onnxruntime") as opened:
        assert opened.tasks == ("first", "fourth", "second", "third")
        assert opened.logits(images, "fourth", 24).shape == (2, len(LABELS))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 24, 24, 3), np.float32),
        np.zeros((24, 24, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.uint8),
        np.zeros((2, 24, 24, 4), np.uint8),
    ],
    ids=["float", "one image", "another resolution", "four channels"],
)
def test_logits_take_resized_uint8_rgb_only(engine, images):
    with pytest.raises(DataError) as caught:
        engine.logits(images, "first", 24)
    assert str(caught.value) == (
        f"images are {images.dtype} {images.shape}; at 24 px they must be uint8 [N, 24, 24, 3] "
        "RGB; resize them, or use classify, which does"
    )


@pytest.mark.parametrize(
    "image",
    [
        None,
        3,
        {"image": np.zeros((9, 9, 3), np.uint8)},
        np.full((9, 9, 3), 255.0),
        np.zeros((9, 9, 3), np.int32),
        np.zeros((3, 9, 9), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        b"no image",
        [None],
    ],
    ids=["None", "int", "dict", "255.0", "int32", "channels first", "empty", "text", "list"],
)
def test_what_is_no_image_is_refused(engine, image):
    with pytest.raises(DataError):
        engine.classify(image, "first", 24)


def test_an_image_is_the_same_in_every_form_that_a_caller_has(engine, tmp_path):
    pixels = np.concatenate([random_images(1, 40)[0], random_images(1, 40, seed=1)[0]])
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    seen = np.rot90(pixels, -1)
    expected = engine.classify(seen, "first", 24).scores
    data = path.read_bytes()
    with path.open("rb") as file, Image.open(path) as lazy, Image.open(path) as loaded:
        loaded.load()
        forms = [path, str(path), data, bytearray(data), io.BytesIO(data), file, lazy, loaded]
        forms += [torch.from_numpy(seen.copy()).permute(2, 0, 1)]
        for form in forms:
            assert np.array_equal(engine.classify(form, "first", 24).scores, expected)
        found = engine.classify(forms[:5], "first", 24)
    assert [np.array_equal(one.scores, expected) for one in found] == [True] * 5
    grey = seen[..., 0]
    as_grey = engine.classify(np.repeat(grey[..., None], 3, axis=2), "first", 24).scores
    opaque = np.dstack([seen, np.full(grey.shape, 255, np.uint8)])
    assert np.array_equal(engine.classify(grey, "first", 24).scores, as_grey)
    assert np.array_equal(engine.classify(opaque, "first", 24).scores, expected)
    batch = engine.classify(np.stack([opaque, opaque]), "first", 24)
    assert [np.array_equal(one.scores, expected) for one in batch] == [True, True]


def test_a_truncated_image_that_was_opened_and_not_decoded_is_refused(engine, tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(random_images(1, 90)[0]).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with Image.open(path) as image, pytest.raises(UnreadableImageError, match="is truncated"):
        engine.classify(image, "first", 24)


def test_what_was_not_exported_is_named_with_what_was(engine):
    image = random_images(1, 24)[0]
    with pytest.raises(UnknownResolutionError) as caught:
        engine.classify(image, "first", 32)
    assert str(caught.value) == (
        "task 'first' was not exported at 32 px; it has 16, 24; choose one of them or export it "
        "again"
    )
    with pytest.raises(UnknownTaskError, match="no task 'flowers' in"):
        engine.classify(image, "flowers")
    assert engine.tasks == TASKS
    assert engine.resolutions("first") == (16, 24)
    assert engine.classes("first") == LABELS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "coreml"}, "runtime 'coreml'; it must be one of litert, onnxruntime"),
        ({"mode": "fast"}, "mode 'fast' with runtime 'litert'"),
        ({"mode": "per_run"}, "mode 'per_run' with runtime 'litert'"),
        ({"threads": 0}, "threads is 0; it must be an integer of at least 1"),
        ({"package": "tflite"}, "LiteRT package 'tflite'; it must be one of"),
    ],
)
def test_an_option_outside_its_range_is_refused(bundle, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine.open(bundle, **options)


def test_a_format_that_was_not_exported_is_named(tmp_path):
    make_bundle(tmp_path / "b", formats=("onnx",))
    with pytest.raises(ConfigError, match="holds no 'tflite' base file; it has onnx"):
        Engine.open(tmp_path / "b", "litert")


def test_a_closed_engine_says_so(bundle):
    opened = Engine.open(bundle, "onnxruntime")
    opened.prewarm("first", 24)
    assert opened.residents == (("first", 24),)
    opened.close()
    assert (opened.residents, opened.resident_bytes) == ((), 0)
    with pytest.raises(RuntimeBackendError, match="is closed"):
        opened.classify(random_images(1, 24)[0], "first")
    opened.close()


def test_a_changed_bundle_is_refused_when_it_is_opened(bundle, tmp_path):
    path = shutil.copytree(bundle.path, tmp_path / "copy")
    patch = path / "patches" / "first.pdp"
    patch.write_bytes(patch.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError):
        Engine.open(path, "onnxruntime")


def replace_first(path):
    add_task(path, make_patch(seed=77)[1], replace_existing=True)


def damage(path):
    for file in path.rglob("*.*"):
        file.write_bytes(b"\xff" * 9)


def new_bundle(path):
    shutil.rmtree(path)
    make_bundle(path, "residual", tasks=("other",))


@pytest.mark.parametrize(
    "change",
    [replace_first, lambda path: remove_task(path, "first"), damage, shutil.rmtree, new_bundle],
    ids=["task replaced", "task removed", "damaged", "folder removed", "another bundle"],
)
@pytest.mark.parametrize(("runtime", "mode"), WAYS, ids=WAY_IDS)
def test_an_engine_keeps_the_bundle_that_it_opened(bundle, tmp_path, runtime, mode, change):
    path = shutil.copytree(bundle.path, tmp_path / "copy")
    images = random_images(1, 24)
    with Engine.open(bundle, runtime, mode=mode) as untouched:
        expected = {task: untouched.logits(images, task, 24) for task in TASKS}
    with Engine.open(path, runtime, mode=mode, patch_budget_bytes=0) as opened:
        opened.swap_to("second", 24)
        change(path)
        for _ in range(2):  # residents, and tasks that were never loaded, and again from nothing
            for task in TASKS:
                assert np.array_equal(opened.logits(images, task, 24), expected[task])
                opened.evict(task, 24)
        assert opened.tasks == opened.bundle.tasks == TASKS


@pytest.mark.parametrize(
    ("runtime", "kernels"),
    [("litert", ""), *(("onnxruntime", form) for form in ("", *EXACT_FORMS))],
)
def test_a_model_that_a_runtime_refuses_gives_a_typed_error(
    bundle, tmp_path, monkeypatch, runtime, kernels
):
    """An operator that there is not, every hash right: what a broken exporter would write."""
    monkeypatch.setenv(VARIABLE, kernels)
    path = shutil.copytree(bundle.path, tmp_path / "copy")
    suffix = {"litert": ".tflite", "onnxruntime": ".onnx"}[runtime]
    model = (path / f"base{suffix}").read_bytes()
    (path / f"base{suffix}").write_bytes(with_unknown_operator(model, runtime))
    rehash(path, suffix)
    values = bundle.patch("first", 24).values[24]
    with pytest.raises(RuntimeBackendError, match="refused the model of"):
        make_backend(open_bundle(path), runtime, 1, "resident", None).load(values, 24)
    (path / f"base{suffix}").write_bytes(b"\xff" * 16 + model[16:])
    rehash(path, suffix)
    with pytest.raises(FileFormatError, match=r"base file of|onnx bytes"):
        Engine.open(path, runtime)


def with_unknown_operator(model, runtime):
    if runtime == "onnxruntime":
        return model.replace(b"QLinearConv", b"QLinearConx")
    codes = flatbuffer.required(model, flatbuffer.root(model, b"TFL3"), 1)
    changed = bytearray(model)
    for code in flatbuffer.tables(model, codes):
        place = flatbuffer.field_place(model, code, 3)  # builtin_code
        if place is not None:
            changed[place : place + 4] = (9999).to_bytes(4, "little")
    return bytes(changed)


def rehash(path, suffix):
    digest = sha256_hex((path / f"base{suffix}").read_bytes())
    table = json.loads((path / f"base{suffix}.slots.json").read_text())
    table["base_sha256"] = digest
    (path / f"base{suffix}.slots.json").write_text(json.dumps(table))
    document = json.loads((path / "manifest.json").read_text())
    document["files"][f"base{suffix}"]["sha256"] = digest
    slots = (path / f"base{suffix}.slots.json").read_bytes()
    document["files"][f"base{suffix}.slots.json"].update(sha256=sha256_hex(slots), bytes=len(slots))
    del document["manifest_sha256"]
    for _ in range(2):
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        if "manifest_sha256" not in document:
            document["manifest_sha256"] = sha256_hex(text.encode())
    (path / "manifest.json").write_text(text)


def test_a_runtime_that_is_not_installed_names_its_extra(bundle, monkeypatch):
    for module in ("onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tensorflow.lite", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'patchdeploy\[onnx\]'"):
        Engine.open(bundle, "onnxruntime")
    with pytest.raises(MissingExtraError, match=r"pip install 'patchdeploy\[tflite\]'"):
        Engine.open(bundle, "litert")


def test_per_run_mode_refuses_versions_that_drop_a_bias():
    for version in ("1.29.0", "1.32.0", "2.0", "1.100.1"):
        check_per_run_version(version)
    for version in ("1.28.1", "1.9.0", "0.99"):
        with pytest.raises(RuntimeBackendError) as caught:
            check_per_run_version(version)
        assert str(caught.value) == (
            f"onnxruntime {version} drops a bias that is an input (onnxruntime#31684); per-run "
            "mode needs 1.29 or newer; upgrade onnxruntime or use mode='resident'"
        )
