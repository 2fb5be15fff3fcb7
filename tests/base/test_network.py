"""A base: frozen, positive scales, known by its content."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from patchdeploy.base import EMBEDDED_FACTS, EMBEDDED_WEIGHTS, Base
from patchdeploy.data import Preprocessing, load_packaged, normalize_batch
from patchdeploy.errors import BaseError, CheckpointError, NonFiniteError

SMALL = Preprocessing(input_size=32)


def network(seed: int = 0) -> nn.Module:
    """Two convolutions, one normalised and one not, and a linear head; 5 classes."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 4, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.uniform_(-1.5, 1.5)
        norm.bias.normal_()
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.3, 2.0)  # type: ignore[union-attr]
    return module.eval()


def test_scales_become_positive_and_the_function_stays_the_same() -> None:
    module = network()
    negative = int((module[1].weight < 0).sum())  # type: ignore[index]
    base = Base.from_module(module, SMALL, "small")
    assert negative > 0
    assert bool((base.module[1].weight >= 0).all())  # type: ignore[index]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # Negating every factor of a product and of a sum negates its IEEE 754 result: no tolerance.
        assert torch.equal(base.module(images), module(images))


def test_a_base_is_a_frozen_copy_in_evaluation_mode() -> None:
    module = network().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    base = Base.from_module(module, SMALL, "small")
    assert not base.module.training
    assert not any(p.requires_grad for p in base.module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert base.head_name == "7"
    assert base.norms == {"0": "1", "3": None}


CASES: list[tuple[str, int, int, int, str, dict[str, Any]]] = [
    # name, px, normalisations, convolutions without one, head
    ("mobilenet_v2", 64, 52, 0, "classifier.1", {"width_mult": 0.35}),
    ("mobilenet_v3_small", 64, 34, 18, "classifier.3", {}),
    ("resnet18", 64, 20, 0, "fc", {}),
    ("shufflenet_v2_x0_5", 64, 56, 0, "fc", {}),
    ("squeezenet1_1", 64, 0, 26, "classifier.1", {}),
    ("inception_v3", 96, 94, 0, "fc", {"aux_logits": False, "init_weights": False}),
]


@pytest.mark.parametrize(
    ("name", "px", "norms", "bare", "head", "arguments"), CASES, ids=[case[0] for case in CASES]
)
def test_norms_and_head_are_found_in_networks_of_every_kind(
    name: str, px: int, norms: int, bare: int, head: str, arguments: dict[str, Any]
) -> None:
    settings = Preprocessing(input_size=px)
    base = Base.from_torchvision(name, preprocessing=settings, **arguments)
    followed = [norm for norm in base.norms.values() if norm is not None]
    assert len(followed) == len(set(followed)) == norms
    assert sum(norm is None for norm in base.norms.values()) == bare
    assert base.head_name == head
    for conv, norm in base.norms.items():
        if norm is not None:
            channels = base.module.get_submodule(conv).out_channels
            assert channels == base.module.get_submodule(norm).num_features


def test_the_seed_of_random_weights_decides_the_base() -> None:
    def build(seed: int) -> str:
        return Base.from_torchvision(
            "mobilenet_v2", seed=seed, preprocessing=SMALL, width_mult=0.35
        ).sha256

    torch.manual_seed(123)
    following = torch.initial_seed()
    assert build(1) == build(1) != build(2)
    assert torch.initial_seed() == following  # the caller's random state is its own


def test_the_hash_is_of_the_content_and_the_same_in_another_process() -> None:
    base = Base.from_module(network(), SMALL, "small")
    assert len(base.sha256) == 64
    other = Base.from_module(network(), Preprocessing(input_size=33), "small")
    assert other.sha256 != base.sha256
    nudged = network()
    with torch.no_grad():
        bias = nudged[3].bias  # type: ignore[index]
        bias.copy_(torch.nextafter(bias, torch.tensor(9.0)))
    assert Base.from_module(nudged, SMALL, "small").sha256 != base.sha256
    code = "from patchdeploy.base import Base; print(Base.embedded().sha256)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == Base.embedded().sha256


def test_an_unknown_model_or_weights_name_is_a_base_error() -> None:
    with pytest.raises(BaseError, match="torchvision has no 'resnet19' with weights None"):
        Base.from_torchvision("resnet19")
    with pytest.raises(BaseError, match="torchvision has no 'resnet18' with weights 'V9'"):
        Base.from_torchvision("resnet18", "V9")


def test_an_argument_that_the_model_does_not_take_is_a_base_error() -> None:
    with pytest.raises(BaseError, match="width_mult"):
        Base.from_torchvision("resnet18", width_mult=0.5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_gives_the_same_base_as_the_module_it_was_saved_from(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    state = network(seed=3).state_dict()
    if suffix == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    base = Base.from_checkpoint(path, network(seed=0), SMALL, "small")
    assert base.sha256 == Base.from_module(network(seed=3), SMALL, "small").sha256


def test_a_checkpoint_that_does_not_fit_lists_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = dict(network().state_dict())
    state["9.weight"] = state.pop("3.weight")
    state["7.bias"] = torch.zeros(6)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        Base.from_checkpoint(path, network(), SMALL)
    assert str(caught.value) == (
        f"checkpoint {path} does not fit the network: 3.weight is missing; 9.weight is not "
        "expected; 7.bias is [6], not [5]; use the checkpoint of this architecture"
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"weights{suffix}"
    state = network().state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Base.from_checkpoint(path, network(), SMALL)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network(), path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Base.from_checkpoint(path, network(), SMALL)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_or_infinity_in_a_checkpoint_names_the_tensor(tmp_path: Path, value: float) -> None:
    path = tmp_path / "weights.pt"
    state = network().state_dict()
    state["3.weight"][2, 1] = value
    torch.save(state, path)
    with pytest.raises(NonFiniteError, match=r"tensor '3\.weight' has 1 values that are NaN"):
        Base.from_checkpoint(path, network(), SMALL)


def test_a_module_without_a_head_or_that_cannot_run_is_refused() -> None:
    with pytest.raises(BaseError, match="no Linear or Conv2d"):
        Base.from_module(nn.ReLU(), SMALL, "empty")
    with pytest.raises(BaseError, match="fails on float32"):
        Base.from_module(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(3, 2)), SMALL, "wrong width")


def test_the_embedded_base_classifies_real_test_images_as_its_facts_say() -> None:
    assert EMBEDDED_WEIGHTS.stat().st_size <= 2_000_000
    facts = json.loads(EMBEDDED_FACTS.read_text())
    base = Base.embedded()
    test = load_packaged("fashion")[1]
    assert test.classes == tuple(facts["classes"])
    px = base.preprocessing.input_size
    images = torch.from_numpy(normalize_batch(test.at(px, base.preprocessing), base.preprocessing))
    with torch.no_grad():
        answers = base.module(images).argmax(1).numpy()
    top1 = float((answers == test.labels).mean())
    reached = facts["test_top1"][str(px)]
    # 1,000 of the 10,000 test images: three standard deviations of a drawn sample's mean.
    assert abs(top1 - reached) < 3 * np.sqrt(reached * (1 - reached) / len(test))


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Keras MobileNetV2 written by h5py in Keras' own layout, values at random."""
    h5py = pytest.importorskip("h5py", reason="h5py (extra keras) is not installed")
    path = tmp_path_factory.mktemp("keras") / "model.h5"
    module = torchvision.models.mobilenet_v2(num_classes=7)
    generator = np.random.default_rng(0)

    def convolution(group: Any, name: str, shape: tuple[int, ...], norm: str) -> None:
        depthwise = name.endswith("depthwise")
        outputs = shape[0]
        kernel = (shape[2], shape[3], outputs, 1) if depthwise else (*shape[2:], shape[1], outputs)
        fan_in = shape[1] * shape[2] * shape[3]
        values = generator.standard_normal(kernel) * np.sqrt(2 / fan_in)
        group[f"{name}/kernel"] = values.astype(np.float32)
        for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
            low, high = {"gamma": (0.8, 1.2), "moving_variance": (0.5, 1.5)}.get(
                variable, (-0.2, 0.2)
            )
            group[f"{norm}/{variable}"] = generator.uniform(low, high, outputs).astype(np.float32)

    from patchdeploy.base.keras import _layers

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = '{"name": "mobilenetv2_1.00_96"}'
        group = file.create_group("model_weights/mobilenetv2_1.00_96")
        for torch_path, name, norm in _layers():
            shape = tuple(module.get_submodule(torch_path).weight.shape)  # type: ignore[arg-type]
            convolution(group, name, shape, norm)
        head = generator.standard_normal((1280, 7)).astype(np.float32)
        file["model_weights/dense/dense/kernel"] = head
        file["model_weights/dense/dense/bias"] = np.arange(7, dtype=np.float32)
    return path


def test_a_keras_file_becomes_a_base_with_tensorflows_padding_and_epsilon(keras_file: Path) -> None:
    base = Base.from_keras_mobilenet_v2(keras_file)
    assert base.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 96)
    first = base.module.get_submodule("features.0.0")
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    padded = nn.functional.pad(images, (0, 1, 0, 1))
    expected = nn.functional.conv2d(padded, first.weight, stride=2)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(first(images), expected)
        assert base.module(images).shape == (1, 7)
    norms = [m for m in base.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert len([norm for norm in base.norms.values() if norm]) == 52


def test_a_damaged_keras_file_is_a_checkpoint_error(keras_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.h5"
    path.write_bytes(keras_file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cannot be read as HDF5"):
        Base.from_keras_mobilenet_v2(path)
