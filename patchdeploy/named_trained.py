"""A network that a run has trained, as two files, and as a base again.

In: a `Base`, the name of the base that it was made from. Out: ``network.safetensors`` with every
tensor and ``network.json`` with what else opens it. The architecture is not stored: it is that of
the base it was made from, with a last layer of as many rows as the tensors say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from patchdeploy.base import Base, read_state
from patchdeploy.data import Preprocessing
from patchdeploy.errors import CheckpointError, FileFormatError, IntegrityError
from patchdeploy.patch.tensors import merge_tensors
from patchdeploy.storage import write_atomic

TENSOR_FILE, FACTS_FILE = "network.safetensors", "network.json"
FORMAT = 1


def save_network(folder: Path, base: Base, origin: str, classes: Sequence[str] = ()) -> None:
    """Write ``base`` into ``folder``; `open_network` gives it back with the same content hash.

    Args:
        origin: what the base it was made from is called (`patchdeploy.named.open_base`).
        classes: of its last layer's rows, where they mean something.

    Raises:
        StorageError: the folder cannot be written.
    """
    state = {key: value.contiguous() for key, value in base.module.state_dict().items()}
    facts = {
        "format": FORMAT,
        "origin": origin,
        "name": base.name,
        "head_name": base.head_name,
        "preprocessing": base.preprocessing.to_json(),
        "classes": list(classes),
        "sha256": base.sha256,
    }
    write_atomic(folder / TENSOR_FILE, save(state))
    write_atomic(folder / FACTS_FILE, json.dumps(facts, indent=1).encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``network.json`` says: origin, name, head_name, preprocessing, classes, sha256.

    Raises:
        FileFormatError: missing, damaged or of another format.
    """
    path = folder / FACTS_FILE
    keys = {"format", "origin", "name", "head_name", "preprocessing", "classes", "sha256"}
    try:
        facts = json.loads(path.read_text())
        good = isinstance(facts, dict) and set(facts) == keys and facts["format"] == FORMAT
    except (OSError, ValueError) as error:
        raise FileFormatError(
            f"{path} cannot be read ({type(error).__name__}); a trained network is a folder with "
            f"{FACTS_FILE} and {TENSOR_FILE}, which methods baseline, tasks and resolutions "
            "leave; name that folder"
        ) from error
    if not good:
        raise FileFormatError(
            f"{path} is not of format {FORMAT}; this version reads that one alone; train again"
        )
    return dict(facts)


def open_network(folder: Path, open_origin: Callable[[str], Base]) -> Base:
    """The base that `save_network` wrote.

    Args:
        open_origin: opens the base that it was made from, by name.

    Raises:
        FileFormatError, CheckpointError: a file that is missing, damaged, or does not fit.
        IntegrityError: the tensors are not those that the facts belong to.
    """
    facts = read_facts(folder)
    origin = open_origin(facts["origin"])
    state = read_state(folder / TENSOR_FILE)
    head = {key: state[key] for key in state if key.rpartition(".")[0] == origin.head_name}
    module = merge_tensors(origin, head)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / TENSOR_FILE} does not fit base {facts['origin']!r}, which it was made "
            f"from ({str(error).splitlines()[-1].strip()[:200]}); both must be as they were; "
            "restore them or train again"
        ) from error
    preprocessing = Preprocessing.from_json(facts["preprocessing"])
    base = Base.from_module(module, preprocessing, facts["name"], facts["head_name"])
    if base.sha256 != facts["sha256"]:
        raise IntegrityError(
            f"network in {folder} has content hash {base.sha256[:12]}, not {facts['sha256'][:12]} "
            f"as {FACTS_FILE} says; the two files belong together; copy both again"
        )
    return base
