"""Training on real images: it learns, repeats and resumes to the bit, and says what failed."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, load_image_folder, load_packaged
from patchdeploy.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteLossError,
    TrainingError,
)
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel, random_head
from patchdeploy.training import TrainConfig, evaluate, train_baseline, train_patch
from patchdeploy.training.loop import EpochRecord, fit
from patchdeploy.training.preparation import split_images
from patchdeploy.training.samples import PASS_STRIDE, Samples, Source
from patchdeploy.training.trainee import Trainee
from patchdeploy.training.transfer import SingleLoss

SHORT = TrainConfig(epochs=2, batch_size=32, seed=3, device="cpu")


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.embedded()


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    """300 and 200 real scans of handwritten digits."""
    train, test = load_packaged("optical_digits")
    return train.subset(range(0, 1196, 4)), test.subset(range(0, 598, 3))


pytestmark = pytest.mark.usefixtures("one_thread")


def kind_of(key: str, dimensions: int, base: Base) -> str:
    if key.startswith(base.head_name):
        return "head"
    return "depthwise" if dimensions == 4 else "scale_bias"


def assert_same(one: Patch, other: Patch) -> None:
    assert one.resolutions == other.resolutions
    for px in one.resolutions:
        for key, value in one.tensors(px).items():
            np.testing.assert_array_equal(value, other.tensors(px)[key], err_msg=key)


def test_a_patch_learns_real_digits_at_two_resolutions(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    train, test = digits
    before = {key: value.numpy().tobytes() for key, value in base.module.state_dict().items()}
    config = replace(SHORT, epochs=4)
    patch = train_patch(base, train, config, resolutions=(32, 48), quiet=True)
    assert patch.resolutions == (32, 48)
    assert patch.base_sha256 == base.sha256
    model = PatchedModel(base)
    model.load_patch(patch)
    for px in patch.resolutions:
        model.set_active_task(train.name, px)
        top1, scores = evaluate(model, test, px, base)
        assert scores.shape == (len(test), 10)
        # Guessing gets 10 % of 200 right; nine standard deviations of that is 29 %.
        assert top1 > 0.5
    head = f"{base.head_name}.weight"
    np.testing.assert_array_equal(patch.tensors(32)[head], patch.tensors(48)[head])
    scale = "features.1.conv.2.weight"
    assert not np.array_equal(patch.tensors(32)[scale], patch.tensors(48)[scale])
    assert before == {k: v.numpy().tobytes() for k, v in base.module.state_dict().items()}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    train = digits[0].subset(range(96))
    config = replace(SHORT, augment="shift_flip")
    runs = [
        train_patch(base, train, replace(config, seed=seed), resolutions=(32,), quiet=True)
        for seed in (3, 3, 4)
    ]
    assert_same(runs[0], runs[1])
    head = f"{base.head_name}.weight"
    assert not np.array_equal(runs[0].tensors(32)[head], runs[2].tensors(32)[head])


@pytest.mark.parametrize("statistics", ["frozen", "reestimated", "batch"])
def test_scales_stay_positive_at_a_rate_that_would_flip_them(
    base: Base, digits: tuple[ImageDataset, ImageDataset], statistics: str
) -> None:
    train = digits[0].subset(range(64))
    config = replace(SHORT, epochs=1, learning_rate=0.5, early_best=False)
    patch_config = PatchConfig(statistics=statistics)  # type: ignore[arg-type]
    patch = train_patch(base, train, config, patch_config, resolutions=(32,), quiet=True)
    state = base.module.state_dict()
    tensors = patch.tensors(32)
    norms = [key[: -len(".running_mean")] for key in tensors if key.endswith(".running_mean")]
    at_floor = 0
    for norm in norms:
        gamma, floor = tensors[f"{norm}.weight"], 1e-3 * state[f"{norm}.weight"].numpy()
        assert (gamma >= floor).all(), norm
        at_floor += int((gamma == floor).sum())
    if statistics == "frozen":
        assert at_floor > 0  # the bound was needed
    moved = not np.array_equal(
        tensors[f"{norms[0]}.running_mean"], state[f"{norms[0]}.running_mean"].numpy()
    )
    assert moved == (statistics != "frozen")


@pytest.mark.parametrize("kinds", [("scale_bias",), ("depthwise",), ("head",)])
def test_only_the_chosen_kinds_are_trained(
    base: Base, digits: tuple[ImageDataset, ImageDataset], kinds: tuple[str, ...]
) -> None:
    train = digits[0].subset(range(64))
    patch_config = PatchConfig(kinds)  # type: ignore[arg-type]
    config = replace(SHORT, epochs=1, early_best=False)
    patch = train_patch(base, train, config, patch_config, resolutions=(32,), quiet=True)
    state = {**base.module.state_dict(), **random_head(base, 10, patch_config.head_seed)}
    changed = {
        kind_of(key, value.ndim, base)
        for key, value in patch.tensors(32).items()
        if not np.array_equal(value, state[key].numpy())
    }
    assert changed == set(kinds)


def test_the_best_epoch_is_kept_and_each_epoch_is_a_json_line(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    train = digits[0].subset(range(96))
    config = replace(SHORT, epochs=3)
    patch = train_patch(
        base, train, config, PatchConfig(("head",)), resolutions=(32,), run_dir=tmp_path, quiet=True
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    best = max(line["validation_top1"] for line in lines)
    assert patch.metrics["validation_top1"]["32"] == round(best, 4)
    assert all(line["images_per_second"] > 0 for line in lines)


RUN = """
import sys
import time
from pathlib import Path
import torch
from patchdeploy.base import Base
from patchdeploy.data import load_packaged
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training import loop
torch.set_num_threads(1)
if sys.argv[2] == "wait":
    apply, steps = loop._Run._apply_gradients, []
    def wait(run):
        steps.append(run.position.step)
        if len(steps) == 6:
            print("waiting", flush=True)
            time.sleep(600)
        apply(run)
    loop._Run._apply_gradients = wait
train = load_packaged("optical_digits")[0].subset(range(0, 1196, 8))
config = TrainConfig(epochs=3, batch_size=32, augment="shift", device="cpu", share_head=False)
folder = Path(sys.argv[1])
patch = train_patch(Base.embedded(), train, config, resolutions=(32,), run_dir=folder / "run",
                    resume=True, quiet=True)
patch.save_pretrained(folder / "patch")
"""


def test_a_run_that_is_killed_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """In the second epoch of three, where it waits for the kill: an epoch has 4 steps."""

    def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUN, str(folder), *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    killed = start(tmp_path / "killed", "wait")
    assert killed.stdout is not None
    told = killed.stdout.readline()  # nothing, where it has ended
    killed.kill()
    _, errors = killed.communicate()
    assert (told, killed.returncode) == (b"waiting\n", -signal.SIGKILL), errors.decode()
    assert not (tmp_path / "killed" / "patch").exists()
    checkpoint = torch.load(tmp_path / "killed" / "run" / "32.pt", weights_only=True)
    assert (checkpoint["position"]["epoch"], checkpoint["position"]["step"]) == (1, 0)
    for name in ("killed", "whole"):
        run = start(tmp_path / name, "run")
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors.decode()
    patches = [Patch.from_pretrained(tmp_path / name / "patch") for name in ("killed", "whole")]
    assert_same(*patches)
    assert patches[0].metrics == patches[1].metrics


def line_trainee(config: TrainConfig) -> Trainee:
    """Two clusters of real numbers and a linear layer: the loop alone."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    samples = Samples(torch.randn(64, 4, generator=generator) + labels[:, None], labels, None)
    weight = torch.zeros(2, 4, requires_grad=True)

    def forward(inputs: Tensor) -> Tensor:
        return inputs @ weight.T

    return Trainee(
        name="line",
        sources=(Source("line", samples, samples, classes=2, batch_size=config.batch_size),),
        groups={"head": {"w": weight}},
        state={"w": weight},
        floors={},
        losses=SingleLoss(forward, config, torch.device("cpu")),
        predict=lambda _, inputs: forward(inputs),
    )


@pytest.mark.parametrize("recipe", ["modern", "paper"])
def test_the_loop_resumes_after_every_epoch_to_the_same_bits(tmp_path: Path, recipe: str) -> None:
    config = TrainConfig(epochs=4, batch_size=16, recipe=recipe, device="cpu")  # type: ignore[arg-type]
    whole = line_trainee(config)
    fit(whole, config)
    for stop in (1, 2, 3):
        path = tmp_path / f"{stop}.pt"

        def interrupt(record: EpochRecord, stop: int = stop) -> None:
            if record.epoch == stop + 1:  # after `stop` epochs are in the checkpoint
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(line_trainee(config), config, checkpoint=path, on_epoch=interrupt)
        resumed = line_trainee(config)
        fit(resumed, config, checkpoint=path, resume=True)
        assert torch.equal(resumed.trained["w"], whole.trained["w"])
    assert not torch.equal(whole.trained["w"], torch.zeros(2, 4))


@pytest.mark.parametrize("change", ["epochs", "images", "patch", "damage"])
def test_a_checkpoint_of_another_run_is_refused(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path, change: str
) -> None:
    images, config, patch_config = digits[0].subset(range(48)), SHORT, PatchConfig(("scale_bias",))
    arguments = {"resolutions": (32,), "run_dir": tmp_path, "quiet": True}
    train_patch(base, images, replace(config, epochs=1), patch_config, **arguments)  # type: ignore[arg-type]
    config = replace(config, epochs=2 if change == "epochs" else 1)
    if change == "images":
        images = digits[0].subset(range(1, 49))
    if change == "patch":
        patch_config = PatchConfig(("scale_bias",), statistics="batch")
    if change == "damage":
        (tmp_path / "32.pt").write_bytes((tmp_path / "32.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read" if change == "damage" else "other"):
        train_patch(base, images, config, patch_config, resume=True, **arguments)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_names_the_step_and_the_remedy(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    config = replace(SHORT, learning_rate=3e38)
    with pytest.raises(TrainingError) as caught:
        train_patch(base, digits[0].subset(range(96)), config, resolutions=(32,), quiet=True)
    message = str(caught.value)
    assert message.startswith("optical_digits@32: the loss is ")
    assert "at epoch 1, step " in message
    assert message.endswith("it must stay finite; try a tenth of the learning rate")


@pytest.mark.parametrize("files", [True, False])
def test_a_loss_that_is_not_finite_names_the_images_as_the_user_knows_them(
    base: Base, tmp_path: Path, files: bool
) -> None:
    """Their files, or their positions in the set that was given, of which a part is held out."""
    given, _ = load_packaged("surfaces")
    given = given.subset(range(0, len(given), 15))
    if files:
        for k, label in enumerate(given.labels):
            folder = tmp_path / given.classes[label]
            folder.mkdir(exist_ok=True)
            Image.fromarray(np.asarray(given.images[k])).save(folder / f"{k}.png")
        given = load_image_folder(tmp_path)
    with pytest.raises(NonFiniteLossError) as caught:
        train_patch(base, given, replace(SHORT, learning_rate=3e38), resolutions=(32,), quiet=True)
    found = re.search(r"step (\d+) \(images (.*), \.\.\.\)", str(caught.value))
    assert found is not None
    kept, held = split_images(given, None, SHORT)
    assert len(held) > 0
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(3 * PASS_STRIDE))
    first = (int(found[1]) - 1) * SHORT.batch_size
    for name, index in zip(found[2].split(", "), order[first : first + 5].tolist(), strict=True):
        image = np.asarray(Image.open(name)) if files else given.images[int(name)]
        np.testing.assert_array_equal(image, kept.images[index])


def test_a_set_of_one_class_or_none_and_a_patch_of_nothing_are_refused(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    train = digits[0]
    with pytest.raises(DataError, match="0 images of 0 classes"):
        train_patch(base, train.subset([]), SHORT, quiet=True)
    zeros = train.subset(np.flatnonzero(train.labels == 0))
    with pytest.raises(DataError, match="images of 1 classes"):
        train_baseline(base, zeros, "head", SHORT, quiet=True)
    with pytest.raises(ConfigError, match="select nothing to train"):
        train_patch(base, train, SHORT, PatchConfig(()), resolutions=(32,), quiet=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown training key 'epoch'; .* did you mean 'epochs'"),
        ({"epochs": 0}, "training epochs=0; it must be at least 1; correct it"),
        ({"recipe": "fast"}, "training recipe='fast'; it must be modern or paper; correct it"),
        ({"learning_rate": -1.0}, "training learning_rate=-1.0; it must be positive; correct it"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_json(values)


def test_settings_survive_json() -> None:
    config = TrainConfig(epochs=3, recipe="paper", learning_rate=0.1, augment="shift")
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("which", ["head", "all"])
def test_a_baseline_learns_and_leaves_the_base_alone(
    base: Base, digits: tuple[ImageDataset, ImageDataset], which: str
) -> None:
    train, test = digits
    before = {key: value.numpy().tobytes() for key, value in base.module.state_dict().items()}
    result = train_baseline(base, train, which, SHORT, resolution=32, quiet=True)  # type: ignore[arg-type]
    assert evaluate(result.module, test, 32, base)[0] > 0.29  # see above: not by guessing
    body = sum(p.numel() for k, p in base.module.named_parameters() if base.head_name not in k)
    assert result.parameters == 10 * 1281 + (body if which == "all" else 0)
    assert before == {k: v.numpy().tobytes() for k, v in base.module.state_dict().items()}


def test_cached_features_give_the_scores_of_the_whole_network(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    """The last layer alone is trained on cached features: the module must agree with its score."""
    train, test = digits
    result = train_baseline(base, train, "head", SHORT, resolution=32, validation=test, quiet=True)
    # The same operations at the same batch size (EVALUATION_BATCH): the same answers.
    assert evaluate(result.module, test, 32, base)[0] == result.validation_top1


@pytest.mark.parametrize("statistics", ["reestimated", "batch"])
def test_statistics_alone_are_learned_beside_the_last_layer(
    base: Base, digits: tuple[ImageDataset, ImageDataset], statistics: str
) -> None:
    """Appendix B.1's second row: gamma and beta stay the base's to the last bit."""
    train = digits[0].subset(range(96))
    patch_config = PatchConfig(("statistics", "head"), statistics=statistics)  # type: ignore[arg-type]
    patch = train_patch(base, train, SHORT, patch_config, resolutions=(32,), quiet=True)
    state = base.module.state_dict()
    for key, value in patch.tensors(32).items():
        if key.startswith(base.head_name):
            continue
        same = np.array_equal(value, state[key].numpy())
        assert same == (not key.endswith(("running_mean", "running_var"))), key


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
def test_all_weights_train_to_the_same_bits_though_the_network_has_dropout(
    base: Base, digits: tuple[ImageDataset, ImageDataset], statistics: str
) -> None:
    """Dropout would draw from torch's global generator, which no seed of a run sets."""
    assert any(isinstance(one, torch.nn.Dropout) and one.p > 0 for one in base.module.modules())
    train = digits[0].subset(range(64))
    states = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            result = train_baseline(
                base, train, "all", replace(SHORT, epochs=1), resolution=32,
                statistics=statistics, quiet=True,  # type: ignore[arg-type]
            )  # fmt: skip
        assert not any(one.training for one in result.module.modules())
        states.append(result.module.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    mean = "features.0.1.running_mean"
    moved = not torch.equal(states[0][mean], base.module.state_dict()[mean])
    assert moved == (statistics == "batch")
