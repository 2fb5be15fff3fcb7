"""The manifest: what a bundle holds, with the hash of every file.

In: values or the bytes of ``manifest.json``. Out: the other one. The bytes are canonical JSON
that carries its own SHA-256 under ``manifest_sha256``, so that one changed byte shows here too.
Unknown keys, an unknown format and a path that leaves the bundle are errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

from patchdeploy.coding.layout import PatchLayout
from patchdeploy.data import Preprocessing
from patchdeploy.errors import ConfigError, FileFormatError, IntegrityError
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.values import check_classes
from patchdeploy.storage import sha256_hex

FORMAT = 2
_SELF = "manifest_sha256"
_HASH = re.compile(r"[0-9a-f]{64}")


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

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file that only this task needs."""
        return (self.file, *self.float_files.values())


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
            FileFormatError: truncated, a missing key, or another format.
            ConfigError: an unknown key, or a value or path outside the rules.
            IntegrityError: changed since it was written.
        """
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise FileFormatError(
                    f"manifest has format {document['format']!r}; this version reads format "
                    f"{FORMAT}; export the bundle again or upgrade patchdeploy"
                )
            _check_own_hash(data, document)
            return _parse(document)
        except (ConfigError, FileFormatError, IntegrityError):
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"manifest of {len(data)} bytes does not parse ({error!r}); it must be the whole "
                "manifest.json that patchdeploy wrote; copy the bundle again"
            ) from error


def current_version() -> str:
    """Version of the installed patchdeploy."""
    try:
        return version("patchdeploy")
    except PackageNotFoundError:
        return "0"


def without_task(manifest: Manifest, task: str) -> Manifest:
    """``manifest`` less ``task`` and the files that only it needs."""
    entry = manifest.tasks[task]
    gone = set(entry.paths)
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
            f"manifest.json has SHA-256 {found} but records {document[_SELF]}; it must be the "
            "exact bytes that patchdeploy wrote; copy the bundle again"
        )


def _parse(document: Mapping[str, Any]) -> Manifest:
    expected = {one.name for one in fields(Manifest)} | {"format", _SELF}
    _check_keys(document, expected, "manifest")
    manifest = Manifest(
        patchdeploy=str(document["patchdeploy"]),
        base_name=str(document["base_name"]),
        base_sha256=str(document["base_sha256"]),
        coding=str(document["coding"]),
        trusted=_trusted(document["trusted"]),
        source_sha256=str(document["source_sha256"]),
        preprocessing=Preprocessing.from_json(document["preprocessing"]),
        resolutions=_resolutions(document["resolutions"]),
        layout=_entry(PatchLayout, document["layout"], "layout"),
        converters={
            name: _entry(ConverterEntry, one, f"converter {name!r}")
            for name, one in document["converters"].items()
        },
        tasks={name: _task(name, one) for name, one in document["tasks"].items()},
        files={
            path: _entry(FileEntry, one, f"file {path!r}")
            for path, one in document["files"].items()
        },
    )
    _check_manifest(manifest)
    return manifest


def _trusted(value: str | None) -> TrustedKeys | None:
    return None if value is None else TrustedKeys.from_bytes(value.encode())


def _entry(kind: type[Any], body: Mapping[str, Any], where: str) -> Any:
    _check_keys(body, {one.name for one in fields(kind)}, where)
    return kind(**body)


def _task(name: str, body: Mapping[str, Any]) -> TaskEntry:
    entry: TaskEntry = _entry(TaskEntry, body, f"task {name!r}")
    return replace(
        entry,
        classes=tuple(str(label) for label in entry.classes),
        resolutions=_resolutions(entry.resolutions),
    )


def _resolutions(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if (
        not found
        or any(type(px) is not int or px < 1 for px in found)
        or list(found) != sorted(set(found))
    ):
        raise ConfigError(
            f"manifest lists resolutions {values!r}; they must be positive integers, ascending; "
            "export the bundle again"
        )
    return found


def _check_keys(body: Mapping[str, Any], expected: set[str], where: str) -> None:
    unknown, missing = sorted(set(body) - expected), sorted(expected - set(body))
    if unknown:
        raise ConfigError(
            f"unknown key {unknown[0]!r} in {where}; the keys are {', '.join(sorted(expected))}; "
            "export the bundle again or upgrade patchdeploy"
        )
    if missing:
        raise FileFormatError(
            f"{where} has no key {missing[0]!r}; the keys are {', '.join(sorted(expected))}; "
            "export the bundle again"
        )


def _check_manifest(manifest: Manifest) -> None:
    named = [path for one in manifest.converters.values() for path in (one.file, one.slots)]
    named.append(manifest.coding)
    for name, task in manifest.tasks.items():
        check_classes(name, task.classes, manifest.head_capacity)
        named += task.paths
    for path in [*manifest.files, *named]:
        check_path(path)
        if path not in manifest.files:
            raise FileFormatError(
                f"the manifest names {path!r} but records no hash of it; every file must be "
                "under files; export the bundle again"
            )
    for path, entry in manifest.files.items():
        sound = type(entry.bytes) is int and entry.bytes >= 0 and type(entry.ships) is bool
        if not sound or not isinstance(entry.sha256, str) or not _HASH.fullmatch(entry.sha256):
            raise FileFormatError(
                f"the manifest's entry for {path!r} is {entry}; it must be a SHA-256, a length "
                "and true or false; export the bundle again"
            )


def check_path(path: str) -> None:
    """Check that ``path`` is relative, normal and stays inside the bundle.

    Raises:
        ConfigError: it is not.
    """
    pure = PurePosixPath(path)
    outside = pure.is_absolute() or any(part in ("", ".", "..") for part in path.split("/"))
    if outside or re.fullmatch(r"[A-Za-z0-9._/-]{1,200}", path) is None:
        raise ConfigError(
            f"path {path!r} in the manifest; a path must be relative, of letters, digits, dot, "
            "hyphen and underscore, and stay inside the bundle; do not use this bundle"
        )
