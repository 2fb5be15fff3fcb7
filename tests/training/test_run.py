"""Whole runs from a config: every method leaves what it says, and goes on where it was stopped."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from patchdeploy.base import Base
from patchdeploy.data import OverlapWarning, load_packaged
from patchdeploy.errors import (
    BaseError,
    CheckpointError,
    ConfigError,
    DataError,
    FileFormatError,
    IntegrityError,
    PatchdeployError,
    TrainingError,
)
from patchdeploy.named import open_base, open_images
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.training import TrainConfig, run_methods
from patchdeploy.training.resolutions import ResolutionsConfig
from patchdeploy.training.run import open_task, run_training
from patchdeploy.training.run_config import (
    METHODS,
    LoaderConfig,
    RunConfig,
    TaskConfig,
    WorkersConfig,
)
from patchdeploy.training.run_methods import METHODS as TABLE
from patchdeploy.training.run_teacher import open_teacher

SHORT = TrainConfig(epochs=1, batch_size=8, device="cpu")


def write_images(root: Path, name: str, per_class: int, classes: int, first: int = 0) -> str:
    """A folder per class of real images."""
    train, _ = load_packaged(name)
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        chosen = np.flatnonzero(train.labels == label)[first : first + per_class]
        for index in chosen:
            Image.fromarray(np.asarray(train.images[index])).save(folder / f"{index}.png")
    return str(root)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskConfig]:
    """Two tasks of real images: digits of three classes, garments of two."""
    root = tmp_path_factory.mktemp("images")
    return {
        task: TaskConfig(
            task,
            write_images(root / task, name, 10, classes),
            test=write_images(root / f"{task}-test", name, 4, classes, first=20),
        )
        for task, name, classes in (("digits", "optical_digits", 3), ("garments", "fashion", 2))
    }


pytestmark = pytest.mark.usefixtures("one_thread")


def make_config(out: Path, method: str, *tasks: TaskConfig, **changes: object) -> RunConfig:
    given = {"training": SHORT, "resolutions": (32,), **changes}
    return RunConfig(method, out=str(out), tasks=tasks, **given)  # type: ignore[arg-type]


def run(config: RunConfig, **options: bool) -> dict:
    result = run_training(config, quiet=True, **options)
    assert json.loads((result.folder / "summary.json").read_text()) == result.summary
    return dict(result.summary)


def test_transfer_leaves_a_patch_for_each_task(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    config = make_config(tmp_path / "run", "transfer", *images.values(), resolutions=(48, 32))
    summary = run(config)
    assert set(summary["tasks"]) == set(images)
    for name, found in summary["tasks"].items():
        patch = Patch.from_pretrained(tmp_path / "run" / found["patch"])
        assert patch.task == name
        assert patch.base_sha256 == summary["base"]["sha256"]
        assert patch.resolutions == (32, 48)
        assert set(found["test_top1"]) == set(found["validation_top1"]) == {"32", "48"}
        assert (found["images"], found["test_images"]) == (
            10 * found["classes"],
            4 * found["classes"],
        )
        for file in ("metrics.jsonl", "curves.png", "tensorboard", "32.pt", "48.pt"):
            assert (tmp_path / "run" / name / file).exists()


def test_a_baseline_leaves_a_network_that_is_a_base_and_a_teacher(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    task = images["digits"]
    config = make_config(tmp_path / "all", "baseline", task)
    found = run(config)["tasks"]["digits"]
    form = f"trained:{tmp_path / 'all' / found['network']}"
    base = open_base(form)
    assert base.name == "patchdeploy/embedded+digits"
    assert base.module.get_submodule(base.head_name).out_features == 3
    embedded = Base.embedded()
    key = "features.0.0.weight"
    assert not torch.equal(base.module.state_dict()[key], embedded.module.state_dict()[key])

    teacher = open_teacher(
        form, "digits", open_images(task.images).classes, base.preprocessing, torch.device("cpu")
    )
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher(inputs), base.module(inputs))
    plain = run(make_config(tmp_path / "plain", "transfer", task))
    taught = run(make_config(tmp_path / "taught", "transfer", replace(task, teacher=form)))
    patches = [
        Patch.from_pretrained(tmp_path / name / "patches" / "digits")
        for name in ("plain", "taught")
    ]
    head = f"{embedded.head_name}.weight"
    assert not np.array_equal(*(patch.tensors(32)[head] for patch in patches))
    assert plain["tasks"].keys() == taught["tasks"].keys()
    over = run(make_config(tmp_path / "over", "transfer", task, base=form))
    assert over["base"]["sha256"] == base.sha256


def test_a_teacher_that_normalises_otherwise_sees_the_same_pixels(
    images: dict[str, TaskConfig],
) -> None:
    teacher = Base.embedded()
    own = teacher.preprocessing
    student = replace(own, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channel_order="BGR")
    classes = tuple(str(k) for k in range(10))
    forward = open_teacher("embedded", "digits", classes, student, torch.device("cpu"))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))  # RGB in [0, 1]

    def normalise(values: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
        shape = (1, 3, 1, 1)
        return (values - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)

    expected = teacher.module(normalise(pixels, own.mean, own.std))
    found = forward(normalise(pixels.flip(1), student.mean, student.std))
    # Two roundings more of inputs of at most 3 in absolute value: 2 * 3 * 2^-24 = 4e-7 each; this
    # network's scores move by less than a hundred times its input's change (measured: 3e-6 here).
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-5)


def test_a_teacher_of_other_classes_is_refused(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    task = replace(images["digits"], teacher="embedded")
    with pytest.raises(ConfigError) as caught:
        run(make_config(tmp_path / "run", "transfer", task))
    assert str(caught.value) == (
        "[[task]] 'digits': teacher 'embedded' answers with 10 classes [], the task has 3 "
        "['class-0', 'class-1', 'class-2']; both need the same in the same order; train a teacher "
        "on this task (method baseline)"
    )


def test_joint_training_leaves_a_base_and_a_patch_for_each_task_over_it(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    own = [images["digits"], replace(images["garments"], augment="shift", weight=0.5)]
    config = make_config(tmp_path / "run", "tasks", *own, patch=PatchConfig(statistics="batch"))
    summary = run(config)
    base = open_base(f"trained:{tmp_path / 'run' / summary['network']}")
    assert base.sha256 != summary["base"]["sha256"]
    for found in summary["tasks"].values():
        patch = Patch.from_pretrained(tmp_path / "run" / found["patch"])
        assert patch.base_sha256 == base.sha256
        assert 0 <= found["test_top1"]["32"] <= 1


@pytest.mark.parametrize("learn", ["all", "patch"])
def test_one_network_at_two_resolutions_leaves_one_patch(
    tmp_path: Path, images: dict[str, TaskConfig], learn: str
) -> None:
    sharing = ResolutionsConfig(learn=learn, statistics="frozen")  # type: ignore[arg-type]
    config = make_config(
        tmp_path / "run", "resolutions", images["garments"], resolutions=(48, 32), sharing=sharing
    )
    summary = run(config)
    found = summary["tasks"]["garments"]
    patch = Patch.from_pretrained(tmp_path / "run" / found["patch"])
    assert patch.resolutions == (32, 48)
    if learn == "all":
        base = open_base(f"trained:{tmp_path / 'run' / summary['network']}")
        assert patch.base_sha256 == base.sha256
    else:
        assert "network" not in summary
        assert patch.base_sha256 == summary["base"]["sha256"]


def test_many_patches_over_one_base_are_trained_at_once(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    summary = run(make_config(tmp_path / "run", "many", *images.values()))
    for name, found in summary["tasks"].items():
        patch = Patch.from_pretrained(tmp_path / "run" / found["patch"])
        assert (patch.task, patch.base_sha256) == (name, summary["base"]["sha256"])
        assert set(found["test_top1"]) == {"32"}


def test_a_patch_is_retuned_for_int8(
    tmp_path: Path, images: dict[str, TaskConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[int] = []
    real = run_methods.open_int8
    note = lambda *given: tested.append(given[2]) or real(*given)  # noqa: E731
    monkeypatch.setattr(run_methods, "open_int8", note)
    run(make_config(tmp_path / "float", "transfer", images["digits"]))
    folder = tmp_path / "float/patches/digits"
    training = replace(SHORT, learning_rate=2e-3)  # through int8 without being told so
    task = replace(images["digits"], patch=str(folder))
    config = make_config(tmp_path / "run", "int8_retune", task, training=training, resolutions=())
    found = run(config)["tasks"]["digits"]
    assert set(found["validation_top1"]) == set(found["validation_top1_before"]) == {"32"}
    assert found["validation_top1"]["32"] >= found["validation_top1_before"]["32"]
    assert 0 <= found["test_top1"]["32"] <= 1
    patch = Patch.from_pretrained(tmp_path / "run" / found["patch"])
    assert patch.metrics["int8_retune"]["settings"]["through_int8"]
    assert (tmp_path / "run/32.pt").exists()
    assert "through_int8 = true" in (tmp_path / "run/config.toml").read_text()
    assert tested == [32]  # the test images go through int8 too
    assert run(config, resume=True)["tasks"]["digits"] == found


def test_a_teachers_settings_are_for_the_task_that_has_one(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    found = run(make_config(tmp_path / "all", "baseline", images["digits"]))["tasks"]["digits"]
    taught = replace(images["digits"], teacher=f"trained:{tmp_path / 'all' / found['network']}")
    training = replace(SHORT, distillation_weight=0.7, temperature=2.0)
    for method in ("transfer", "baseline"):
        out = tmp_path / method
        run(make_config(out, method, taught, images["garments"], training=training))
    patches = (Patch.from_pretrained(tmp_path / f"transfer/patches/{name}") for name in images)
    settings = [patch.metrics["settings"] for patch in patches]
    assert [one["distillation_weight"] for one in settings] == [0.7, 0.5]
    assert [one["temperature"] for one in settings] == [2.0, 1.0]


def test_every_method_has_a_function() -> None:
    assert set(TABLE) == set(METHODS)


def test_a_finished_run_resumes_to_the_same_summary_without_training(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    config = make_config(tmp_path / "run", "transfer", images["digits"])
    first = run(config)
    patch = (tmp_path / "run/patches/digits/patch.safetensors").read_bytes()
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    again = run(config, resume=True)
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert (tmp_path / "run/patches/digits/patch.safetensors").read_bytes() == patch
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base": "mobilenet"}, ConfigError),
        ({"resolutions": (8,)}, ConfigError),
        ({"tasks": (TaskConfig("x", "nowhere"),)}, DataError),
        ({"patch": PatchConfig(("head",), include=("nothing*",))}, PatchdeployError),
        ({"workers": WorkersConfig((1,))}, ConfigError),
        ({"training": replace(SHORT, learning_rate=3e38)}, TrainingError),
    ],
)
def test_a_run_that_fails_before_its_first_epoch_leaves_the_folder_free(
    tmp_path: Path, images: dict[str, TaskConfig], change: dict, error: type[Exception]
) -> None:
    good = make_config(tmp_path / "run", "transfer", images["digits"])
    with pytest.raises(error):
        run_training(replace(good, **change), quiet=True)
    run(good)


def test_ranks_that_nobody_started_are_refused(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    config = make_config(tmp_path / "run", "tasks", *images.values(), workers=WorkersConfig((2, 1)))
    with pytest.raises(ConfigError) as caught:
        run_training(config)
    assert str(caught.value) == (
        "[workers] ranks_per_task = [2, 1] and 1 rank; torchrun starts several; run torchrun "
        "--nproc-per-node N -m patchdeploy train CONFIG.toml, or remove the line"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("base", "error", "remedy"),
    [
        ("embeded", ConfigError, "; did you mean 'embedded'?"),
        ("torchvison:mobilenet_v2", ConfigError, "; did you mean 'torchvision'?"),
        ("torchvision:mobilnet_v2", BaseError, "; did you mean 'mobilenet_v2'?"),
        ("torchvision:alexnet@IMAGENET1K_V2", BaseError, "; did you mean 'IMAGENET1K_V1'?"),
        ("checkpoint:mobilenet:x.pt", BaseError, "; did you mean 'mobilenet_v2'?"),
        ("detector:ssd300_vgg", BaseError, "; did you mean 'ssd300_vgg16'?"),
        ("zzz", ConfigError, "; correct it"),
    ],
)
def test_a_base_that_is_misspelt_names_the_nearest(
    tmp_path: Path,
    images: dict[str, TaskConfig],
    base: str,
    error: type[PatchdeployError],
    remedy: str,
) -> None:
    with pytest.raises(error) as caught:
        run_training(make_config(tmp_path / "run", "transfer", images["digits"], base=base))
    assert str(caught.value).endswith(remedy)


def test_a_packaged_set_that_is_misspelt_names_the_nearest(tmp_path: Path) -> None:
    task = TaskConfig("digits", "packaged:optical_digit:train")
    with pytest.raises(DataError) as caught:
        run_training(make_config(tmp_path / "run", "transfer", task))
    assert str(caught.value) == (
        "unknown packaged set 'optical_digit'; there are digits, faces, fashion, optical_digits, "
        "surfaces; did you mean 'optical_digits'?"
    )


def test_a_checkpoint_of_the_same_network_with_another_head_is_a_base_too(tmp_path: Path) -> None:
    """From TOML the file says how many classes; from Python the message does."""
    module = torchvision.models.mobilenet_v2(num_classes=7)
    file = tmp_path / "seven.pt"
    torch.save(module.state_dict(), file)
    base = open_base(f"checkpoint:mobilenet_v2:{file}")
    for key, value in module.state_dict().items():
        assert torch.equal(base.module.state_dict()[key], value)
    other = torchvision.models.mobilenet_v2()
    with pytest.raises(CheckpointError) as caught:
        Base.from_checkpoint(file, other, base.preprocessing)
    assert str(caught.value) == (
        f"checkpoint {file} does not fit the network: classifier.1.weight is [7, 1280], not "
        "[1000, 1280]; classifier.1.bias is [7], not [1000]; layer classifier.1 has 7 rows in the "
        "checkpoint; build the network with as many classes (each patch brings a head of its own)"
    )
    with pytest.raises(CheckpointError, match=r"; use the checkpoint of this architecture$"):
        open_base(f"checkpoint:mobilenet_v3_small:{file}")


def test_test_images_of_other_classes_are_refused(images: dict[str, TaskConfig]) -> None:
    task = replace(images["digits"], test=images["garments"].test)
    with pytest.raises(DataError) as caught:
        open_task(task, LoaderConfig())
    assert str(caught.value) == (
        "task 'digits': the test images have classes ['class-0', 'class-1'], the training images "
        "['class-0', 'class-1', 'class-2']; both need the same; correct the folders"
    )


def test_training_images_among_the_test_images_are_named(images: dict[str, TaskConfig]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_task(images["digits"], LoaderConfig())  # none in both: no warning
    digits = images["digits"]
    with pytest.warns(OverlapWarning, match="30 of 30 test images"):
        open_task(replace(digits, test=digits.images), LoaderConfig())
    with pytest.warns(OverlapWarning, match="30 of 30 validation images of .* are training images"):
        open_task(replace(digits, validation=digits.images), LoaderConfig())


def test_a_broken_image_is_skipped_and_counted_if_asked(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    folder = write_images(tmp_path / "images", "fashion", 10, 2)
    next((tmp_path / "images" / "class-0").iterdir()).write_bytes(b"no image")
    task = replace(images["garments"], images=folder)
    loader = LoaderConfig(workers=2, cache=str(tmp_path / "cache"), on_broken="skip")
    summary = run(make_config(tmp_path / "run", "transfer", task, loader=loader))
    assert summary["tasks"]["garments"]["skipped_images"] == 1
    assert summary["tasks"]["garments"]["images"] == 19
    assert list((tmp_path / "cache").iterdir())


def test_a_trained_network_that_was_tampered_with_is_refused(
    tmp_path: Path, images: dict[str, TaskConfig]
) -> None:
    run(make_config(tmp_path / "run", "baseline", images["garments"], trained="head"))
    folder = tmp_path / "run/networks/garments"
    form = f"trained:{folder}"
    open_base(form)
    data = bytearray((folder / "network.safetensors").read_bytes())
    data[-3] ^= 1  # the last value's bits
    (folder / "network.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="the two files belong together; copy both again"):
        open_base(form)
    (folder / "network.json").unlink()
    with pytest.raises(FileFormatError) as caught:
        open_base(form)
    assert str(caught.value) == (
        f"{folder / 'network.json'} cannot be read (FileNotFoundError); a trained network is a "
        "folder with network.json and network.safetensors, which methods baseline, tasks and "
        "resolutions leave; name that folder"
    )
