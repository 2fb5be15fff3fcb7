"""The commands about keys: ``keys new``, ``keys list``, ``keys rotate``, ``keys pin``.

In: names of files. Out: private keys of mode 0600, lists of trusted keys, tables of public ones. A
private key is never printed, and never written into a bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from patchdeploy.cli.options import BundleArgument, JsonOption
from patchdeploy.cli.places import (
    check_folder_of,
    check_outside_bundles,
    is_folder,
    is_there,
    resolve,
)
from patchdeploy.cli.tables import emit, make_table
from patchdeploy.errors import ConfigError, PatchdeployError
from patchdeploy.patchfile.key_files import hold_folder
from patchdeploy.patchfile.keys import (
    SigningKey,
    TrustedKeys,
    is_key_file,
    list_keys,
    rotate,
)

app = typer.Typer(
    name="keys",
    help="Keys that sign patches, and the lists of keys that readers trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ThresholdOption = Annotated[
    int | None,
    typer.Option(min=1, help="How many different keys must sign; with a list of trusted keys."),
]


@app.command("new")
def new(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The private key's file, such as release.pem.")
    ],
    trusted: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make this list of trusted keys, or append to it."),
    ] = None,
    threshold: ThresholdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a private key that only its owner can read, and print its public half."""
    _check_new(file, trusted, threshold)
    key = SigningKey.new()
    pinned = None
    if trusted is None:
        key.save(file)
    else:
        pinned = _save_both(key, file, trusted, threshold)
    document = {
        "file": str(file),
        "public": key.public.hex(),
        "trusted": None if trusted is None else str(trusted),
        "index": None if pinned is None else pinned.find(key.public),
        "threshold": None if pinned is None else pinned.threshold,
    }
    emit(as_json, document, _pairs("New key", document))


def _check_new(file: Path, trusted: Path | None, threshold: int | None) -> None:
    if threshold is not None and trusted is None:
        raise ConfigError(
            f"--threshold {threshold} without --trusted; it belongs to a list of trusted keys; "
            "pass --trusted FILE"
        )
    check_outside_bundles(file)
    check_folder_of(file)
    if trusted is None:
        return
    check_folder_of(trusted)
    if resolve(file) == resolve(trusted):
        raise ConfigError(
            f"key file {file} is also the list of --trusted {trusted}; the list would be written "
            "over the key; give them different names"
        )


def _save_both(key: SigningKey, file: Path, trusted: Path, threshold: int | None) -> TrustedKeys:
    """The key, then the list with it; where the list does not get it, the key goes again."""
    trusted = resolve(trusted)  # a link stays one
    with hold_folder(trusted.parent):
        pinned = _append(trusted, key.public, threshold)
        key.save(file)
        try:
            pinned.save(trusted)
        except BaseException:
            if not _may_trust(trusted, key.public):
                file.unlink(missing_ok=True)  # nobody trusts it and nobody has it
            raise
    return pinned


def _append(path: Path, public: bytes, threshold: int | None) -> TrustedKeys:
    if not is_there(path):
        return TrustedKeys((public,), threshold or 1)
    return _with_threshold(rotate(TrustedKeys.load(path), public), threshold)


def _may_trust(path: Path, public: bytes) -> bool:
    """Whether the list has the key, or cannot be read so that nobody knows."""
    try:
        return is_there(path) and public in TrustedKeys.load(path).keys
    except PatchdeployError:
        return True


def _with_threshold(trusted: TrustedKeys, threshold: int | None) -> TrustedKeys:
    return trusted if threshold is None else TrustedKeys(trusted.keys, threshold)


@app.command("list")
def list_(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE", help="A folder of private keys, one key, or a trusted list."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show the public halves of private keys, or the keys of a trusted list by index."""
    if is_folder(place):
        rows = [
            {
                "file": str(one.path),
                "public": None if one.public is None else one.public.hex(),
                "problem": one.problem,
            }
            for one in list_keys(place)
        ]
        cells = [[row["file"] or "", row["public"] or row["problem"] or ""] for row in rows]
        table = make_table(f"Keys in {place}", ["file", "public key"], cells, text=(0, 1))
        emit(as_json, {"folder": str(place), "keys": rows}, table)
    elif is_key_file(place):
        document = {"file": str(place), "public": SigningKey.load(place).public.hex()}
        emit(as_json, document, _pairs("Key", document))
    else:
        _print_trusted(place, TrustedKeys.load(place), as_json)


@app.command("rotate")
def rotate_(
    trusted: Annotated[
        Path, typer.Argument(metavar="TRUSTED", help="A list of trusted keys; it is replaced.")
    ],
    add: Annotated[
        str | None,
        typer.Option(metavar="PUBLIC", help="A public key to append, 64 hexadecimal digits."),
    ] = None,
    revoke: Annotated[
        int | None, typer.Option(min=0, metavar="INDEX", help="The key that counts no longer.")
    ] = None,
    threshold: ThresholdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append a key to a trusted list, revoke one, or both at once; other indices stay."""
    if add is None and revoke is None and threshold is None:
        raise ConfigError(
            "none of --add, --revoke and --threshold; a rotation changes one of them; pass what "
            "is to change"
        )
    public = _parse_public(add)
    place = resolve(trusted)  # a link stays one
    TrustedKeys.load(place)  # before a lock is made in its folder
    with hold_folder(place.parent):
        before = _lowered(TrustedKeys.load(place), threshold)
        made = _with_threshold(rotate(before, public, revoke), threshold)
        made.save(place)
    _print_trusted(trusted, made, as_json)


@app.command("pin")
def pin(
    bundle: BundleArgument,
    trusted: Annotated[
        Path, typer.Option(metavar="FILE", help="The list of trusted keys that it is to pin.")
    ],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A private key that signs again what the new list does not take; repeat.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have a bundle pin another list of trusted keys, such as one that keys rotate has changed.

    Patches that the list does not take are signed again with --key; without it they are named, and
    the bundle stays as it is.
    """
    from patchdeploy.bundle import pin_keys

    keys = [SigningKey.load(path) for path in key or ()]
    made = pin_keys(bundle, TrustedKeys.load(trusted), keys)
    document = {
        "bundle": str(bundle),
        "trusted": str(trusted),
        "signed_again": list(made.signed_again),
    }
    shown = document | {"signed_again": ", ".join(made.signed_again) or "none"}
    emit(as_json, document, _pairs("Pinned keys", shown))


def _lowered(trusted: TrustedKeys, threshold: int | None) -> TrustedKeys:
    """With a threshold that is to fall already fallen, so that the last keys can be revoked."""
    return TrustedKeys(trusted.keys, min(trusted.threshold, threshold or trusted.threshold))


def _parse_public(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(
            f"--add is {text[:80]!r}; it must be a public key in 64 hexadecimal digits; "
            "patchdeploy keys list FILE.pem shows it"
        ) from error


def _print_trusted(path: Path, trusted: TrustedKeys, as_json: bool) -> None:
    document: dict[str, Any] = {
        "file": str(path),
        "threshold": trusted.threshold,
        "keys": [
            {"index": index, "public": None if key is None else key.hex(), "revoked": key is None}
            for index, key in enumerate(trusted.keys)
        ],
    }
    rows = [[str(one["index"]), one["public"] or "revoked"] for one in document["keys"]]
    title = f"Trusted keys in {path}, {trusted.threshold} must sign"
    emit(as_json, document, make_table(title, ["index", "public key"], rows, text=(1,)))


def _pairs(title: str, document: dict[str, Any]) -> Any:
    rows = [[name, str(value)] for name, value in document.items() if value is not None]
    return make_table(title, ["", ""], rows, text=(0, 1))
