"""Reading a bundle: every byte is compared with the hash that the manifest records.

In: a folder. Out: a `Bundle` that reads base files, slot tables, patches and the reference on
demand, or a typed error that names the file, the hash expected and the hash found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from patchdeploy.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    ConverterEntry,
    Manifest,
    TaskEntry,
)
from patchdeploy.bundle.tables import check_base, check_fit
from patchdeploy.coding.layout import patch_layout
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import (
    ConfigError,
    FileFormatError,
    IntegrityError,
    IrregularFileError,
    UnknownResolutionError,
    UnknownTaskError,
)
from patchdeploy.graph import largest_work
from patchdeploy.patchfile import CheckedPatch, Policy, check_patch_file
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.pack import BaseFiles, open_patch
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.reference import load_reference
from patchdeploy.slots import SlotTable
from patchdeploy.storage import hash_inside, read_inside, sha256_hex

Found = TypeVar("Found")

MAX_MAP_VALUES = 1 << 30
MAX_PRODUCTS = 1 << 42
"""What one image may cost in the reference's executor: minutes, where a network takes a second."""
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
        """The bytes of one file, compared with the length and hash that the manifest records.

        Raises:
            IntegrityError: missing, a link, a pipe, a device, or not the recorded bytes.
        """
        most = self.manifest.files[path].bytes
        data = self._look(path, lambda: read_inside(self.path, path, most))
        self._compare(path, sha256_hex(data), len(data))
        return data

    def check_file(self, path: str) -> None:
        """`read`, without holding the file in memory.

        Raises:
            IntegrityError: as `read`.
        """
        most = self.manifest.files[path].bytes
        self._compare(path, *self._look(path, lambda: hash_inside(self.path, path, most)))

    def _look(self, path: str, call: Callable[[], Found]) -> Found:
        entry = self.manifest.files[path]
        recorded = f"{entry.bytes} bytes with SHA-256 {entry.sha256}"
        try:
            return call()
        except IrregularFileError as error:
            raise IntegrityError(
                f"{path} of bundle {self.path} cannot be read: {error}; the manifest records "
                f"{recorded}; copy the bundle again"
            ) from error
        except OSError as error:
            raise IntegrityError(
                f"{path} of bundle {self.path} cannot be read ({error.strerror}); the manifest "
                f"records {recorded}; copy the bundle again"
            ) from error

    def _compare(self, path: str, found: str, length: int) -> None:
        entry = self.manifest.files[path]
        if found != entry.sha256:
            raise IntegrityError(
                f"{path} of bundle {self.path} has SHA-256 {found}; the manifest records "
                f"{entry.sha256}; copy the bundle again"
            )
        if length != entry.bytes:
            raise IntegrityError(
                f"{path} of bundle {self.path} has {length} bytes; the manifest records "
                f"{entry.bytes}; copy the bundle again"
            )

    def base_file(self, format_name: str) -> bytes:
        """The base file that converter ``format_name`` wrote.

        Raises:
            ConfigError: the bundle has no such format.
        """
        return self.read(self._converter(format_name).file)

    def table(self, format_name: str) -> SlotTable:
        """The slot table of `base_file`, in keeping with the manifest.

        Raises:
            SlotTableError: it does not parse, or is for another runtime, other resolutions or
                other patches than the manifest says.
            IntegrityError: it is bound to another base file.
        """
        entry = self._converter(format_name)
        table = SlotTable.from_json(self.read(entry.slots))
        recorded = self.manifest.files[entry.file]
        if table.base_sha256 != recorded.sha256 or table.base_bytes != recorded.bytes:
            raise IntegrityError(
                f"slot table {entry.slots} is bound to base {table.base_sha256} of "
                f"{table.base_bytes} bytes; the bundle's {entry.file} has SHA-256 "
                f"{recorded.sha256} and {recorded.bytes} bytes; export the bundle again"
            )
        check_fit(table, format_name, self.manifest.resolutions, self.manifest.layout)
        return table

    def base(self, format_name: str) -> tuple[bytes, SlotTable]:
        """`base_file` and `table`, once the table's views and names are those of the file.

        Raises:
            SlotTableError: as `table`, or another view or name.
            IntegrityError, ConfigError: as `base_file`.
        """
        data, table = self.base_file(format_name), self.table(format_name)
        check_base(data, table)
        return data, table

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
        if table.layout != self.manifest.layout:
            raise IntegrityError(
                f"{self.manifest.coding} of bundle {self.path} has {table.layout}; the manifest "
                f"records {self.manifest.layout}; export the bundle again"
            )
        return table

    def base_files(self) -> BaseFiles:
        """Every converter's base file and slot table."""
        return {name: self.base(name) for name in self.formats}

    def policy(self, task: str | None = None) -> Policy:
        """What this bundle demands of a patch of ``task`` (None: of any)."""
        trusted = self.manifest.trusted
        return Policy(
            trusted,
            allow_unsigned=trusted is None,
            task=task,
            base_sha256=self.manifest.base_sha256,
            resolutions=frozenset(self.manifest.resolutions),
        )

    def check(self, task: str, trusted: TrustedKeys | None = None) -> CheckedPatch:
        """``task``'s patch after checks 1 to 6.

        Args:
            trusted: a list of keys in the place of the one that the bundle pins.

        Raises:
            PatchRefusedError: it may not be used.
        """
        policy = self.policy(task)
        data = self.read(self.task(task).file)
        return check_patch_file(data, replace(policy, trusted=trusted or policy.trusted))

    def header(self, task: str) -> PatchHeader:
        """The header of ``task``'s patch, its signatures checked.

        Raises:
            PatchRefusedError: it may not be used.
        """
        return self.check(task).header

    def patch(self, task: str, resolution: int | None = None) -> PatchFile:
        """The decoded and checked patch of ``task``, at one resolution or (None) all of them.

        Raises:
            PatchRefusedError: it may not be used.
        """
        return self.checked_patch(task, resolution)[1]

    def checked_patch(
        self, task: str, resolution: int | None = None
    ) -> tuple[CheckedPatch, PatchFile]:
        """The patch file of ``task`` as its signatures were checked, and what `patch` gives.

        Raises:
            PatchRefusedError: it may not be used.
        """
        entry = self.task(task)
        data = self.read(entry.file)
        checked, patch = open_patch(data, self.policy(task), self.coding_table, resolution)
        held = tuple(sorted(checked.header.resolutions))
        if patch.classes != entry.classes or held != entry.resolutions:
            raise IntegrityError(
                f"{entry.file} holds task {patch.task!r} with {len(patch.classes)} classes at "
                f"{', '.join(map(str, held))} px; the manifest records {len(entry.classes)} at "
                f"{', '.join(map(str, entry.resolutions))} px, or other labels; add the task again"
            )
        return checked, patch

    def reference(self) -> QuantizedBase:
        """The quantised base in neutral form.

        Raises:
            FileFormatError: it does not parse.
            IntegrityError: it is missing, or not the one that the coding table was made from.
        """
        data = self.read(REFERENCE)
        if sha256_hex(data) != self.coding_table.reference_sha256:
            raise IntegrityError(
                f"{REFERENCE} of bundle {self.path} has SHA-256 {sha256_hex(data)}; the coding "
                f"table was made from {self.coding_table.reference_sha256}; export the bundle again"
            )
        base = load_reference(data)
        self._check_reference(base)
        return base

    def _check_reference(self, base: QuantizedBase) -> None:
        layout, sides = patch_layout(base), self.manifest.resolutions
        if layout != self.manifest.layout:
            raise IntegrityError(
                f"{REFERENCE} of bundle {self.path} has {layout}; the manifest records "
                f"{self.manifest.layout}; export the bundle again"
            )
        try:
            values, products = largest_work(base.graph, sides)
        except UnknownResolutionError as error:
            raise IntegrityError(f"{REFERENCE} of bundle {self.path}: {error}") from error
        if values > MAX_MAP_VALUES or products > MAX_PRODUCTS:
            raise IntegrityError(
                f"{REFERENCE} of bundle {self.path} has a map of {values} values and {products} "
                f"multiply-accumulates at one of {', '.join(map(str, sides))} px; at most "
                f"{MAX_MAP_VALUES} and {MAX_PRODUCTS} are run; do not use this bundle"
            )

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
        FileFormatError: no bundle, or a manifest that is truncated, of another format, or with a
            value that breaks a rule.
        IntegrityError: a file is missing or is not the recorded one.
    """
    path = Path(path)
    while True:
        data = read_manifest(path)
        bundle = Bundle(path, Manifest.from_json(data))
        try:
            if verify_hashes:
                for name, entry in bundle.manifest.files.items():
                    if entry.ships or os.path.lexists(path / name):
                        bundle.check_file(name)
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
        return read_inside(path, MANIFEST, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise FileFormatError(
            f"{path} is not a bundle ({MANIFEST}: {error.strerror}); a bundle is a folder that "
            "export wrote; correct the path"
        ) from error
