"""A network that a run has trained, as two files, and as a base again.

In: a `Base`, the name of the base that it was made from. Out: ``network.safetensors`` with every
tensor and ``network.json`` with what else opens it and the hashes of both. The architecture is not
stored: it is that of the base it was made from, with a last layer of as many rows as the tensors
say. Opening a folder reads these two files alone: no other weights, and nothing is downloaded.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from patchdeploy.base import Base, read_state
from patchdeploy.data import Preprocessing
from patchdeploy.documents import HEX64, HEX64_RULE, Field, parse_document
from patchdeploy.errors import CheckpointError, FileFormatError, IntegrityError
from patchdeploy.patch.tensors import merge_tensors
from patchdeploy.storage import read_regular, sha256_hex, write_atomic

TENSOR_FILE, FACTS_FILE = "network.safetensors", "network.json"
FORMAT, FORMAT_WITHOUT_HASH = 2, 1
KEYS = ("format", "origin", "name", "head_name", "preprocessing", "classes", "sha256")
HASHES = ("file_sha256", "facts_sha256")
"""Of the tensor file, and of the facts without it, as JSON with sorted keys."""
MOST_BYTES, MOST_TENSOR_BYTES = 2**24, 2**34
MOST_INPUT_PX = 2048
"""Opening a base runs it once at its input size."""
MOST_ORIGINS = 8
_TRAINED = "trained:"
_log = logging.getLogger("patchdeploy.named")


def save_network(folder: Path, base: Base, origin: str, classes: Sequence[str] = ()) -> None:
    """Write ``base`` into ``folder``; `open_network` gives it back with the same content hash.

    Args:
        origin: what the base it was made from is called (`patchdeploy.named.open_base`).
        classes: of its last layer's rows, where they mean something.

    Raises:
        StorageError: the folder cannot be written.
    """
    state = {key: value.contiguous() for key, value in base.module.state_dict().items()}
    tensors = save(state)
    facts = {
        "format": FORMAT,
        "origin": find_origin(origin),
        "name": base.name,
        "head_name": base.head_name,
        "preprocessing": base.preprocessing.to_json(),
        "classes": list(classes),
        "sha256": base.sha256,
        "file_sha256": sha256_hex(tensors),
    }
    facts["facts_sha256"] = _hash_facts(facts)
    write_atomic(folder / TENSOR_FILE, tensors)
    write_atomic(folder / FACTS_FILE, json.dumps(facts, indent=1).encode())


def _hash_facts(facts: Mapping[str, Any]) -> str:
    own = {key: value for key, value in facts.items() if key != "facts_sha256"}
    return sha256_hex(json.dumps(own, sort_keys=True).encode())


def find_origin(name: str) -> str:
    """``name``, or of a trained network the base at the beginning of its line.

    Raises:
        FileFormatError: see `read_facts`; or a line that comes back to itself.
    """
    for _ in range(MOST_ORIGINS):
        if not name.startswith(_TRAINED):
            return name
        folder = Path(name.removeprefix(_TRAINED))
        name = read_facts(folder)["origin"]
    raise FileFormatError(
        f"{folder / FACTS_FILE} names {name!r} as its origin, and more than {MOST_ORIGINS} trained "
        "networks follow each other, or in a circle; train again over another base"
    )


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``network.json`` says: origin, name, head_name, preprocessing, classes, sha256.

    Raises:
        FileFormatError: missing, damaged or of another format.
        IntegrityError: it does not have the hash that it carries.
    """
    path = folder / FACTS_FILE
    try:
        document = parse_document(
            read_regular(path, MOST_BYTES, follow=True), str(path), MOST_BYTES
        )
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be read ({type(error).__name__}); a trained network is a folder with "
            f"{FACTS_FILE} and {TENSOR_FILE}, which methods baseline, tasks and resolutions "
            "leave; name that folder"
        ) from error
    facts = document.value
    formats = (FORMAT, FORMAT_WITHOUT_HASH)
    if type(facts) is not dict or facts.get("format") not in formats:
        raise FileFormatError(
            f"{path} is not of format {FORMAT}; this version reads that one and the one before it; "
            "train again"
        )
    has_hash = facts["format"] == FORMAT
    _check_facts(document.keys((*KEYS, *HASHES) if has_hash else KEYS))
    if has_hash and facts["facts_sha256"] != _hash_facts(facts):
        raise IntegrityError(
            f"{path} does not have the SHA-256 that it carries; it was changed or damaged; copy "
            "the folder again"
        )
    return dict(facts)


def _check_facts(fields: Mapping[str, Field]) -> None:
    fields["origin"].short_text(4096, 1)
    fields["name"].short_text(4096)
    fields["head_name"].short_text(1024)
    for label in fields["classes"].items(65_536):
        label.short_text(65_535)
    for key in ("sha256", *HASHES):
        if key in fields:
            fields[key].text(HEX64, HEX64_RULE)
    settings = fields["preprocessing"].value
    if type(settings) is not dict:
        fields["preprocessing"].refuse("an object")
    Field(settings.get("input_size"), f"{fields['preprocessing'].name}.input_size").integer(
        1, MOST_INPUT_PX
    )


def open_network(folder: Path, open_origin: Callable[[str], Base]) -> Base:
    """The base that `save_network` wrote.

    Args:
        open_origin: a base with the layers of the one that it was made from, by name.

    Raises:
        FileFormatError, CheckpointError: a file that is missing, damaged, or does not fit.
        IntegrityError: the tensors are not those that the facts belong to.
    """
    facts = read_facts(folder)
    _check_tensor_file(folder, facts)
    origin = open_origin(find_origin(facts["origin"]))
    state = read_state(folder / TENSOR_FILE)
    head = {key: state[key] for key in state if key.rpartition(".")[0] == origin.head_name}
    try:
        module = merge_tensors(origin, head)
        module.load_state_dict(state)
    except (RuntimeError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder / TENSOR_FILE} does not fit base {facts['origin']!r}, which it was made "
            "from: tensors are missing, or of other names or shapes; both must be as they were; "
            "restore them or train again"
        ) from error
    preprocessing = Preprocessing.from_json(facts["preprocessing"])
    base = Base.from_module(module, preprocessing, facts["name"], facts["head_name"])
    if not base.is_named(facts["sha256"], f"network in {folder}"):
        raise IntegrityError(
            f"network in {folder} has content hash {base.sha256[:12]}, not {facts['sha256'][:12]} "
            f"as {FACTS_FILE} says; the two files belong together; copy both again"
        )
    return base


def _check_tensor_file(folder: Path, facts: Mapping[str, Any]) -> None:
    """By the hash of its bytes, before it is parsed."""
    path = folder / TENSOR_FILE
    if facts["format"] == FORMAT_WITHOUT_HASH:
        _log.warning(
            "%s is of a version that wrote no hash of its files: damage to what the network's own "
            "hash does not cover cannot be seen",
            folder,
        )
        return
    try:
        found = sha256_hex(read_regular(path, MOST_TENSOR_BYTES, follow=True))
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be read ({error.strerror or os.strerror(error.errno or 0)}); a trained "
            f"network is a folder with {FACTS_FILE} and {TENSOR_FILE}; copy both again"
        ) from error
    if found != facts["file_sha256"]:
        raise IntegrityError(
            f"{path} has SHA-256 {found[:12]}, not {facts['file_sha256'][:12]} as {FACTS_FILE} "
            "says; the two files belong together; copy both again"
        )
