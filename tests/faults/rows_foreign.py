"""Row 26 of the fault table: files that a person is handed besides bundles and patch files.

Own: what training writes (patch, network, checkpoint) carries its hash, so every flipped bit and
every other length must be refused (of network.json, which carries a hash of its values, what says
something else). Checkpoints: a stranger's .pt (zip and old form) and safetensors
carry none; a mutant is refused by a typed error or read, never more, and nothing in it is run.
Keras: mutants of all bytes of an .h5 that are no values, and `keras_cases.HOSTILE`. Controls: each
file as it was is read.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joint_cases import small_base
from keras_cases import HOSTILE, write_hostile_file, write_keras_file
from safetensors.torch import save
from torch import nn
from tried import Progress, Told, in_processes, scaled

from patchdeploy.base.keras import read_mobilenet_v2
from patchdeploy.base.state import fill_module
from patchdeploy.errors import PatchdeployError
from patchdeploy.named_trained import open_network, save_network
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.training.checkpoint import Position, RunState, load_checkpoint, save_checkpoint

OWN, CHECKPOINTS, KERAS = 30_000, 30_000, 800
SLOWEST_SECONDS = 10.0
"""Of one file of a few hundred kilobytes, on a busy machine."""


@dataclass(frozen=True)
class Target:
    """A file and the function that reads it."""

    path: Path
    read: Callable[[], Any]


def own_files(folder: Path) -> dict[str, Target]:
    """A patch, a network and a checkpoint as training writes them."""
    tensors = {px: {"norm.weight": np.full(8, px, np.float32)} for px in (32, 48)}
    patch = Patch("t", "0" * 64, PatchConfig(), ("a", "b"), tensors, {"top1": 0.5})
    patch.save_pretrained(folder / "patch")
    save_network(folder / "network", small_base(), "embedded", ("a", "b"))
    state = {"w": torch.arange(9.0)}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    run = RunState(Position(1, 2, [0.5], [8.0], [0.5], 0.5), state, optimizer, state, {})
    save_checkpoint(folder / "run.pt", "f", run)

    def network() -> Any:
        return open_network(folder / "network", lambda name: small_base())

    return {
        "patch": Target(
            folder / "patch" / "patch.safetensors", lambda: Patch.from_pretrained(folder / "patch")
        ),
        "network": Target(folder / "network" / "network.safetensors", network),
        "network's facts": Target(folder / "network" / "network.json", network),
        "checkpoint": Target(folder / "run.pt", lambda: load_checkpoint(folder / "run.pt", "f")),
    }


def strangers_files(folder: Path) -> dict[str, Target]:
    """Checkpoints as torch.save and safetensors write them, of a small network."""
    state = make_network().state_dict()
    document = {"model": state, "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}
    torch.save(document, folder / "zip.pt")
    torch.save(document, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "x.safetensors").write_bytes(save(dict(state)))
    found = {}
    for name in ("zip.pt", "old.pt", "x.safetensors"):
        path = folder / name
        found[name] = Target(path, lambda path=path: fill_module(make_network(), path))
    return found


def make_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2))


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A flipped bit, another byte, a cut, a part twice, or a part of noise."""
    place, kind = draw.randrange(len(data)), draw.randrange(5)
    end = min(len(data), place + draw.randrange(1, 40))
    changed = bytearray(data)
    if kind == 0:
        changed[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        changed[place] = (data[place] + draw.randrange(1, 256)) % 256
    elif kind == 2:
        return data[:place]
    elif kind == 3:
        changed[end:end] = data[place:end]
    else:
        changed[place:end] = draw.randbytes(end - place)
    return bytes(changed)


def mutate_pickle(data: bytes, draw: random.Random) -> bytes:
    """A zip whose pickle is another one: its checksums are right again."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(made, "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            changed.writestr(name, mutate(content, draw) if name.endswith(".pkl") else content)
    return made.getvalue()


def try_target(target: Target, data: bytes) -> str:
    """What comes of ``data`` in the place of the file: the error's type, or "read".

    Raises:
        Exception: an error that is not ours; AssertionError: it took too long.
    """
    target.path.write_bytes(data)
    start = time.perf_counter()
    try:
        target.read()
    except PatchdeployError as error:
        verdict = type(error).__name__
    else:
        verdict = "read"
    assert time.perf_counter() - start < SLOWEST_SECONDS, f"{target.path.name}: slow"
    return verdict


def says_the_same(path: Path, data: bytes, whole: bytes) -> bool:
    """Whether two JSON files differ in spaces or escapes alone, which no hash of values sees."""
    if path.suffix != ".json":
        return False
    # As text: 1 and 1.0 and true are equal in Python, and are not the same values.
    one, other = (json.dumps(json.loads(text), sort_keys=True) for text in (data, whole))
    return one == other


def fuzz_own(count: int, seed: int) -> Counter[str]:
    """Mutants of what training writes; every one that differs must be refused."""
    _quiet()
    draw, seen = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        for name, target in own_files(Path(place)).items():
            whole = target.path.read_bytes()
            assert try_target(target, whole) == "read", name
            for _ in range(-(-count // 4)):
                data = mutate(whole, draw)
                if data == whole:
                    continue
                verdict = try_target(target, data)
                if verdict == "read":
                    assert says_the_same(target.path, data, whole), f"a changed {name} was taken"
                    verdict = "the same JSON in other bytes"
                seen[verdict] += 1
            target.path.write_bytes(whole)
    return seen


def fuzz_checkpoints(count: int, seed: int) -> Counter[str]:
    """Mutants of a stranger's checkpoints."""
    _quiet()
    draw, seen = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        for name, target in strangers_files(Path(place)).items():
            whole = target.path.read_bytes()
            assert try_target(target, whole) == "read", name
            for number in range(-(-count // 3)):
                inner = name == "zip.pt" and number % 2
                seen[try_target(target, (mutate_pickle if inner else mutate)(whole, draw))] += 1
    return seen


def fuzz_keras(count: int, seed: int) -> Counter[str]:
    """One to three changed bytes of an .h5 outside of the arrays' values."""
    _quiet()
    draw, seen = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.h5"
        write_keras_file(path)
        target = Target(path, lambda: read_mobilenet_v2(path))
        whole, places = path.read_bytes(), _structure_places(path)
        assert try_target(target, whole) == "read"
        for _ in range(count):
            changed = bytearray(whole)
            for one in draw.sample(places, draw.randrange(1, 4)):
                changed[one] = draw.randrange(256)
            seen[try_target(target, bytes(changed))] += 1
    return seen


def _structure_places(path: Path) -> list[int]:
    """Offsets of all bytes that are no array's values."""
    import h5py

    length = path.stat().st_size
    is_value = np.zeros(length, bool)
    with h5py.File(path) as file:

        def visit(name: str, entry: Any) -> None:
            if isinstance(entry, h5py.Dataset):
                start = entry.id.get_offset()
                is_value[start : start + entry.id.get_storage_size()] = True

        file.visititems(visit)
    return np.flatnonzero(~is_value).tolist()


def _quiet() -> None:
    torch.set_num_threads(1)


def _sum(
    work: Callable[[int, int], Counter[str]], count: int, progress: Progress, batch: int
) -> Counter[str]:
    total = Counter[str]()
    for one in in_processes(work, count, 0, progress, batch):
        total += one
    return total


def _listed(seen: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in seen.most_common())


def try_own(scale: float, progress: Progress) -> Told:
    """What training writes."""
    seen = _sum(fuzz_own, scaled(OWN, scale), progress, 2000)
    return Told(
        f"{seen.total():,} mutants of a patch, a network, its facts and a checkpoint of ours",
        f"each is refused, or is the same: {_listed(seen)}",
        seen.total(),
    )


def try_checkpoints(scale: float, progress: Progress) -> Told:
    """What others write."""
    seen = _sum(fuzz_checkpoints, scaled(CHECKPOINTS, scale), progress, 2000)
    return Told(
        f"{seen.total():,} mutants of .pt files (zip, its pickle alone, old form) and safetensors",
        f"a typed error or a network, each within {SLOWEST_SECONDS:g} s: {_listed(seen)}",
        seen.total(),
    )


def try_keras(scale: float, progress: Progress) -> Told:
    """What Keras writes, and what it never would."""
    _quiet()
    with tempfile.TemporaryDirectory() as place:
        for name in HOSTILE:
            path = write_hostile_file(name, Path(place))
            target = Target(path, partial(read_mobilenet_v2, path))
            verdict = try_target(target, path.read_bytes())
            assert verdict == "CheckpointError", f"{name}: {verdict}"
    seen = _sum(fuzz_keras, scaled(KERAS, scale), progress, 100)
    count = seen.total() + len(HOSTILE)
    return Told(
        f"{len(HOSTILE)} hostile .h5 files (values elsewhere, links, bombs), {seen.total():,} "
        "mutants of an .h5's structure",
        f"a typed error or a network: {_listed(seen)}",
        count,
    )
