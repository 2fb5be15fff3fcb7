"""Another list of trusted keys for a bundle, when one was revoked or added.

In: a bundle and the new list; private keys where patches must be signed again. Out: the bundle with
that list, in which every patch is one that the list takes, or the bundle as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from patchdeploy.bundle.manifest import FileEntry, Manifest, TaskEntry, current_version
from patchdeploy.bundle.reader import Bundle, open_bundle
from patchdeploy.bundle.writer import commit_files, find_free_path, hold_bundle, make_entry
from patchdeploy.errors import ConfigError, PatchKeyError, PatchRefusedError
from patchdeploy.patchfile import add_signature, build_patch, check_patch_file
from patchdeploy.patchfile.key_lists import join_lists
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys


@dataclass(frozen=True)
class Pinned:
    """A bundle with its new list.

    Attributes:
        bundle: as it is now.
        signed_again: tasks whose patches the new list did not take and the given keys signed.
    """

    bundle: Bundle
    signed_again: tuple[str, ...]


def pin_keys(path: Path | str, trusted: TrustedKeys, keys: Sequence[SigningKey] = ()) -> Pinned:
    """Have the bundle at ``path`` trust ``trusted``; base files and values keep their bytes.

    A patch that the new list does not take (its key was revoked, or it has no signature) is signed
    again by ``keys``: number, expiry and values stay, all older signatures go. So look first
    whether the patch is the one that you made.

    Raises:
        PatchKeyError: a list older than the bundle's, or a key that is not in it.
        ConfigError: patches that the list does not take, and no key to sign them.
        PatchRefusedError: a patch that the bundle's own list does not take either; or the keys are
            fewer than the threshold.
        IntegrityError: a patch file is damaged.
        StorageError: the disk is full; the bundle is as it was.
    """
    path = Path(path)
    with hold_bundle(path):
        bundle = open_bundle(path, verify_hashes=False)
        _check_newer(bundle, trusted)
        refused = [task for task in bundle.tasks if not _takes(bundle, task, trusted)]
        if refused and not keys:
            raise ConfigError(
                f"the new list does not take the patches of {', '.join(refused)} in {path}; every "
                "patch of a bundle must be signed by live keys; pass keys to sign them again, or "
                "replace or remove these tasks first"
            )
        new: dict[str, bytes] = {}
        manifest = replace(bundle.manifest, trusted=trusted, patchdeploy=current_version())
        old: set[str] = set()
        for task in refused:
            data = _sign_again(bundle, task, trusted, keys)
            place = find_free_path(manifest, "patches", f"{task}.pdp", data)
            old.add(bundle.task(task).file)
            new[place] = data
            manifest = _with_file(manifest, task, place, make_entry(data, ships=True))
        commit_files(path, new, manifest, old)
    return Pinned(Bundle(path, manifest), tuple(refused))


def _check_newer(bundle: Bundle, trusted: TrustedKeys) -> None:
    """A list with other keys is a new beginning; of the same keys none may come back."""
    try:
        joined = join_lists(bundle.manifest.trusted, trusted)
    except PatchKeyError:
        return
    if joined is not None and joined.keys != trusted.keys:
        raise PatchKeyError(
            f"the list of trusted keys is older than the one that {bundle.path} pins, or lacks "
            "keys of it; a key that was revoked never counts again; pass the newest list"
        )


def _takes(bundle: Bundle, task: str, trusted: TrustedKeys) -> bool:
    data = bundle.read(bundle.task(task).file)
    policy = replace(bundle.policy(task), trusted=trusted, allow_unsigned=False)
    try:
        check_patch_file(data, policy)
    except PatchRefusedError:
        return False
    return True


def _sign_again(
    bundle: Bundle, task: str, trusted: TrustedKeys, keys: Sequence[SigningKey]
) -> bytes:
    """The patch as the bundle's own list takes it, with the signatures of ``keys`` alone."""
    checked = bundle.check(task)
    data = build_patch(checked.header, checked.payload)
    for key in keys:
        data = add_signature(data, key, trusted.find(key.public))
    policy = replace(bundle.policy(task), trusted=trusted, allow_unsigned=False)
    check_patch_file(data, policy)
    return data


def _with_file(manifest: Manifest, task: str, place: str, entry: FileEntry) -> Manifest:
    """``manifest`` with another patch file of ``task``."""
    before: TaskEntry = manifest.tasks[task]
    files = {name: one for name, one in manifest.files.items() if name != before.file}
    return replace(
        manifest,
        tasks={**manifest.tasks, task: replace(before, file=place)},
        files={**files, place: entry},
    )
