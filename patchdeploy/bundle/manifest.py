"""The manifest: what a bundle holds, with the hash of every file.

In: values or the bytes of ``manifest.json``. Out: the other one. The bytes are canonical JSON
that carries its own SHA-256 under ``manifest_sha256``, so that one changed byte shows here too.
Whoever hands over a bundle can make that hash right again: every value is checked before any is
used, for its type, its range, and what it says of the others (docs/bundle-format.md).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from patchdeploy.bundle.float_scores import is_float_scores
from patchdeploy.coding.layout import PatchLayout, read_layout
from patchdeploy.data import Preprocessing
from patchdeploy.documents import DECIMAL, HEX64, HEX64_RULE, Field, parse_document
from patchdeploy.errors import ConfigError, FileFormatError, IntegrityError, PatchKeyError
from patchdeploy.patchfile.header import MAX_RESOLUTION, MAX_RESOLUTIONS
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.payload import MAX_LEVELS as NOTES_LEVELS
from patchdeploy.storage import sha256_hex
from patchdeploy.task_names import TASK_NAME, TASK_RULE

MANIFEST = "manifest.json"
FORMAT = 2
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILES = 65_536
"""Files of a bundle; and so tasks, and keys of a task's metrics."""
MAX_FILE_BYTES = 1 << 30
MAX_BUNDLE_BYTES = 16 << 30
MAX_CONVERTERS = 8
MAX_NAME, MAX_LABEL = 4096, 65_535
MAX_KEYS_BYTES = 65_536
MAX_LEVELS = NOTES_LEVELS + 4
"""A task's metrics lie in the task, among tasks, in the document."""
_SELF = "manifest_sha256"
_ANY = re.compile(r"(?s).*")
_PATH = re.compile(r"[A-Za-z0-9._/-]{1,200}")
_CONVERTER_NAME = (re.compile(r"[a-z0-9_-]{1,32}"), "1 to 32 of a-z, 0-9, underscore and hyphen")
_PREPROCESSING = tuple(one.name for one in fields(Preprocessing))


@dataclass(frozen=True)
class ConverterEntry:
    """One runtime's base file.

    Attributes:
        file, slots: paths of the base file and of its slot table, relative to the bundle.
    """

    file: str
    slots: str


@dataclass(frozen=True)
class TaskEntry:
    """One task.

    Attributes:
        file: path of the patch file.
        classes: labels in the order of the head's rows.
        resolutions: sides in pixels that the patch holds, ascending.
        metrics: as in the patch file.
        float_files: by resolution (as text), a stand-alone float32 .onnx for `verify`.
    """

    file: str
    classes: tuple[str, ...]
    resolutions: tuple[int, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    float_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: its hash, its length, and whether an app needs it."""

    sha256: str
    bytes: int
    ships: bool


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but the bytes.

    Attributes:
        patchdeploy: version that wrote the manifest.
        base_name: the base's name.
        base_sha256: of the coding table; what patches name.
        coding: path of the coding table.
        trusted: the keys that may sign patches of this bundle; None: a development bundle, whose
            patches are not signed.
        source_sha256: content hash of the float base that was exported.
        preprocessing: how an image becomes the network's input.
        resolutions: sides in pixels that were exported, ascending.
        layout: the lengths that a patch must have.
        converters: by converter name.
        tasks: by task name.
        files: every file but the manifest, by path relative to the bundle.
    """

    patchdeploy: str
    base_name: str
    base_sha256: str
    coding: str
    trusted: TrustedKeys | None
    source_sha256: str
    preprocessing: Preprocessing
    resolutions: tuple[int, ...]
    layout: PatchLayout
    converters: Mapping[str, ConverterEntry]
    tasks: Mapping[str, TaskEntry]
    files: Mapping[str, FileEntry]

    @property
    def head_capacity(self) -> int:
        """The largest number of classes that a task may have."""
        return self.layout.head_capacity

    def float_scores(self, task: str) -> str | None:
        """Path of the record of ``task``'s float scores, found by its name, or None."""
        return next((path for path in self.files if is_float_scores(path, task)), None)

    def task_paths(self, task: str) -> set[str]:
        """Every file that only ``task`` needs."""
        entry, scores = self.tasks[task], self.float_scores(task)
        return {entry.file, *entry.float_files.values(), *([] if scores is None else [scores])}

    def to_json(self) -> bytes:
        """Canonical JSON (sorted keys, two spaces, one newline at the end)."""
        document = {
            **asdict(self),
            "format": FORMAT,
            "preprocessing": self.preprocessing.to_json(),
            "layout": asdict(self.layout),
            "trusted": None if self.trusted is None else self.trusted.to_bytes().decode(),
        }
        document[_SELF] = sha256_hex(_canonical(document))
        return _canonical(document)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse and check a manifest.

        Raises:
            FileFormatError: truncated, another format, an unknown or missing key, or a value
                outside its rule or not in keeping with the others; the message names the field.
            IntegrityError: changed since it was written.
        """
        document = parse_document(data, "manifest", MAX_MANIFEST_BYTES, most_depth=MAX_LEVELS)
        if type(document.value) is dict and document.value.get("format") != FORMAT:
            raise FileFormatError(
                f"manifest has format {document.value.get('format')!r:.80}; this version reads "
                f"format {FORMAT}; export the bundle again or upgrade patchdeploy"
            )
        fields_of = document.keys({one.name for one in fields(Manifest)} | {"format", _SELF})
        fields_of["format"].integer(FORMAT, FORMAT)
        _check_own_hash(data, document.value)
        manifest = _parse(fields_of)
        _check_files(manifest)
        return manifest


def current_version() -> str:
    """Version of the installed patchdeploy."""
    try:
        return version("patchdeploy")
    except PackageNotFoundError:
        return "0"


def without_task(manifest: Manifest, task: str) -> Manifest:
    """``manifest`` less ``task`` and the files that only it needs."""
    gone = manifest.task_paths(task)
    return replace(
        manifest,
        tasks={name: one for name, one in manifest.tasks.items() if name != task},
        files={path: one for path, one in manifest.files.items() if path not in gone},
    )


def _canonical(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _check_own_hash(data: bytes, document: Mapping[str, Any]) -> None:
    body = {key: value for key, value in document.items() if key != _SELF}
    found = sha256_hex(_canonical(body))
    if document[_SELF] != found or _canonical(document) != data:
        raise IntegrityError(
            f"manifest.json has SHA-256 {found} but records {document[_SELF]!r:.80}; it must be "
            "the exact bytes that patchdeploy wrote; copy the bundle again"
        )


def _parse(document: Mapping[str, Field]) -> Manifest:
    """Every value of its type and in its range; what they say of each other is looked at later."""
    resolutions = _resolutions(document["resolutions"])
    layout = read_layout(document["layout"])
    converters = document["converters"].table(*_CONVERTER_NAME, most=MAX_CONVERTERS, least=1)
    tasks = document["tasks"].table(TASK_NAME, TASK_RULE, most=MAX_FILES)
    return Manifest(
        patchdeploy=document["patchdeploy"].short_text(100),
        base_name=document["base_name"].short_text(MAX_NAME),
        base_sha256=document["base_sha256"].text(HEX64, HEX64_RULE),
        coding=_path(document["coding"]),
        trusted=_trusted(document["trusted"]),
        source_sha256=document["source_sha256"].text(HEX64, HEX64_RULE),
        preprocessing=_preprocessing(document["preprocessing"]),
        resolutions=resolutions,
        layout=layout,
        converters={name: _converter(one) for name, one in converters.items()},
        tasks={name: _task(one, layout, resolutions) for name, one in tasks.items()},
        files={
            check_path(path): _file(one)
            for path, one in document["files"].table(_ANY, "a path", most=MAX_FILES).items()
        },
    )


def _path(value: Field) -> str:
    return check_path(value.text(_ANY, "a path"))


def _converter(value: Field) -> ConverterEntry:
    body = value.keys(("file", "slots"))
    return ConverterEntry(_path(body["file"]), _path(body["slots"]))


def _file(value: Field) -> FileEntry:
    body = value.keys(("sha256", "bytes", "ships"))
    return FileEntry(
        body["sha256"].text(HEX64, HEX64_RULE),
        body["bytes"].integer(0, MAX_FILE_BYTES),
        body["ships"].flag(),
    )


def _trusted(value: Field) -> TrustedKeys | None:
    if value.value is None:
        return None
    try:
        return TrustedKeys.from_bytes(value.short_text(MAX_KEYS_BYTES).encode())
    except PatchKeyError as error:
        raise FileFormatError(f"{value.name}: {error}") from error


def _preprocessing(value: Field) -> Preprocessing:
    value.keys(_PREPROCESSING)
    try:
        return Preprocessing.from_json(value.value)
    except ConfigError as error:
        raise FileFormatError(f"{value.name}: {error}") from error


def _task(value: Field, layout: PatchLayout, exported: tuple[int, ...]) -> TaskEntry:
    body = value.keys(one.name for one in fields(TaskEntry))
    labels = body["classes"].items(layout.head_capacity, least=2)
    classes = tuple(label.short_text(MAX_LABEL) for label in labels)
    if len(set(classes)) < len(classes):
        body["classes"].refuse("labels of which each comes once")
    resolutions = _resolutions(body["resolutions"])
    if not set(resolutions) <= set(exported):
        body["resolutions"].refuse(f"among the bundle's, {', '.join(map(str, exported))}")
    metrics = body["metrics"].table(_ANY, "any text", most=MAX_FILES)
    floats = body["float_files"].table(DECIMAL, "a side in pixels", most=len(resolutions))
    for px, path in floats.items():
        if int(px) not in resolutions:
            path.refuse(f"absent, as the task has no {px} px")
    return TaskEntry(
        file=_path(body["file"]),
        classes=classes,
        resolutions=resolutions,
        metrics={key: one.value for key, one in metrics.items()},
        float_files={px: _path(path) for px, path in floats.items()},
    )


def _resolutions(value: Field) -> tuple[int, ...]:
    found = [px.integer(1, MAX_RESOLUTION) for px in value.items(MAX_RESOLUTIONS, least=1)]
    if found != sorted(set(found)):
        value.refuse("ascending, each once")
    return tuple(found)


def _check_files(manifest: Manifest) -> None:
    """Each file is recorded, has one use, and ships where an app needs it."""
    needed = [manifest.coding]
    needed += [path for one in manifest.converters.values() for path in (one.file, one.slots)]
    needed += [task.file for task in manifest.tasks.values()]
    floats = [path for task in manifest.tasks.values() for path in task.float_files.values()]
    uses = Counter([*needed, *floats])
    for path, count in uses.items():
        if path not in manifest.files:
            raise FileFormatError(
                f"the manifest names {path!r} but records no hash of it; every file must be "
                "under files; export the bundle again"
            )
        if count > 1:
            raise FileFormatError(
                f"the manifest names {path!r} {count} times; a file must have one use; export the "
                "bundle again"
            )
    for path in needed:
        if not manifest.files[path].ships:
            raise FileFormatError(
                f"manifest: files.{path} has ships false; an app needs this file, so it must be "
                "true; export the bundle again"
            )
    total = sum(entry.bytes for entry in manifest.files.values())
    if total > MAX_BUNDLE_BYTES:
        raise FileFormatError(
            f"manifest: files has {total} bytes in all; a bundle must have at most "
            f"{MAX_BUNDLE_BYTES}; export it with fewer tasks or without float files"
        )


def check_path(path: str) -> str:
    """``path``, once it is relative, normal, inside the bundle and nothing that a writer hides.

    Raises:
        FileFormatError: it is not.
    """
    hidden = any(part.startswith(".") or not part for part in path.split("/"))
    if hidden or path == MANIFEST or _PATH.fullmatch(path) is None:
        raise FileFormatError(
            f"path {path[:200]!r} in the manifest; a path must be relative, of letters, digits, "
            "dot, hyphen and underscore, no part beginning with a dot, and stay inside the bundle; "
            "do not use this bundle"
        )
    return path
