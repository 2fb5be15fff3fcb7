"""A bundle: one base per runtime and a patch per task, in a folder that is never half written.

In: a `QuantizedBase` and the values of tasks. Out: a folder: ``manifest.json``, ``base.coding``
(what patches are coded against), ``base.<format>`` with its slot table, ``patches/<task>.pdp``, and
what no app needs, ``reference/`` and ``float/``. Adding a task writes its patch under a name that
is not in use and then replaces the manifest, so after any fault the bundle is the old one or the
new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle.float_scores import float_scores_name
from patchdeploy.bundle.manifest import (
    MANIFEST,
    ConverterEntry,
    FileEntry,
    Manifest,
    TaskEntry,
    current_version,
    without_task,
)
from patchdeploy.bundle.models import patched, size_report, standalone
from patchdeploy.bundle.reader import (
    CODING,
    REFERENCE,
    Bundle,
    open_bundle,
    read_manifest,
)
from patchdeploy.coding.grid import CodingSteps
from patchdeploy.coding.make_table import make_coding_table
from patchdeploy.coding.table import CodingTable
from patchdeploy.convert import load_converter
from patchdeploy.errors import (
    AlreadyAttachedError,
    ConfigError,
    StorageError,
    UnknownResolutionError,
    WrongBaseError,
)
from patchdeploy.patchfile import check_patch_file
from patchdeploy.patchfile.header import MAX_RESOLUTION, MAX_RESOLUTIONS
from patchdeploy.patchfile.json import LARGEST
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.pack import GoldenInputs, PackedPatch, Release, pack_patch
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.model import QuantizedBase, neutral_variant
from patchdeploy.reference import save_reference
from patchdeploy.storage import (
    check_inside,
    read_inside,
    sha256_hex,
    unlink_inside,
    write_atomic,
    write_inside,
)
from patchdeploy.storage_locks import hold_lock, open_lock
from patchdeploy.storage_temporary import remove_leftovers, staged_folder, try_folder

__all__ = [
    "Bundle",
    "add_task",
    "create_bundle",
    "open_bundle",
    "patched",
    "remove_task",
    "size_report",
    "standalone",
]

_LOCK = ".lock"
_FOLDERS = ("patches", "float", "reference")
_OWN_FILE = re.compile(r"(patches|float)/[A-Za-z0-9_-][A-Za-z0-9._-]{0,180}")
"""A file that adding a task writes."""
MAX_NOTED_BYTES = 1 << 20
_LOCK_SECONDS = 600.0
"""A writer of a large base's task lowers and proves it while it holds the bundle."""


def create_bundle(
    path: Path | str,
    base: QuantizedBase,
    *,
    resolutions: Sequence[int],
    formats: Sequence[str] = ("tflite", "onnx"),
    float_base_sha256: str | None = None,
    trusted: TrustedKeys | None = None,
    table: CodingTable | None = None,
) -> Bundle:
    """Write a bundle without tasks: one base file per format, its slots neutral.

    Args:
        path: a folder that does not exist yet (or is empty).
        resolutions: sides in pixels; a .tflite gets one signature for each.
        formats: converter names.
        float_base_sha256: content hash of the float base; by default the graph's.
        trusted: keys that must sign the bundle's patches; by default it is a development bundle.
        table: the base's coding table; by default it is made.

    Raises:
        ConfigError: no resolution or format, an unknown converter, or ``path`` is in use.
        StorageError: the disk is full; nothing is left at ``path``.
    """
    path = Path(path)
    chosen = check_request(path, resolutions, formats)
    place = find_place(path)
    files: dict[str, bytes] = {}
    converters: dict[str, ConverterEntry] = {}
    variants = {px: neutral_variant(base, px) for px in chosen}
    for name in formats:
        converter = load_converter(name)
        written = converter.write(base, variants)
        entry = ConverterEntry(f"base{converter.suffix}", f"base{converter.suffix}.slots.json")
        files[entry.file], files[entry.slots] = written.data, written.table.to_json()
        converters[name] = entry
    files[REFERENCE] = save_reference(base)
    table = table or make_coding_table(base)
    files[CODING] = table.encoded
    manifest = Manifest(
        patchdeploy=current_version(),
        base_name=base.graph.name,
        base_sha256=table.sha256,
        coding=CODING,
        trusted=trusted,
        source_sha256=float_base_sha256 or base.graph.base_sha256,
        preprocessing=base.graph.preprocessing,
        resolutions=chosen,
        layout=table.layout,
        converters=converters,
        tasks={},
        files={name: make_entry(data, ships=name != REFERENCE) for name, data in files.items()},
    )
    document = manifest.to_json()
    Manifest.from_json(document)  # what cannot be read again is not written
    _write_folder(place, {**files, MANIFEST: document})
    return Bundle(path, manifest)


def check_request(
    path: Path, resolutions: Sequence[int], formats: Sequence[str]
) -> tuple[int, ...]:
    """The resolutions sorted, once the place is free and there is something to write.

    Raises:
        ConfigError: no resolution or format, or ``path`` is in use or cannot be replaced.
        StorageError: nothing can be written there.
    """
    if not resolutions or any(px < 1 for px in resolutions) or not formats:
        raise ConfigError(
            f"a bundle at resolutions {list(resolutions)} in formats {list(formats)}; it needs at "
            "least one of each, in positive pixels; name them"
        )
    if len(set(resolutions)) > MAX_RESOLUTIONS or max(resolutions) > MAX_RESOLUTION:
        raise ConfigError(
            f"a bundle at resolutions {sorted(set(resolutions))}; it holds at most "
            f"{MAX_RESOLUTIONS}, of at most {MAX_RESOLUTION} px; leave some out"
        )
    place = find_place(path)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(
            f"{path} is in use; a bundle is written to a folder that does not exist or is empty; "
            "choose another place or remove it"
        )
    _check_writable(place)
    return tuple(sorted(set(resolutions)))


def _check_writable(place: Path) -> None:
    """Find out before the work whether a folder can be made beside ``place``.

    Raises:
        StorageError: it cannot.
    """
    folder = next(one for one in place.parents if one.exists())
    try:
        try_folder(folder)
    except OSError as error:
        raise StorageError(
            f"cannot write bundle {place}: {error.strerror or error}; it is made in {folder} and "
            "renamed; free space or choose another place; nothing was written"
        ) from error


def find_place(path: Path) -> Path:
    """Where a bundle at ``path`` is renamed to: without links, in a folder that it can lie in.

    Raises:
        ConfigError: links that lead in a circle, a place that is mounted, or the working folder:
            these cannot be replaced.
    """
    try:
        place = path.resolve()
    except RuntimeError:  # a circle; since Python 3.13 it is left in the path
        place = path.absolute()
    if any(one.is_symlink() for one in (place, *place.parents)):
        raise ConfigError(
            f"{path} leads in a circle of links; a bundle must get a place of its own; correct "
            "the path"
        )
    if place.is_dir() and (place.is_mount() or place == Path.cwd().resolve()):
        raise ConfigError(
            f"{path} is the working folder or a mounted one; a finished bundle takes the place of "
            "a folder, and this one must stay; name a new folder in it"
        )
    return place


def make_entry(data: bytes, *, ships: bool) -> FileEntry:
    return FileEntry(sha256_hex(data), len(data), ships)


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write all files beside ``path`` and rename the folder into place."""
    with staged_bundle(path) as place:
        place.mkdir()
        for name, data in files.items():
            write_atomic(place / name, data)


@contextmanager
def staged_bundle(path: Path) -> Iterator[Path]:
    """A place beside ``path`` that takes its name at the end, or is gone with all it holds.

    Raises:
        StorageError: the disk is full or not writable; nothing was written.
    """
    try:
        with staged_folder(path, "bundle") as place:
            yield place
    except OSError as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        reason = getattr(cause, "strerror", None) or error
        raise StorageError(
            f"cannot write bundle {path}: {reason}; free space or choose another place; nothing "
            "was written"
        ) from cause


def add_task(
    path: Path | str,
    patch_file: PatchFile,
    *,
    float_files: Mapping[str, bytes] | None = None,
    float_scores: bytes | None = None,
    replace_existing: bool = False,
    steps: CodingSteps | None = None,
    release: Release | None = None,
    thumbnails: NDArray[np.uint8] | None = None,
) -> Bundle:
    """Add one task; the base's files keep their bytes.

    Args:
        float_files: stand-alone float32 models named ``<task>.<px>.onnx``; they do not ship.
        float_scores: a `float_scores.FloatRecord`; it does not ship either.
        replace_existing: put the patch in the place of a task of that name.
        steps: how coarsely values are coded; by default exactly.
        release: sequence number, expiry and signers; by default the next number, unsigned. The
            number must be above that of the patch which is replaced.
        thumbnails: uint8 [n, 8, 8, 3]: makes a self-test that travels with the patch.

    Raises:
        WrongBaseError: the patch was made for another base.
        UnknownResolutionError: a resolution that the bundle was not exported with.
        AlreadyAttachedError: the task is there and ``replace_existing`` is false.
        PatchRefusedError: the bundle's keys demand other signatures.
        PatchFileError, HeadCapacityError, ConfigError: see `pack_patch`.
        StorageError: the disk is full; the bundle is as it was.
    """
    path = Path(path)
    with hold_bundle(path):
        bundle = open_bundle(path, verify_hashes=False)
        _check_addition(bundle, patch_file, replace_existing)
        data = _pack(bundle, patch_file, steps, release, thumbnails).data
        task, manifest = patch_file.task, bundle.manifest
        before = manifest.tasks.get(task)
        new = {find_free_path(manifest, "patches", f"{task}.pdp", data): (data, True)}
        floats: dict[str, str] = {}
        for name, model in (float_files or {}).items():
            place = find_free_path(manifest, "float", name, model)
            floats[_float_resolution(task, name)] = place
            new[place] = (model, False)
        if float_scores is not None:
            place = find_free_path(manifest, "float", float_scores_name(task), float_scores)
            new[place] = (float_scores, False)
        entry = TaskEntry(
            file=next(iter(new)),
            classes=patch_file.classes,
            resolutions=tuple(sorted(patch_file.values)),
            metrics=dict(patch_file.metrics),
            float_files=floats,
        )
        if before is not None:
            manifest = without_task(manifest, task)
        added = {name: make_entry(one, ships=ships) for name, (one, ships) in new.items()}
        manifest = replace(
            manifest,
            patchdeploy=current_version(),
            tasks={**manifest.tasks, task: entry},
            files={**manifest.files, **added},
        )
        old = set() if before is None else bundle.manifest.task_paths(task) - set(new)
        commit_files(path, {name: one for name, (one, _) in new.items()}, manifest, old)
    return Bundle(path, manifest)


def _pack(
    bundle: Bundle,
    patch_file: PatchFile,
    steps: CodingSteps | None,
    release: Release | None,
    thumbnails: NDArray[np.uint8] | None,
) -> PackedPatch:
    asked = None if release is None else release.sequence
    sequence = next_sequence(bundle, patch_file.task, asked)
    release = Release(sequence) if release is None else release
    golden = None if thumbnails is None else GoldenInputs(bundle.reference(), thumbnails)
    packed = pack_patch(
        patch_file,
        bundle.coding_table,
        bundle.base_files(),
        steps=steps,
        release=release,
        golden=golden,
    )
    check_patch_file(packed.data, bundle.policy(patch_file.task))
    return packed


def next_sequence(bundle: Bundle, task: str, asked: int | None = None) -> int:
    """The sequence number of the next patch of ``task``: ``asked``, or one more than it has.

    Raises:
        ConfigError: ``asked`` is no newer than the patch that is there, which readers would keep.
        PatchRefusedError: the patch that is there may not be used.
    """
    held = bundle.header(task).sequence if task in bundle.tasks else 0
    if asked is not None and not held < asked <= LARGEST:
        raise ConfigError(
            f"sequence {asked} for task {task!r}; bundle {bundle.path} has sequence {held} of it, "
            f"and a reader takes what is newer alone; give {held + 1} to {LARGEST}, or leave it out"
        )
    return held + 1 if asked is None else asked


def _check_addition(bundle: Bundle, patch_file: PatchFile, replace_existing: bool) -> None:
    manifest = bundle.manifest
    if patch_file.base_sha256 != manifest.base_sha256:
        raise WrongBaseError(
            f"patch {patch_file.task!r} was made for base {patch_file.base_sha256}; bundle "
            f"{bundle.path} holds base {manifest.base_sha256}; export the task over this base"
        )
    strangers = sorted(set(patch_file.values) - set(manifest.resolutions))
    if strangers:
        raise UnknownResolutionError(
            f"patch {patch_file.task!r} holds {strangers[0]} px; bundle {bundle.path} was "
            f"exported at {', '.join(map(str, manifest.resolutions))}; leave that resolution out "
            "or export the base again with it"
        )
    if patch_file.task in manifest.tasks and not replace_existing:
        raise AlreadyAttachedError(
            f"task {patch_file.task!r} is in bundle {bundle.path} already; a name stands for one "
            "task; choose another name, remove the task, or ask to replace it"
        )


def find_free_path(manifest: Manifest, folder: str, name: str, data: bytes) -> str:
    """A path that the manifest does not use: a file in use is never written over."""
    path = f"{folder}/{name}"
    if path not in manifest.files:
        return path
    stem, _, suffix = name.rpartition(".")
    return f"{folder}/{stem}.{sha256_hex(data)[:12]}.{suffix}"


def _float_resolution(task: str, name: str) -> str:
    match = re.fullmatch(re.escape(task) + r"\.([1-9][0-9]*)\.onnx", name)
    if match is None:
        raise ConfigError(
            f"float file {name!r} of task {task!r}; its name must be {task}.<pixels>.onnx; "
            "rename it"
        )
    return match[1]


def remove_task(path: Path | str, task: str) -> Bundle:
    """Take one task out; the base's files keep their bytes.

    Raises:
        UnknownTaskError: no such task.
        StorageError: the manifest cannot be written; the bundle is as it was.
    """
    path = Path(path)
    with hold_bundle(path):
        bundle = open_bundle(path, verify_hashes=False)
        bundle.task(task)
        manifest = without_task(bundle.manifest, task)
        commit_files(path, {}, manifest, bundle.manifest.task_paths(task))
    return Bundle(path, manifest)


def commit_files(path: Path, new: Mapping[str, bytes], manifest: Manifest, old: set[str]) -> None:
    """Write new files, then the manifest that names them, then remove ``old`` ones.

    On a fault the new files are taken back. A fault after the manifest was renamed into place
    (syncing its folder) leaves the new state. The lock file says meanwhile which files may be left
    over, so that the next writer removes them where this one is killed.
    """
    document = manifest.to_json()
    Manifest.from_json(document)  # what cannot be read again is not written
    for name in (*new, *old):
        check_inside(path, name)
    _note_files(path, {*new, *old})
    try:
        for name, data in new.items():
            write_inside(path, name, data)
        write_inside(path, MANIFEST, document)
    except StorageError:
        if read_manifest(path) != document:
            _note_files(path, _remove_files(path, set(new)))
        raise
    _note_files(path, _remove_files(path, old))


def _remove_files(path: Path, names: set[str]) -> set[str]:
    """The ``names`` that could not be removed; the lock file keeps them for the next writer."""
    kept = set()
    for name in names:
        try:
            unlink_inside(path, name)
        except OSError:
            kept.add(name)
    return kept


def _note_files(path: Path, names: set[str]) -> None:
    """Have the lock file, which this process holds, name the files that a kill may leave over."""
    handle = open_lock(path / _LOCK)
    try:
        with suppress(OSError):  # what a full disk keeps out of it is left over at worst
            if os.fstat(handle).st_nlink == 1:  # else its bytes are another file's as well
                os.ftruncate(handle, 0)
                os.write(handle, "\n".join(sorted(names)).encode())
    finally:
        os.close(handle)


def _remove_leftovers(path: Path) -> None:
    """Remove what writers that were killed have left in a bundle, and beside it."""
    manifest = Manifest.from_json(read_manifest(path))
    noted = read_inside(path, _LOCK, MAX_NOTED_BYTES).decode("ascii", "replace").split("\n")
    for name in noted:
        if _OWN_FILE.fullmatch(name) and name not in manifest.files:
            unlink_inside(path, name)
    own = [path / name for name in _FOLDERS if not (path / name).is_symlink()]
    for folder in (path, *own, path.resolve().parent):
        remove_leftovers(folder)


@contextmanager
def hold_bundle(path: Path) -> Iterator[None]:
    """One writer at a time; see `storage_locks.open_lock`. What killed ones have left is gone."""
    read_manifest(path)
    try:
        descriptor = open_lock(path / _LOCK)
    except OSError as error:
        raise StorageError(
            f"cannot write bundle {path}: {error.strerror or error}; a task is added where the "
            "folder may be written; the bundle is unchanged"
        ) from error
    try:
        hold_lock(descriptor, path, _LOCK_SECONDS)
        _remove_leftovers(path)
        yield
    finally:
        os.close(descriptor)
