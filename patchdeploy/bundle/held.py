"""The bundle that a running engine works with: as it was, whatever becomes of its folder.

In: a bundle, opened or by its path. Out: the same with the bytes that an engine will want in
memory. A writer may replace or remove tasks under a running engine, and an update of an app the
whole folder; what was opened is served to the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from patchdeploy.bundle.reader import Bundle, open_bundle, read_manifest
from patchdeploy.errors import IntegrityError


@dataclass(frozen=True)
class HeldBundle(Bundle):
    """A bundle with some of its files in memory.

    Attributes:
        held: their bytes by path, as the manifest records them.
    """

    held: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def read(self, path: str) -> bytes:
        """See `Bundle.read`; what is held is not read again."""
        return self.held[path] if path in self.held else super().read(path)


def hold_bundle(bundle: Bundle | Path | str, format_name: str) -> HeldBundle:
    """``bundle`` with its patches, coding table and the base file of ``format_name`` in memory.

    A path is opened first, and every file in it compared with its hash.

    Raises:
        IntegrityError, FileFormatError, ConfigError: see `open_bundle`.
    """
    if isinstance(bundle, Bundle):
        return _hold(bundle, format_name)
    while True:
        before = read_manifest(Path(bundle))
        try:
            return _hold(open_bundle(bundle), format_name)
        except IntegrityError:
            if read_manifest(Path(bundle)) == before:  # else a task was replaced meanwhile
                raise


def _hold(bundle: Bundle, format_name: str) -> HeldBundle:
    manifest = bundle.manifest
    paths = {manifest.coding, *(entry.file for entry in manifest.tasks.values())}
    if format_name in manifest.converters:  # else asking for its base file says what is there
        entry = manifest.converters[format_name]
        paths |= {entry.file, entry.slots}
    return HeldBundle(bundle.path, manifest, {path: bundle.read(path) for path in sorted(paths)})
