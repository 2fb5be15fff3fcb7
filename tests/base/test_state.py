"""A checkpoint in any usual form is read; what is none is named, and nothing in it is run."""

import argparse
import collections
import logging
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from patchdeploy.base import Base
from patchdeploy.base.state import fill_module, read_state
from patchdeploy.errors import BaseError, CheckpointError

State = dict[str, torch.Tensor]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2))


class Settings(collections.UserDict[str, Any]):
    """What a trainer keeps beside the weights: a class that no reader knows."""


class Attributes(dict[str, Any]):
    """A mapping of a class that no reader knows."""


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


class Steps(list[int]):
    """A list of a class that no reader knows."""


def as_type(state: State, dtype: torch.dtype) -> State:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "DataParallel": lambda s: prefixed(s, "module."),
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: prefixed(s, "_orig_mod.module."),
    "Lightning": lambda s: {
        "state_dict": prefixed(s, "model.") | {"loss.weight": torch.ones(2)},
        "hyper_parameters": Attributes(rate=0.1),
        "callbacks": collections.defaultdict(dict, early={"best": np.float64(0.5)}),
        "epoch": 3,
    },
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")},
    "torchvision's reference": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x")),
    },
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}},
    "twice nested": lambda s: {"checkpoint": {"network": {"weights": s}}},
    "a profiler's counters": lambda s: {
        **s,
        "total_ops": torch.zeros(1),
        "0.total_params": torch.zeros(1),
    },
    "without batch counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "half": lambda s: as_type(s, torch.float16),
    "bfloat16": lambda s: as_type(s, torch.bfloat16),
    "float64": lambda s: as_type(s, torch.float64),
    "an ordered mapping": collections.OrderedDict,
    "with unknown objects": lambda s: {"state_dict": s, "config": Settings(a=1)},
    "parameters": lambda s: {
        k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()
    },
    "a list of an unknown class": lambda s: {"state_dict": s, "steps": Steps([1, 2])},
    "a second classifier": lambda s: {**s, "aux.fc.weight": torch.ones(2, 2)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_every_usual_form_of_a_checkpoint_gives_the_network(
    form: str, legacy: bool, tmp_path: Path
) -> None:
    trained = network(seed=3)
    path = tmp_path / "any.ckpt"
    torch.save(
        FORMS[form](dict(trained.state_dict())), path, _use_new_zipfile_serialization=not legacy
    )
    filled = fill_module(network(seed=0), path)
    for key, value in trained.state_dict().items():
        if value.is_floating_point():
            # Through a shorter type and back; float32 itself comes back whole.
            kept = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(form, torch.float32)
            assert torch.equal(filled.state_dict()[key], value.to(kept).float()), key


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    save_file(prefixed(network(3).state_dict(), "model."), tmp_path / "weights.bin")
    filled = fill_module(network(0), tmp_path / "weights.bin")
    assert torch.equal(filled[0].weight, network(3)[0].weight)  # type: ignore[index]


def test_a_network_with_a_child_called_module_keeps_its_names(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.module = network(seed)

    torch.save(Wrapped(3).state_dict(), tmp_path / "c.pth")
    filled = fill_module(Wrapped(0), tmp_path / "c.pth")
    assert torch.equal(filled.state_dict()["module.0.weight"], network(3)[0].weight)  # type: ignore[index]


def test_of_weights_and_their_average_the_average_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.pth"
    average = {"n_averaged": torch.tensor(1), **prefixed(network(5).state_dict(), "module.")}
    torch.save({"model": network(3).state_dict(), "model_ema": average}, path)
    with caplog.at_level(logging.WARNING, "patchdeploy.base"):
        filled = fill_module(network(0), path)
    assert torch.equal(filled[0].weight, network(5)[0].weight)  # type: ignore[index]
    assert caplog.messages == [
        f"{path} holds 2 sets of weights that fit ('model_ema.module', 'model'); took "
        "'model_ema.module'; to use another one, save it alone"
    ]
    caplog.clear()
    torch.save({"model": network(3).state_dict(), "ema": network(3).state_dict()}, path)
    fill_module(network(0), path)
    assert caplog.messages == []  # they are the same


class Bomb:
    """Runs a program when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_would_run_a_program_runs_none(tmp_path: Path, legacy: bool) -> None:
    path, marker = tmp_path / "c.pth", tmp_path / "ran"
    document = {"state_dict": network(3).state_dict(), "args": Bomb(marker)}
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        fill_module(network(0), path)
    assert not marker.exists()
    assert str(caught.value) == (
        f"checkpoint {path} cannot be read (it names posix.system, which runs programs, and no "
        "weights need that); it must be a whole safetensors file or a .pt file of tensors; do not "
        "use it, and ask where it comes from"
    )


def test_a_pickle_in_torchs_download_cache_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    cached, marker = tmp_path / "checkpoints" / Path(weights.url).name, tmp_path / "ran"
    cached.parent.mkdir()
    torch.save({"state_dict": {}, "more": Bomb(marker)}, cached)
    with pytest.raises(BaseError, match="cannot be downloaded or read"):
        Base.from_torchvision("squeezenet1_1", "DEFAULT")
    assert not marker.exists()
    module = torchvision.models.squeezenet1_1()
    torch.save(module.state_dict(), cached)
    caplog.clear()
    base = Base.from_torchvision("squeezenet1_1", "DEFAULT")
    assert torch.equal(base.module.features[0].weight, module.features[0].weight)  # type: ignore[index, union-attr]
    assert caplog.messages == [
        f"{cached} is not the file that torchvision publishes under that name (its SHA-256 begins "
        "otherwise): other weights, or a damaged file; remove it to download it again"
    ]


CONTENTS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n": "a Git LFS pointer, a ",
    b"\n<!DOCTYPE html><html><body>404</body></html>": "an HTML page, as a server sends for an ",
    b"<?xml version='1.0'?><Error>AccessDenied</Error>": "an XML document, as a server sends for ",
    b"": "an empty file",
    b'{"message": "API rate limit exceeded"}': "JSON text",
    b"\x1f\x8b\x08\x00" + bytes(40): "a gzip archive",
    b"\x89HDF\r\n\x1a\n" + bytes(40): "an HDF5 file",
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_what_lies_in_the_place_of_a_checkpoint_is_named(
    tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path / name)
    assert str(caught.value).startswith(
        f"checkpoint {tmp_path / name} cannot be read ({CONTENTS[content]}"
    )


def compressed(folder: Path) -> Path:
    import zipfile

    torch.save(network().state_dict(), folder / "plain.pth")
    with (
        zipfile.ZipFile(folder / "plain.pth") as plain,
        zipfile.ZipFile(folder / "c.pth", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for name in plain.namelist():
            made.writestr(name, plain.read(name))
    return folder / "c.pth"


def repeated(folder: Path) -> Path:
    """A few bytes that say that they are a terabyte."""
    torch.save({"0.weight": torch.zeros(1).expand(2**38)}, folder / "c.pth")
    return folder / "c.pth"


def script(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), folder / "c.pth")
    return folder / "c.pth"


def whole_module(folder: Path) -> Path:
    torch.save(network(), folder / "c.pth")
    return folder / "c.pth"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "c.pth")
    return folder / "c.pth"


def sparse(folder: Path) -> Path:
    with (folder / "c.pth").open("wb") as file:
        file.truncate(2**40)
    return folder / "c.pth"


REFUSED = {
    compressed: "its parts are compressed or longer than the file, which torch.save does not write",
    repeated: "tensor '0.weight' of [274877906944] is larger than the file",
    script: "it is a TorchScript archive, a program",
    whole_module: "it holds a whole object of class torch.nn.modules.container.Sequential, which "
    "only its program can make",
    pipe: "c.pth is not a regular file",
    sparse: "it is 1099511627776 bytes long, and at most 17179869184 are read",
    lambda folder: folder / "none.pth": "No such file or directory",
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("make", REFUSED)
def test_what_no_checkpoint_may_be_is_refused_and_says_why(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        fill_module(network(0), path)
    assert f"checkpoint {path} cannot be read (" in str(caught.value)
    assert f"{REFUSED[make]})" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
