"""The commands about one patch file: ``pack``, ``sign``, ``check``.

In: a bundle or a ``.pdp`` file. Out: a file to be signed elsewhere, the file with a signature more,
or what every check says of it. A file is replaced whole or not at all.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchdeploy.cli.exit import EXIT_CHECK_FAILED
from patchdeploy.cli.options import BundleArgument, JsonOption, show_progress
from patchdeploy.cli.places import check_folder_of, is_there, resolve
from patchdeploy.cli.signing import (
    AllowUnsignedOption,
    ExpiresOption,
    TrustedOption,
    parse_expiry,
    show_time,
    warn,
)
from patchdeploy.cli.tables import emit, make_table
from patchdeploy.errors import ConfigError, IrregularFileError, PatchFileError
from patchdeploy.patchfile import (
    MAX_FILE_BYTES,
    Policy,
    add_signature,
    build_patch,
    check_patch_file,
    check_signatures,
    read_container,
)
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.key_files import hold_folder
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.storage import open_regular, sha256_hex, write_atomic

if TYPE_CHECKING:
    from patchdeploy.verify.patch import PatchReport

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A .pdp file.")]
OfBundleOption = Annotated[
    Path,
    typer.Option("--bundle", metavar="BUNDLE", help="The bundle whose base the patch is for."),
]


def read_patch_file(path: Path) -> bytes:
    """The bytes of ``path``, a regular file, at most one more than a patch file may have.

    Raises:
        PatchFileError: it cannot be read.
    """
    try:
        with os.fdopen(open_regular(path, follow=True), "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except IrregularFileError as error:
        raise PatchFileError(f"cannot read patch file {error}") from error
    except OSError as error:
        raise PatchFileError(
            f"cannot read patch file {path}: {error.strerror or error}; it must be a .pdp file "
            "that is there; correct the path"
        ) from error


def pack(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .pdp file to make.")],
    task: Annotated[str, typer.Option(help="Which task.")],
    sequence: Annotated[
        int | None, typer.Option(min=1, help="Its sequence number. Default: as in the bundle.")
    ] = None,
    expires: ExpiresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a task's patch out of a bundle, unsigned, to be signed elsewhere.

    Its values keep their bytes; number and expiry can be set anew. Sign it with: sign.
    """
    from patchdeploy.bundle import open_bundle

    check_folder_of(out)
    opened = open_bundle(bundle, verify_hashes=False)
    data = opened.read(opened.task(task).file)
    checked = check_patch_file(data, opened.policy(task))
    header = checked.header
    if sequence is not None:
        header = replace(header, sequence=sequence)
    if expires is not None:
        header = replace(header, expires=parse_expiry(expires))
    made = build_patch(header, checked.payload)
    with hold_folder(out.parent):
        if is_there(out):
            raise ConfigError(
                f"{out} is there already; a patch file may hold signatures, so none is written "
                "over; choose another name or remove it"
            )
        write_atomic(out, made)
    _print_file(out, made, header, (), as_json)


def sign(
    file: FileArgument,
    key: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="A private key to sign with; repeat for several."),
    ],
    trusted: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The list of trusted keys, which gives each its index."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Add a signature to a patch file; those that are there stay."""
    pinned = TrustedKeys.load(trusted)
    place = resolve(file)
    read_patch_file(place)  # before a lock is made in its folder
    with hold_folder(place.parent):  # from here on no other adds a signature that would be lost
        data = read_patch_file(place)
        for path in key:
            loaded = SigningKey.load(path)
            data = add_signature(data, loaded, pinned.find(loaded.public))
        container = read_container(data)
        header = PatchHeader.from_bytes(container.header)
        alone = Policy(TrustedKeys(pinned.keys, threshold=1))
        signed_by = check_signatures(container, alone)  # a bad one that was there spoils the file
        write_atomic(place, data)
    missing = pinned.threshold - len(signed_by)
    if missing > 0:
        warn(f"{file} needs {missing} more of the trusted keys before a reader takes it")
    _print_file(file, data, header, signed_by, as_json)


def _print_file(
    path: Path, data: bytes, header: PatchHeader, signed_by: tuple[int, ...], as_json: bool
) -> None:
    document = {
        "file": str(path),
        "sha256": sha256_hex(data),
        "bytes": len(data),
        "task": header.task,
        "sequence": header.sequence,
        "expires": header.expires,
        "signed_by": list(signed_by),
    }
    shown = document | {
        "expires": show_time(header.expires),
        "signed_by": ", ".join(map(str, signed_by)) or "nobody",
    }
    rows = [[name, str(value)] for name, value in shown.items()]
    emit(as_json, document, make_table("Patch file", ["", ""], rows, text=(0, 1)))


def check(
    file: FileArgument,
    bundle: OfBundleOption,
    trusted: TrustedOption = None,
    allow_unsigned: AllowUnsignedOption = False,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="litert or onnxruntime; repeat. Default: all that the bundle is for."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Would a device with this bundle take the file? Every check, in the reader's order."""
    from patchdeploy.bundle import open_bundle
    from patchdeploy.verify.patch import verify_patch

    opened = open_bundle(bundle, verify_hashes=False)
    data = read_patch_file(file)
    with show_progress("checking"):
        report = verify_patch(
            data,
            opened,
            trusted=None if trusted is None else TrustedKeys.load(trusted),
            allow_unsigned=allow_unsigned,
            runtimes=runtime,
        )
    emit(as_json, {"file": str(file), **report.to_json()}, _check_table(file, report))
    if not report.ok:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _check_table(file: Path, report: PatchReport) -> Any:
    words = {True: "pass", False: "FAIL", None: "-"}
    rows = [[words[one.passed], str(one.number), one.name, one.detail] for one in report.checks]
    return make_table(f"Check {file}", ["", "no.", "check", "detail"], rows, text=(0, 2, 3))
