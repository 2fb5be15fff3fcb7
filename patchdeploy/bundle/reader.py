"""Reading a bundle: every byte is compared with the hash that the manifest records.

In: a folder. Out: a `Bundle` that reads base files, slot tables, patches and the reference on
demand, or a typed error that names the file, the hash expected and the hash found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from patchdeploy.bundle.manifest import ConverterEntry, Manifest, TaskEntry
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import (
    ConfigError,
    FileFormatError,
    IntegrityError,
    UnknownResolutionError,
    UnknownTaskError,
)
from patchdeploy.patchfile import Policy, check_patch_file
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.pack import BaseFiles, open_patch
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.reference import load_reference
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex

MANIFEST = "manifest.json"
CODING = "base.coding"
REFERENCE = "reference/base.safetensors"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is and what its manifest says; bytes are read on demand.

    Attributes:
        path: the folder.
        manifest: as it was when the bundle was opened.
    """

    path: Path
    manifest: Manifest

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, sorted."""
        return tuple(sorted(self.manifest.tasks))

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the converters that wrote a base file, sorted."""
        return tuple(sorted(self.manifest.converters))

    def task(self, name: str) -> TaskEntry:
        """What the manifest says about task ``name``.

        Raises:
            UnknownTaskError: no such task.
        """
        if name not in self.manifest.tasks:
            raise UnknownTaskError(
                f"no task {name!r} in {self.path}; it has {', '.join(self.tasks) or 'none'}; "
                "choose one of them or add the task"
            )
        return self.manifest.tasks[name]

    def check_resolution(self, task: str, resolution: int) -> None:
        """Check that ``task`` was exported at ``resolution`` pixels.

        Raises:
            UnknownTaskError, UnknownResolutionError: it was not.
        """
        held = self.task(task).resolutions
        if resolution not in held:
            raise UnknownResolutionError(
                f"task {task!r} was not exported at {resolution} px; it has "
                f"{', '.join(map(str, held))}; choose one of them or export it again"
            )

    def read(self, path: str) -> bytes:
        """The bytes of one file, compared with the hash that the manifest records.

        Raises:
            IntegrityError: missing, or not the recorded bytes.
        """
        entry = self.manifest.files[path]
        place = self.path / path
        try:
            inside = place.resolve().is_relative_to(self.path.resolve())
            data = place.read_bytes() if inside else None
        except OSError as error:
            raise IntegrityError(
                f"{path} of bundle {self.path} cannot be read ({error.strerror}); the manifest "
                f"records {entry.bytes} bytes with SHA-256 {entry.sha256}; copy the bundle again"
            ) from error
        if data is None:
            raise IntegrityError(
                f"{path} of bundle {self.path} is a link to {place.resolve()}; every file must "
                "lie inside the bundle; copy the bundle again"
            )
        found = sha256_hex(data)
        if found != entry.sha256:
            raise IntegrityError(
                f"{path} of bundle {self.path} has SHA-256 {found}; the manifest records "
                f"{entry.sha256}; copy the bundle again"
            )
        return data

    def base_file(self, format_name: str) -> bytes:
        """The base file that converter ``format_name`` wrote.

        Raises:
            ConfigError: the bundle has no such format.
        """
        return self.read(self._converter(format_name).file)

    def table(self, format_name: str) -> SlotTable:
        """The slot table of `base_file`.

        Raises:
            SlotTableError: it does not parse.
            IntegrityError: it is bound to another base file.
        """
        entry = self._converter(format_name)
        table = SlotTable.from_json(self.read(entry.slots))
        recorded = self.manifest.files[entry.file].sha256
        if table.base_sha256 != recorded:
            raise IntegrityError(
                f"slot table {entry.slots} is bound to base {table.base_sha256}; the bundle's "
                f"{entry.file} has SHA-256 {recorded}; export the bundle again"
            )
        return table

    @cached_property
    def coding_table(self) -> CodingTable:
        """What this bundle's patches are coded against.

        Raises:
            FileFormatError: it does not parse.
            IntegrityError: it is not the one that the manifest names.
        """
        table = CodingTable.from_bytes(self.read(self.manifest.coding))
        if table.sha256 != self.manifest.base_sha256:
            raise IntegrityError(
                f"{self.manifest.coding} of bundle {self.path} has SHA-256 {table.sha256}; patches "
                f"name base {self.manifest.base_sha256}; export the bundle again"
            )
        return table

    def base_files(self) -> BaseFiles:
        """Every converter's base file and slot table."""
        return {name: (self.base_file(name), self.table(name)) for name in self.formats}

    def policy(self, task: str | None = None) -> Policy:
        """What this bundle demands of a patch of ``task`` (None: of any)."""
        trusted = self.manifest.trusted
        return Policy(
            trusted,
            allow_unsigned=trusted is None,
            task=task,
            base_sha256=self.manifest.base_sha256,
        )

    def header(self, task: str) -> PatchHeader:
        """The header of ``task``'s patch, its signatures checked.

        Raises:
            PatchRefusedError: it may not be used.
        """
        return check_patch_file(self.read(self.task(task).file), self.policy(task)).header

    def patch(self, task: str, resolution: int | None = None) -> PatchFile:
        """The decoded and checked patch of ``task``, at one resolution or (None) all of them.

        Raises:
            PatchRefusedError: it may not be used.
        """
        entry = self.task(task)
        data = self.read(entry.file)
        patch = open_patch(data, self.policy(task), self.coding_table, resolution)[1]
        if patch.classes != entry.classes:
            raise IntegrityError(
                f"{entry.file} holds task {patch.task!r} with {len(patch.classes)} classes; the "
                f"manifest records {task!r} with {len(entry.classes)}; add the task again"
            )
        return patch

    def reference(self) -> QuantizedBase:
        """The quantised base in neutral form."""
        return load_reference(self.read(REFERENCE))

    def _converter(self, format_name: str) -> ConverterEntry:
        if format_name not in self.manifest.converters:
            raise ConfigError(
                f"bundle {self.path} holds no {format_name!r} base file; it has "
                f"{', '.join(self.formats)}; export it with that format"
            )
        return self.manifest.converters[format_name]


def open_bundle(path: Path | str, verify_hashes: bool = True) -> Bundle:
    """Open the bundle at ``path``.

    Args:
        verify_hashes: compare every file now; without it, each is compared when it is read.
            Files that do not ship (reference, float) may be absent from a deployed copy.

    Raises:
        FileFormatError: no bundle, or a manifest that is truncated or of another format.
        ConfigError: a manifest with an unknown key or a path that leaves the bundle.
        IntegrityError: a file is missing or is not the recorded one.
    """
    path = Path(path)
    while True:
        data = read_manifest(path)
        bundle = Bundle(path, Manifest.from_json(data))
        try:
            if verify_hashes:
                for name, entry in bundle.manifest.files.items():
                    if entry.ships or (path / name).exists():
                        bundle.read(name)
            return bundle
        except IntegrityError:
            if read_manifest(path) == data:  # else a task was replaced meanwhile: look again
                raise


def read_manifest(path: Path) -> bytes:
    """The bytes of the manifest in folder ``path``.

    Raises:
        FileFormatError: there is none.
    """
    try:
        return (path / MANIFEST).read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"{path} is not a bundle ({MANIFEST}: {error.strerror}); a bundle is a folder that "
            "export wrote; correct the path"
        ) from error
