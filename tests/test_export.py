"""Patches to a bundle: what is shared stays the same, and both runtimes agree on every kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import patchdeploy.bundle.writer as bundle_module
import patchdeploy.export as export_module
from patchdeploy.base import Base
from patchdeploy.bundle import open_bundle
from patchdeploy.data import Preprocessing, load_packaged
from patchdeploy.errors import (
    AlreadyAttachedError,
    ConfigError,
    DataError,
    EmptyCalibrationError,
    HeadCapacityError,
    NegativeScaleError,
    PatchError,
    StorageError,
    ThinCalibrationError,
    UnknownResolutionError,
    UnknownTaskError,
    WrongBaseError,
)
from patchdeploy.evaluate import sample
from patchdeploy.export import (
    CalibrationConfig,
    CodingConfig,
    Signing,
    common_resolutions,
    export_bundle,
    export_float,
    export_patch,
    spread,
)
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import fold_patch
from patchdeploy.lower import lower_base
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel, initial_tensors
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.runtime import Engine
from patchdeploy.storage import sha256_hex
from patchdeploy.training import TrainConfig, evaluate, train_patch
from patchdeploy.verify import verify_bundle

FEW = CalibrationConfig(images=16)


@pytest.fixture(scope="module")
def base():
    return Base.embedded()


@pytest.fixture(scope="module")
def images():
    return sample(load_packaged("digits")[0], 32)


def perturbed(base, task, seed, kinds=("scale_bias", "head"), classes=3, sizes=(32,)):
    """A patch away from the base in everything it owns, scales positive."""
    config = PatchConfig(kinds)
    generator = np.random.default_rng(seed)
    variants = {}
    start = {k: v.numpy() for k, v in initial_tensors(base, config, classes).items()}
    head = {
        k: v + generator.normal(0, 0.1, v.shape) for k, v in start.items() if base.head_name in k
    }
    for px in sizes:
        changed = {}
        for key, value in start.items():
            if key in head:
                moved = head[key]
            elif key.endswith(("running_var", "patch_scale")) or value.ndim == 4:
                moved = value * np.exp(generator.normal(0, 0.1, value.shape))
            elif key.endswith(".weight"):
                moved = value * np.exp(generator.normal(0, 0.2, value.shape))
            else:
                moved = value + generator.normal(0, 0.05, value.shape)
            changed[key] = moved.astype(np.float32)
        variants[px] = changed
    return Patch(task, base.sha256, config, tuple(map(str, range(classes))), variants)


def base_hashes(path):
    return {f: sha256_hex((path / f).read_bytes()) for f in ("base.tflite", "base.onnx")}


def test_the_base_files_depend_on_no_patch_and_exporting_twice_gives_the_same_bytes(
    base, images, tmp_path
):
    paths = [tmp_path / name for name in ("one", "other", "again")]
    for path, seed in zip(paths, (1, 2, 1), strict=True):
        patch = perturbed(base, "task", seed)
        export_bundle(path, base, [patch], {"task": images}, config=FEW, unsigned=True)
    assert base_hashes(paths[0]) == base_hashes(paths[1]) == base_hashes(paths[2])
    files = [(path / "patches/task.pdp").read_bytes() for path in paths]
    assert files[0] == files[2]
    assert files[0] != files[1]


def test_a_task_added_later_equals_one_exported_from_the_start(base, images, tmp_path):
    first, second = perturbed(base, "first", 1), perturbed(base, "second", 2, classes=2)
    data = {"first": images, "second": images}
    together = export_bundle(tmp_path / "a", base, [first, second], data, config=FEW, unsigned=True)
    export_bundle(tmp_path / "b", base, [first], data, config=FEW, unsigned=True)
    later = export_patch(tmp_path / "b", base, second, images, config=FEW)
    assert base_hashes(tmp_path / "a") == base_hashes(tmp_path / "b")
    entry = together.task("second").file
    assert together.read(entry) == later.read(later.task("second").file)
    assert open_bundle(tmp_path / "b").tasks == ("first", "second")


@pytest.mark.parametrize(
    ("name", "px", "kinds"),
    [
        ("embedded", 48, ("scale_bias", "depthwise", "head")),
        ("embedded", 32, ("depthwise",)),
        ("squeezenet1_1", 64, ("scale_bias", "head")),
        ("mobilenet_v3_small", 64, ("scale_bias", "depthwise", "head")),
        ("resnet18", 64, ("scale_bias", "head")),
        ("shufflenet_v2_x1_0", 64, ("scale_bias", "head")),
    ],
)
def test_every_kind_of_patch_verifies_in_both_runtimes(base, images, tmp_path, name, px, kinds):
    network = base
    if name != "embedded":
        scalar = Preprocessing((128 / 255,) * 3, (0.25,) * 3, px)
        network = Base.from_torchvision(name, num_classes=10, preprocessing=scalar)
    patches = [
        perturbed(network, "large", 1, kinds, classes=5, sizes=(px,)),
        perturbed(network, "small", 2, kinds, classes=2, sizes=(px,)),
    ]
    data = {"large": images, "small": images}
    bundle = export_bundle(
        tmp_path / "b", network, patches, data, config=FEW, float_files=True, unsigned=True
    )
    report = verify_bundle(bundle.path, images, limit=8, reference_limit=4)
    assert report.ok, [check.detail for check in report.failures]
    kinds_of_check = {check.name for check in report.checks if check.passed}
    assert "overlay = stand-alone" in kinds_of_check
    with Engine.open(bundle) as engine:
        pixels = images.at(px, network.preprocessing)[:4]
        one = engine.logits(pixels, "large", px)
        assert one.shape == (4, 5)
        assert np.ptp(one) > 0  # a patch that does nothing could not fail
        assert engine.logits(pixels, "small", px).shape == (4, 2)


def test_int8_scores_follow_the_float_network_on_real_images(base, images, tmp_path):
    patch = perturbed(base, "task", 3, classes=10, sizes=(48,))
    export_bundle(tmp_path / "b", base, [patch], {"task": images}, config=FEW, unsigned=True)
    model = PatchedModel(base)
    model.load_patch(patch)
    _, wanted = evaluate(model, images, 48, base)
    with Engine.open(tmp_path / "b") as engine:
        found = engine.logits(images.at(48, base.preprocessing), "task", 48)
    # int8 carries about 8 bits through some 50 layers; seen 0.99. A wrong layout, scale or offset
    # anywhere makes the scores unrelated: correlation near 0.
    centred = [scores - scores.mean(axis=0) for scores in (found, wanted)]
    correlation = np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]
    assert correlation > 0.9


def test_a_scale_that_turns_negative_on_a_shared_row_is_refused_by_name(base, images, tmp_path):
    patch = perturbed(base, "task", 1)
    tensors = dict(patch.tensors(32))
    gamma = tensors["features.3.conv.0.1.weight"].copy()
    gamma[7] = -abs(gamma).max()
    tensors["features.3.conv.0.1.weight"] = gamma
    flipped = replace(patch, variants={32: tensors})
    with pytest.raises(NegativeScaleError, match=r"'task'.*features\.3\.conv\.0\.0.*7"):
        export_bundle(tmp_path / "b", base, [flipped], {"task": images}, config=FEW, unsigned=True)
    assert not (tmp_path / "b").exists()


def test_depthwise_kernels_over_a_base_without_slots_for_them_are_refused(base, images, tmp_path):
    plain = perturbed(base, "plain", 1)
    export_bundle(tmp_path / "b", base, [plain], {"plain": images}, config=FEW, unsigned=True)
    deep = perturbed(base, "deep", 2, ("scale_bias", "depthwise", "head"))
    with pytest.raises(PatchError, match="17 convolutions that this base shares"):
        export_patch(tmp_path / "b", base, deep, images, config=FEW)
    assert open_bundle(tmp_path / "b").tasks == ("plain",)


def test_what_can_be_known_first_is_refused_before_anything_is_written(base, images, tmp_path):
    patch = perturbed(base, "task", 1)
    other = Base.from_torchvision("mobilenet_v2", width_mult=0.35)
    path = tmp_path / "b"
    with pytest.raises(WrongBaseError):
        export_bundle(path, other, [patch], {"task": images}, unsigned=True)
    with pytest.raises(EmptyCalibrationError, match="no calibration images"):
        export_bundle(path, base, [patch], {"another": images}, unsigned=True)
    with pytest.raises(EmptyCalibrationError, match="0 calibration images"):
        export_bundle(path, base, [patch], {"task": images.subset([])}, unsigned=True)
    with pytest.raises(HeadCapacityError):
        export_bundle(path, base, [patch], {"task": images}, head_capacity=2, unsigned=True)
    with pytest.raises(UnknownResolutionError):
        export_bundle(
            path, base, [patch], {"task": images}, resolutions=[48], config=FEW, unsigned=True
        )
    with pytest.raises(ConfigError, match="at least 1 task"):
        export_bundle(path, base, [], {}, unsigned=True)
    assert not path.exists()


def test_calibration_images_of_one_colour_leave_no_bundle(base, images, tmp_path):
    flat = replace(images, images=np.full_like(images.images, 77))
    with pytest.raises(ThinCalibrationError, match="hold 0 different pictures"):
        export_bundle(tmp_path / "b", base, [perturbed(base, "t", 1)], {"t": flat}, unsigned=True)
    assert not (tmp_path / "b").exists()


def test_a_bundle_with_an_exact_border_answers_as_torch_at_its_edges_and_takes_later_tasks(
    images, tmp_path
):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    means = Preprocessing((0.3, 0.5, 0.7), (0.25,) * 3, 8)  # far apart, so that borders show
    network = Base.from_module(module, means, "bordered")
    patches = [perturbed(network, name, k, sizes=(8,)) for k, name in enumerate(("a", "b"))]
    data = {"a": images, "b": images}
    errors = {}
    for exact in (False, True):
        path, keys = tmp_path / str(exact), {"config": FEW, "unsigned": True}
        export_bundle(path, network, patches[:1], data, exact_border=exact, **keys)
        bundle = export_patch(path, network, patches[1], images, config=FEW)
        together = export_bundle(
            tmp_path / f"{exact} both", network, patches, data, exact_border=exact, **keys
        )
        assert together.read(together.task("b").file) == bundle.read(bundle.task("b").file)
        pixels = images.at(8, means)
        model = PatchedModel(network)
        model.load_patch(patches[0])
        model.set_active_task("a", 8)
        with torch.no_grad():
            wide = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
            expected = model((wide - torch.tensor(means.mean)[:, None, None]) / 0.25).numpy()
        with Engine.open(bundle, runtime="onnxruntime") as engine:
            scores = np.stack([engine.classify(one, task="a").scores for one in pixels])
        errors[exact] = np.linalg.norm(scores - expected) / np.linalg.norm(expected)
    # Most of an 8 x 8 map is border here; int8 alone is off by about a hundredth.
    assert errors[True] < 0.5 * errors[False]


def test_patches_without_a_common_resolution_are_listed(base):
    with pytest.raises(ConfigError, match=r"a: \[32\]; b: \[48\]"):
        common_resolutions([perturbed(base, "a", 1), perturbed(base, "b", 1, sizes=(48,))])


def test_exporting_changes_neither_patch_nor_base(base, images, tmp_path):
    patch = perturbed(base, "task", 1)
    before = {key: value.copy() for key, value in patch.tensors(32).items()}
    state = {key: value.clone() for key, value in base.module.state_dict().items()}
    export_bundle(tmp_path / "b", base, [patch], {"task": images}, config=FEW, unsigned=True)
    for key, value in patch.tensors(32).items():
        np.testing.assert_array_equal(value, before[key])
    for key, value in base.module.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_float_file_of_one_variant_gives_the_float_scores_in_litert(base, images, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    patch = perturbed(base, "task", 4, classes=10, sizes=(32, 48))
    with pytest.raises(ConfigError, match="name one resolution"):
        export_float(tmp_path / "task.tflite", base, patch)
    export_float(tmp_path / "task.tflite", base, patch, resolutions=[48])
    model = PatchedModel(base)
    model.load_patch(patch)
    model.set_active_task("task", 48)
    _, wanted = evaluate(model, images, 48, base)
    runner = Interpreter(str(tmp_path / "task.tflite")).get_signature_runner("classify_48")
    found = np.concatenate(
        [runner(image=one[None])["scores"] for one in images.at(48, base.preprocessing)[:4]]
    )
    # Some 53 layers in float32, each with a relative rounding of at most about 1e-5 (sums of up
    # to 1,000 products): 1e-3 of the scores' size leaves room, and any slip in folding is larger.
    np.testing.assert_allclose(found, wanted[:4], atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("statistics", ["frozen", "reestimated", "batch"])
def test_trained_patches_of_every_kind_of_statistics_run_as_their_float_network(
    base, images, tmp_path, statistics
):
    config = PatchConfig(statistics=statistics)
    settings = TrainConfig(epochs=1, batch_size=8)
    patch = train_patch(base, images, settings, config, resolutions=[48], task="t", quiet=True)
    export_bundle(
        tmp_path / "b", base, [patch], {"t": images}, config=FEW, float_files=True, unsigned=True
    )
    model = PatchedModel(base)
    model.load_patch(patch)
    float_top1, wanted = evaluate(model, images, 48, base)
    report = verify_bundle(tmp_path / "b", images)
    assert report.ok, [check.detail for check in report.failures]
    rows = [check.numbers for check in report.checks if check.name == "accuracy"]
    assert len(rows) == 2
    for row in rows:  # the float file in the bundle is the trained network
        assert row["float_top1"] == pytest.approx(float_top1, abs=1e-6)
        assert row["drop_points"] == pytest.approx(100 * (row["float_top1"] - row["int8_top1"]))
    with Engine.open(tmp_path / "b") as engine:
        found = engine.logits(images.at(48, base.preprocessing), "t", 48)
    # As in the test above: unrelated scores would correlate near 0.
    centred = [scores - scores.mean(axis=0) for scores in (found, wanted)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.9


def test_each_resolution_of_a_task_is_its_own_variant(base, images, tmp_path):
    patch = perturbed(base, "task", 5, sizes=(32, 48))
    bundle = export_bundle(
        tmp_path / "b", base, [patch], {"task": images}, config=FEW, unsigned=True
    )
    assert bundle.manifest.resolutions == (32, 48)
    values = bundle.patch("task").values
    assert not np.array_equal(values[32].weight_scale, values[48].weight_scale)
    report = verify_bundle(bundle.path, images, limit=4, reference_limit=2)
    assert report.ok, [check.detail for check in report.failures]


@pytest.mark.parametrize(
    ("px", "side"),
    [
        (12, 6),  # its window of 4x4 would leave one value where the last layer reads four
        (20, 10),  # it would leave four, of other windows than training's
    ],
)
def test_a_pooling_to_more_than_one_value_serves_one_resolution(images, tmp_path, px, side):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 3),
    ).eval()
    pooled = Base.from_module(module, Preprocessing(input_size=16), "pooled", "5")
    patch = perturbed(pooled, "first", 1, sizes=(16, px))
    told = []
    with pytest.raises(UnknownResolutionError) as caught:
        export_bundle(
            tmp_path / "bundle", pooled, [patch], {"first": images}, config=FEW,
            progress=told.append, unsigned=True)  # fmt: skip
    assert str(caught.value) == (
        f"{px}x{px} px would give '3.average' a map of {side}x{side}; it pools adaptively to more "
        "than 1x1, which was lowered for 8x8; choose a resolution that gives this map, or pool to "
        "1x1 (AdaptiveAvgPool2d(1)) and train again"
    )
    assert told == []  # before the first image is run
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(UnknownResolutionError, match=r"would give '3.average' a map of"):
        FloatRunner(fold_patch(lower_base(pooled)))(np.zeros((1, px, px, 3), np.uint8))
    bundle = export_bundle(
        tmp_path / "bundle",
        pooled,
        [patch],
        {"first": images},
        resolutions=(16,),
        config=FEW,
        unsigned=True,
    )
    assert verify_bundle(bundle.path, {"first": images}, reference_limit=2).ok


def test_a_task_name_twice_is_refused_before_anything_is_written(base, images, tmp_path):
    patch = perturbed(base, "task", 1)
    with pytest.raises(AlreadyAttachedError, match="'task' is there 2 times"):
        export_bundle(
            tmp_path / "b", base, [patch, patch], {"task": images}, config=FEW, unsigned=True
        )
    export_bundle(tmp_path / "b", base, [patch], {"task": images}, config=FEW, unsigned=True)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(AlreadyAttachedError, match="'task' is in bundle"):
        export_patch(tmp_path / "b", base, patch, images, config=FEW)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_at_the_last_task_leaves_no_bundle_at_all(
    base, images, tmp_path, monkeypatch
):
    """The base and the first patch are written by then; neither may be taken for the bundle."""
    patches = [perturbed(base, "first", 1), perturbed(base, "second", 2)]
    whole = bundle_module.write_inside

    def fill_up(folder, name, data):
        if name == "patches/second.pdp":
            raise StorageError(f"cannot write {name}: full") from OSError(28, "No space left")
        whole(folder, name, data)

    monkeypatch.setattr(bundle_module, "write_inside", fill_up)
    with pytest.raises(StorageError, match=r"bundle .*/b: No space left; free space"):
        export_bundle(
            tmp_path / "b",
            base,
            patches,
            {"first": images, "second": images},
            config=FEW,
            unsigned=True,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_task_is_replaced_by_its_next_version(base, images, tmp_path):
    first, second = perturbed(base, "task", 1), perturbed(base, "task", 2)
    place = tmp_path / "b"
    before = export_bundle(place, base, [first], {"task": images}, config=FEW, unsigned=True)
    kept, numbers = base_hashes(place), [before.header("task").sequence]
    for patch, options, error, words in (
        (second, {}, AlreadyAttachedError, "replace that task or remove it"),
        (second, {"replace_existing": True, "sequence": 1}, ConfigError, "sequence 1 for task"),
        (perturbed(base, "other", 3), {"replace_existing": True}, UnknownTaskError, "no task"),
    ):
        with pytest.raises(error, match=words):
            export_patch(place, base, patch, images, config=FEW, **options)
    after = export_patch(place, base, second, images, config=FEW, replace_existing=True)
    assert [*numbers, after.header("task").sequence] == [1, 2]
    assert after.tasks == ("task",)
    assert base_hashes(place) == kept
    assert verify_bundle(place).ok


@pytest.mark.parametrize("place", ["circle/b", "circle", "/proc/none/b", "."])
def test_a_place_that_cannot_take_a_bundle_is_refused_before_the_work(
    base, images, tmp_path, monkeypatch, place
):
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_module.Exporter, "prepare", None)  # the work
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    path = place if place.startswith(("/", ".")) else tmp_path / place
    with pytest.raises((ConfigError, StorageError)):
        export_bundle(
            path, base, [perturbed(base, "task", 1)], {"task": images}, config=FEW, unsigned=True
        )


def test_progress_names_each_task_and_resolution(base, images, tmp_path):
    seen = []
    patch = perturbed(base, "task", 1, sizes=(32, 48))
    export_bundle(
        tmp_path / "b",
        base,
        [patch],
        {"task": images},
        config=FEW,
        progress=seen.append,
        unsigned=True,
    )
    assert seen[:2] == [f"task at {px} px, 16 calibration images" for px in (32, 48)]
    measured = [f"task at {px} px, int8 against float: signal to noise" for px in (32, 48)]
    assert [line.startswith(start) for line, start in zip(seen[2:], measured, strict=True)] == [
        True,
        True,
    ]


def test_calibration_images_come_from_all_of_a_set_that_is_sorted_by_class(images):
    ordered = images.subset(np.argsort(images.labels, kind="stable"))
    assert len(set(spread(ordered, 10).labels.tolist())) > 5
    assert len(spread(images, 1000)) == len(images)


def test_coding_is_judged_by_labels_matched_by_name_or_by_the_networks_own_answers(
    base, images, tmp_path, monkeypatch
):
    """Datasets name the same classes in another order, other classes, or none."""
    patch = perturbed(base, "task", 1, classes=10)
    turned = replace(images, classes=images.classes[::-1], labels=9 - images.labels)
    nameless = replace(images, classes=("",), labels=0 * images.labels)
    judged = []

    def stop(values, labels, table, score, *more, **others):
        judged.append((labels, score(32, values[32]).argmax(axis=1)))
        raise StorageError("far enough")

    monkeypatch.setattr(export_module, "choose_steps", stop)
    for dataset in (images, turned, nameless):
        with pytest.raises(StorageError):
            export_bundle(
                tmp_path / "b",
                base,
                [patch],
                {"task": dataset},
                config=FEW,
                coding=CodingConfig(),
                unsigned=True,
            )
    (first, answers), (second, _), (third, _) = judged
    assert np.array_equal(first, images.labels)
    assert np.array_equal(second, images.labels)
    assert np.array_equal(third, answers)
    assert not np.array_equal(first, answers)


def test_coding_keeps_its_budget_on_validation_images_where_there_are_some(base, images, tmp_path):
    patch = perturbed(base, "task", 1, classes=10)
    few = images.subset(range(31))
    with pytest.raises(DataError, match="31 validation images; choosing steps needs at least 32"):
        export_bundle(
            tmp_path / "b",
            base,
            [patch],
            {"task": images},
            config=FEW,
            coding=CodingConfig(),
            validation={"task": few},
            unsigned=True,
        )
    export_bundle(tmp_path / "b", base, [patch], {"task": images}, config=FEW, unsigned=True)
    other = perturbed(base, "other", 2, classes=10)
    with pytest.raises(DataError, match="31 validation images"):
        export_patch(
            tmp_path / "b", base, other, images, config=FEW, coding=CodingConfig(), validation=few
        )


def test_a_bundle_is_unsigned_only_where_that_is_said(base, images, tmp_path):
    patch = perturbed(base, "task", 1)
    key = SigningKey.from_seed(bytes(32))
    signing = Signing(TrustedKeys((key.public,), threshold=1), (key,))
    for given, unsigned, who in (("neither", False, None), ("both", True, signing)):
        with pytest.raises(ConfigError) as caught:
            export_bundle(
                tmp_path / "b", base, [patch], {"task": images}, signing=who, unsigned=unsigned
            )
        assert str(caught.value) == (
            f"{given} of signing and unsigned given; a bundle pins the keys that its patches must "
            "be signed by, or says that it is for development; pass signing=Signing(...) or "
            "unsigned=True"
        )
        assert not (tmp_path / "b").exists()
