"""Bundles that are consistent and hostile: one value is another, and every hash is right again.

Whoever hands over a bundle can make its hashes right, so a hash protects nobody from what a
manifest, a slot table, a coding table or a reference says. Each case changes one value of one of
these documents: a key is missing, there twice or new, a value has another type or is out of its
range, is nested deep, is long, or does not fit the others. The verdict is "refused" (a typed error
before a model ran), "same" (it is taken, and every answer is the good bundle's), and anything else
is a fault: another error, another answer, a long time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import case_folders  # noqa: F401  (adds the folders of the cases)
import numpy as np
from bundle_cases import RESOLUTIONS, make_bundle

from patchdeploy.bundle import open_bundle, size_report
from patchdeploy.errors import FileFormatError, IntegrityError, PatchRefusedError
from patchdeploy.patchfile.pack import check_results, open_patch
from patchdeploy.runtime import Engine
from patchdeploy.storage import sha256_hex

TASK = "first"
RUNTIMES = ("litert", "onnxruntime")
SLOWEST_SECONDS = 5.0
MANIFEST = "manifest.json"
TABLES = ("base.tflite.slots.json", "base.onnx.slots.json")
TENSOR_FILES = ("base.coding", "reference/base.safetensors")
_DEEP = 100_000


@dataclass(frozen=True)
class Raw:
    """JSON that no Python value stands for."""

    text: str


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.0, 1.5, -0.5, 1e308, 5e-324, 16, 24, 23),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 10**300),
    *("", "0", "1", "16", "24", "16.0", " 16", "first", "tflite", "onnx", "0" * 64, "A" * 64),
    *("x" * 100_000, "\x00", "\x1b[31m", "../../x", "/etc/passwd", MANIFEST, ".lock"),
    *("base.onnx", "base.coding", "patches/first.pdp"),
    *([], [0], [1, 2, 3], [[]], ["a", "a"], [16, 16], [True, False], [16.0, 24.0], ["16", "24"]),
    *([0] * 100_000, {}, {"a": 1}, {"16": "base.onnx"}, {"": {}}, [{}] * 1000),
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("-0")),
    *(Raw("[" * _DEEP + "]" * _DEEP), Raw('{"a":' * _DEEP + "1" + "}" * _DEEP)),
    *(Raw("[" * 60 + "]" * 60), Raw('"\\ud800"'), Raw('{"a":1,"a":2}')),
)
"""What each value of a document is replaced by."""


@dataclass(frozen=True)
class Case:
    """One change of one document.

    Attributes:
        file: which.
        place: keys and indices from its top to the value.
        change: "replaced", "missing", "new key" or "twice".
        value: what it is replaced by.
    """

    file: str
    place: tuple[str | int, ...]
    change: str
    value: Any = None

    def __str__(self) -> str:
        value = self.value.text if isinstance(self.value, Raw) else repr(self.value)
        place = ".".join(map(str, self.place)) or "(all)"
        return f"{self.file} {place} {self.change} {value:.60}"


def make_good(folder: Path) -> Path:
    """A signed bundle of two tasks."""
    make_bundle(folder, signed=True)
    return folder


def list_cases(good: Path, most_rows: int = 3) -> list[Case]:
    """Every change of every document of ``good``, in a fixed order.

    Args:
        most_rows: of a list whose items are alike, such as slots.
    """
    found: list[Case] = []
    for file in (MANIFEST, *TABLES, *TENSOR_FILES):
        document = read_document(good, file)
        for place, value in _places(document, (), most_rows):
            found += [Case(file, place, "replaced", one) for one in VALUES]
            if place:
                found.append(Case(file, place, "missing"))
                found.append(Case(file, place, "twice"))
            if isinstance(value, dict):
                found.append(Case(file, place, "new key"))
    return found


def _places(value: Any, place: tuple[str | int, ...], most: int) -> Iterator[tuple[Any, Any]]:
    yield place, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*place, key), most)
    elif isinstance(value, list):
        for k in sorted({*range(min(len(value), most)), *range(len(value))[-1:]}):
            yield from _places(value[k], (*place, k), most)


def read_document(folder: Path, file: str) -> Any:
    """The JSON of a bundle's file; of a safetensors file, that in its metadata."""
    data = (folder / file).read_bytes()
    if file not in TENSOR_FILES:
        return json.loads(data)
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["patchdeploy"])


def write_case(case: Case, good: Path, folder: Path) -> None:
    """``good`` in ``folder`` with one change, its hashes right again."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    changed = _changed(read_document(good, case.file), case)
    if case.file == MANIFEST:
        write_manifest(folder, changed)
        return
    if case.file in TENSOR_FILES:
        data = with_notes((folder / case.file).read_bytes(), to_text(changed))
    else:
        data = to_text(changed).encode()
    (folder / case.file).write_bytes(data)
    document = read_document(folder, MANIFEST)
    document["files"][case.file] = {
        **document["files"][case.file],
        "sha256": sha256_hex(data),
        "bytes": len(data),
    }
    if case.file == "base.coding":
        document["base_sha256"] = sha256_hex(data)
    write_manifest(folder, document)


def _changed(document: Any, case: Case) -> Any:
    if not case.place:
        return {**document, "surprise": 1} if case.change == "new key" else case.value
    *above, last = case.place
    holder = document
    for key in above:
        holder = holder[key]
    if case.change == "replaced":
        holder[last] = case.value
    elif case.change == "missing":
        del holder[last]
    elif case.change == "new key":
        holder[last]["surprise"] = 1
    elif isinstance(holder, list):
        holder.insert(last, holder[last])
    else:
        inner = to_text(holder[last])
        pairs = ",".join(f"{json.dumps(key)}:{to_text(one)}" for key, one in holder.items())
        twice = Raw(f"{{{pairs},{json.dumps(last)}:{inner}}}")
        return _changed(document, Case(case.file, tuple(above), "replaced", twice))
    return document


def write_manifest(folder: Path, document: Any) -> None:
    """`canonical_manifest` as a file."""
    (folder / MANIFEST).write_bytes(canonical_manifest(document))


def canonical_manifest(document: Any) -> bytes:
    """The canonical bytes of ``document`` with its own hash."""
    if isinstance(document, dict):
        document.pop("manifest_sha256", None)
        document["manifest_sha256"] = sha256_hex(_canonical(document))
    return _canonical(document)


def _canonical(document: Any) -> bytes:
    return to_text(document, sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n"


def to_text(document: Any, **options: Any) -> str:
    """JSON, with each `Raw` as it is."""
    raws: list[str] = []

    def mark(one: Any) -> str:
        raws.append(one.text)
        return f"@raw {len(raws) - 1}@"

    text = json.dumps(document, default=mark, **options)
    for index, raw in enumerate(raws):
        text = text.replace(f'"@raw {index}@"', raw)
    return text


def with_notes(data: bytes, text: str) -> bytes:
    """A safetensors file with another text in its metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["patchdeploy"] = text
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


Answers = Mapping[tuple[str, str, int], bytes]


def ask(folder: Path) -> Answers:
    """What a user does with a bundle, and the scores of each runtime, task and resolution."""
    bundle = open_bundle(folder)
    size_report(bundle)
    bundle.reference()
    for task in bundle.tasks:
        data = bundle.read(bundle.task(task).file)
        checked, patch = open_patch(data, bundle.policy(task), bundle.coding_table)
        check_results(checked, patch, bundle.base_files())
    answers = {}
    for runtime in RUNTIMES:
        with Engine.open(bundle, runtime) as engine:
            for task in engine.tasks:
                for px in engine.resolutions(task):
                    answers[runtime, task, px] = _scores(engine, task, px)
    return answers


def _scores(engine: Engine, task: str, px: int) -> bytes:
    rng = np.random.default_rng(px)
    image = rng.integers(0, 256, (1, px, px, 3), np.uint8)
    found = engine.classify(rng.integers(0, 256, (40, 50, 3), np.uint8), task, px)
    labels = "\0".join(found.classes).encode()
    return engine.logits(image, task, px).tobytes() + labels


def judge(folder: Path, right: Answers) -> str:
    """ "refused" or "same".

    Raises:
        AssertionError: another answer than ``right``, or too late. Any other error than a
            FileFormatError or an IntegrityError passes through, and is a fault as well.
    """
    start = time.perf_counter()
    try:
        found = ask(folder)
    except (FileFormatError, IntegrityError, PatchRefusedError):
        verdict = "refused"
    else:
        assert found.keys() <= right.keys(), f"it answers for {sorted(found)}"
        assert all(right[key] == one for key, one in found.items()), "it gives another answer"
        verdict = "same"
    seconds = time.perf_counter() - start
    assert seconds < SLOWEST_SECONDS, f"it took {seconds:.1f} s"
    return verdict


def make_judge(folder: Path) -> tuple[Path, Callable[[Case], str]]:
    """A good bundle, and the verdict on a case of it."""
    good = make_good(folder / "good")
    right = ask(good)
    assert len(right) == len(RUNTIMES) * 2 * len(RESOLUTIONS)

    def verdict(case: Case) -> str:
        write_case(case, good, folder / "case")
        try:
            return judge(folder / "case", right)
        except Exception as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error!s:.300}") from error

    return good, verdict
