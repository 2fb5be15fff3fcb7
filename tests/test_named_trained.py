"""A trained network is opened from its own two files, and damage to either is noticed."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from joint_cases import small_base

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import FileFormatError, IntegrityError, PatchdeployError
from patchdeploy.named import open_architecture, open_base
from patchdeploy.named_trained import open_network, save_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_network(tmp_path / "n", small_base(), "embedded", ("a", "b"))
    return tmp_path / "n"


def reopen(folder: Path) -> Base:
    return open_network(folder, lambda name: small_base())


def test_a_network_comes_back_with_its_content_hash(folder: Path) -> None:
    assert reopen(folder).sha256 == small_base().sha256


@pytest.mark.parametrize("file", ["network.json", "network.safetensors"])
def test_a_changed_bit_or_a_cut_file_is_noticed(folder: Path, file: str) -> None:
    whole, draw = (folder / file).read_bytes(), random.Random(0)
    for _ in range(150):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (folder / file).write_bytes(changed)
        with pytest.raises(PatchdeployError):
            reopen(folder)
    for _ in range(50):
        (folder / file).write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(PatchdeployError):
            reopen(folder)


def test_a_network_without_hashes_is_opened_and_that_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = json.loads((folder / "network.json").read_text()) | {"format": 1}
    del facts["file_sha256"], facts["facts_sha256"]  # as older versions wrote it
    (folder / "network.json").write_text(json.dumps(facts))
    assert reopen(folder).sha256 == small_base().sha256
    assert caplog.messages == [
        f"{folder} is of a version that wrote no hash of its files: damage to what the network's "
        "own hash does not cover cannot be seen"
    ]


def change(folder: Path, **values: Any) -> None:
    """``network.json`` with other values, and without hashes, as a stranger would write it."""
    facts = json.loads((folder / "network.json").read_text()) | {"format": 1} | values
    facts = {key: one for key, one in facts.items() if key not in ("file_sha256", "facts_sha256")}
    (folder / "network.json").write_text(json.dumps(facts))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "nested": lambda f: (f / "network.json").write_text("[" * 100_000),
    "a list": lambda f: (f / "network.json").write_text("[]"),
    "no Unicode": lambda f: (f / "network.json").write_bytes(b"\xff\xfe"),
    "nothing": lambda f: (f / "network.json").write_text(""),
    "an origin of no form": lambda f: change(f, origin="file:/etc/passwd"),
    "a number for the origin": lambda f: change(f, origin=3),
    "itself as origin": lambda f: change(f, origin=f"trained:{f}"),
    "a huge input": lambda f: change(f, preprocessing={"input_size": 10**9}),
    "an odd mean": lambda f: change(f, preprocessing={"input_size": 16, "mean": "x"}),
    "settings that are none": lambda f: change(f, preprocessing=5),
    "classes that are none": lambda f: change(f, classes={"a": 1}),
    "a class that is none": lambda f: change(f, classes=[1]),
    "a short hash": lambda f: change(f, sha256="00"),
    "another head": lambda f: change(f, head_name="nowhere"),
    "one key more": lambda f: change(f, more=1),
    "other tensors": lambda f: torch.save({"x": torch.ones(3)}, f / "network.safetensors"),
    "no tensors": lambda f: (f / "network.safetensors").unlink(),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("error")
def test_a_network_of_a_strangers_making_gives_a_typed_error(folder: Path, name: str) -> None:
    HOSTILE[name](folder)
    with pytest.raises(PatchdeployError):
        open_network(folder, lambda one: small_base() if one == "embedded" else open_base(one))


def test_a_pipe_in_the_place_of_either_file_is_refused(folder: Path) -> None:
    for name in ("network.safetensors", "network.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(FileFormatError, match="it must be a regular file"):
            reopen(folder)


def test_opening_reads_no_weights_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its origin may name torchvision's weights, or any file: neither is looked at."""
    monkeypatch.setattr(
        "patchdeploy.base.weights.read_weights", lambda url: pytest.fail(f"{url} was read")
    )
    made = Base.from_torchvision(
        "squeezenet1_1", num_classes=3, preprocessing=Preprocessing(input_size=64)
    )
    for form in ("torchvision:squeezenet1_1@DEFAULT", "checkpoint:squeezenet1_1:/etc/passwd"):
        save_network(tmp_path / "n", made, form)
        assert open_base(f"trained:{tmp_path / 'n'}").sha256 == made.sha256


def test_a_network_that_was_trained_over_a_trained_one_names_the_first_base(tmp_path: Path) -> None:
    save_network(tmp_path / "first", small_base(), "embedded")
    save_network(tmp_path / "second", small_base(), f"trained:{tmp_path / 'first'}")
    assert json.loads((tmp_path / "second" / "network.json").read_text())["origin"] == "embedded"


@pytest.mark.parametrize("form", ["keras:none.h5", "detector:ssdlite320_mobilenet_v3_large:none"])
def test_an_architecture_is_made_without_its_file(form: str) -> None:
    assert open_architecture(form).head_name


def test_facts_that_were_changed_together_with_nothing_are_refused(folder: Path) -> None:
    facts = json.loads((folder / "network.json").read_text()) | {"classes": ["b", "a"]}
    (folder / "network.json").write_text(json.dumps(facts))
    with pytest.raises(IntegrityError, match="does not have the SHA-256 that it carries"):
        reopen(folder)
