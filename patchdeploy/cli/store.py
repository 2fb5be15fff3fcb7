"""The commands about a patch store and the server of patches.

In: a store's folder, the bundle of its base, a file or an address. Out: the store as it was or as
it was to become, and what it holds. ``install``, ``activate``, ``revert``, ``list``, ``clean-up``
and ``reset`` work on a store, ``serve`` offers a folder of patch files to those who install from an
address.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchdeploy.cli.options import (
    JsonOption,
    RuntimeOption,
    errors_console,
    show_progress,
    with_groups,
)
from patchdeploy.cli.patch import OfBundleOption, read_patch_file
from patchdeploy.cli.signing import AllowUnsignedOption, TrustedOption, show_time, warn
from patchdeploy.cli.tables import emit, make_table, show_text
from patchdeploy.errors import ConfigError, PatchError, StorageError
from patchdeploy.patchfile.keys import TrustedKeys

if TYPE_CHECKING:
    from patchdeploy.bundle import Bundle
    from patchdeploy.store import Installed, Recovery, Store

DOWNLOADS = "downloads"
"""Folder of a store for downloads that are not finished."""

StoreOption = Annotated[
    Path, typer.Option("--store", metavar="STORE", help="The folder of the patch store.")
]


@dataclass(frozen=True)
class StoreOptions:
    """The options of every command that works on a store; `with_groups` shows them to typer."""

    store: StoreOption
    bundle: OfBundleOption
    trusted: TrustedOption = None
    allow_unsigned: AllowUnsignedOption = False
    runtime: RuntimeOption = "litert"

    def open(self) -> Store:
        """The store, for patches of the bundle's base.

        Raises:
            PatchdeployError: the bundle or the list of trusted keys cannot be read, or see
                `open_store`.
        """
        from patchdeploy.bundle import open_bundle
        from patchdeploy.runtime.bundle_store import open_store

        return open_store(
            self.store,
            open_bundle(self.bundle, verify_hashes=False),
            self.runtime,
            trusted=None if self.trusted is None else TrustedKeys.load(self.trusted),
            allow_unsigned=self.allow_unsigned,
        )


@dataclass(frozen=True)
class ReadStoreOptions:
    """The options of the commands that run a bundle, perhaps with the patches of a store."""

    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            metavar="STORE",
            help="A patch store: its active patches run in the place of the bundle's older ones.",
        ),
    ] = None
    trusted: TrustedOption = None
    allow_unsigned: AllowUnsignedOption = False

    def open(self, bundle: Bundle, runtime: str) -> Store | None:
        """The store, for patches of the bundle's base on ``runtime``; None where none is named.

        Raises:
            ConfigError: options of a store without one.
            PatchError: no store is there.
            PatchdeployError: as `StoreOptions.open`; or its STATE cannot be read.
        """
        from patchdeploy.runtime.bundle_store import open_store

        if self.store is None:
            if self.trusted is not None or self.allow_unsigned:
                raise ConfigError(
                    "--trusted or --allow-unsigned without --store; they are about the patches of "
                    "a store; a bundle holds its own keys; leave them out or name a store"
                )
            return None
        opened = open_store(
            self.store,
            bundle,
            runtime,
            trusted=None if self.trusted is None else TrustedKeys.load(self.trusted),
            allow_unsigned=self.allow_unsigned,
        )
        if not opened.is_there:
            raise PatchError(
                f"no patch store at {self.store}; installing a patch makes one; correct the path"
            )
        return opened


@with_groups
def install(
    source: Annotated[
        str, typer.Argument(metavar="FILE|URL", help="A .pdp file, or http:// or https://.")
    ],
    options: StoreOptions,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep it in the store; activate it later.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a patch file, keep it in the store, and make it its task's active one."""
    opened = options.open()
    fetched: dict[str, Any] | None = None
    if "://" in source:
        data, fetched = _download(source, options.store)
    else:
        data = read_patch_file(Path(source))
    with show_progress("installing"):
        installed = opened.install(data, activate=not keep)
    _print_installed(installed, as_json, fetched)


def _download(url: str, store: Path) -> tuple[bytes, dict[str, Any]]:
    from patchdeploy.patchfile.download import download_patch

    try:
        store.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make store {store}: {error.strerror or error}; the folder that it lies in "
            "must be there and be writable; correct the path"
        ) from error
    with show_progress("downloading"):
        found = download_patch(url, store / DOWNLOADS)
    about = {"url": found.url, "bytes": len(found.data), "resumed_bytes": found.resumed_bytes}
    return found.data, about


@with_groups
def activate(
    sha256: Annotated[
        str, typer.Argument(metavar="SHA256", help="Of a patch file that list shows.")
    ],
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Make a patch that the store keeps its task's active one."""
    opened = options.open()
    with show_progress("activating"):
        installed = opened.activate(sha256)
    _print_installed(installed, as_json)


@with_groups
def revert(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Which task.")],
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Make the patch before a task's active one active again; one step back, never further."""
    opened = options.open()
    with show_progress("reverting"):
        installed = opened.revert(task)
    _print_installed(installed, as_json)


@with_groups
def list_(
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Show every patch of a store: task, sequence number, whether it is active."""
    entries = options.open().list()
    rows = [
        [
            one.task or "?",
            "" if one.sequence is None else str(one.sequence),
            one.status,
            "" if one.file_bytes is None else f"{one.file_bytes:,}",
            "" if one.expires is None else show_time(one.expires),
            one.sha256,
            one.problem or "",
        ]
        for one in entries
    ]
    columns = ["task", "sequence", "status", "bytes", "expires", "SHA-256", "problem"]
    table = make_table(f"Patches in {options.store}", columns, rows, text=(0, 2, 4, 5, 6))
    emit(as_json, {"store": str(options.store), "patches": [asdict(one) for one in entries]}, table)


@with_groups
def clean_up(
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Remove from a store what is neither active nor previous, and what a crash has left."""
    removed = options.open().clean_up()
    removed += _remove_downloads(options.store / DOWNLOADS)
    rows = [[name] for name in removed or ("nothing was left over",)]
    document = {"store": str(options.store), "removed": list(removed)}
    emit(as_json, document, make_table(f"Removed from {options.store}", ["file"], rows))


def _remove_downloads(folder: Path) -> tuple[str, ...]:
    """The names of downloads that nobody goes on with any more."""
    from patchdeploy.patchfile.partial import remove_partials

    return tuple(f"{DOWNLOADS}/{name}" for name in remove_partials(folder))


@with_groups
def reset(
    options: StoreOptions,
    task: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", help="Lower the floor of this task to what is active."),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="Forget the list of trusted keys that it has seen.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """For an operator, by hand: lower a task's floor, or forget the keys that a store has seen.

    A floor that a patch set by mistake is lowered to the number of the patch that is active now
    (revert first). From then on every older patch above it is taken again, whoever sends it.
    """
    if (task is None) == (not keys):
        raise ConfigError(
            "reset takes a task or --keys, one of them; a floor is lowered, or the list of keys is "
            "forgotten; pass one"
        )
    opened = options.open()
    document: dict[str, Any] = {"store": str(options.store), "task": task, "floor": None}
    if task is None:
        opened.reset_keys()
        warn(
            f"{options.store} has forgotten which keys were revoked: the list at hand counts alone"
        )
    else:
        document["floor"] = opened.reset_floor(task)
        warn(
            f"every patch of task {task} above number {document['floor']} is taken again, also an "
            "old one with mistakes that were corrected since, whoever sends it"
        )
    rows = [[name, str(value)] for name, value in document.items() if value is not None]
    emit(as_json, document, make_table("Reset", ["", ""], rows, text=(0, 1)))


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder with .pdp files in it.")
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on; this machine alone by default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: one that is free.")] = 8117,
    as_json: JsonOption = False,
) -> None:
    """Serve a folder of patch files over HTTP, with index.json, until Ctrl-C."""
    from patchdeploy.patchfile.server import INDEX, serve_folder

    def ready(url: str) -> None:
        document = {"folder": str(folder), "url": url, "index": f"{url}/{INDEX}"}
        if as_json:
            emit(True, document)
        else:
            errors_console.print(f"serving {folder} at {url}/{INDEX}", markup=False)

    serve_folder(folder, host, port, ready)


def _print_installed(
    installed: Installed, as_json: bool, fetched: dict[str, Any] | None = None
) -> None:
    if installed.recovery is not None:
        _warn_recovery(installed.recovery)
    if installed.lost_resolutions:
        sides = ", ".join(map(str, installed.lost_resolutions))
        warn(
            f"the patch of task {installed.task} has no {sides} px, which the one before it has: "
            "an app that asks for that size gets an error, one that asks for none the nearest size"
        )
    document = asdict(installed) | {"download": fetched}
    rows = [
        ["task", installed.task],
        ["sequence", str(installed.sequence)],
        ["SHA-256", installed.sha256],
        ["changed", "yes" if installed.changed else "no: it was so already"],
    ]
    if fetched is not None:
        from_before = f", {fetched['resumed_bytes']:,} of them by an earlier download"
        text = f"{fetched['bytes']:,} bytes{from_before if fetched['resumed_bytes'] else ''}"
        rows.append([fetched["url"], text])
    emit(as_json, document, make_table("Patch store", ["", ""], rows, text=(0, 1)))


def _warn_recovery(found: Recovery) -> None:
    active = ", ".join(f"{task} {sha256[:16]}" for task, sha256 in sorted(found.active.items()))
    refused = "".join(f"; left out {name}: {why}" for name, why in sorted(found.refused.items()))
    from_where = (
        f"its copy says that these are active: {active}"
        if active
        else "no record says what was active: what ships with the app runs, until a patch is "
        "installed or activated again"
    )
    warn(
        show_text(f"STATE of the store was lost or damaged ({found.reason}); {from_where}{refused}")
    )
