"""Options about who signs, and what their text means.

In: paths and text that a person typed. Out: keys, a `Signing`, a time of expiry, or a ConfigError
that says how to write it. Going without signatures must be asked for, and is told loudly.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from patchdeploy.cli.options import errors_console
from patchdeploy.errors import ConfigError
from patchdeploy.patchfile.json import LARGEST
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys

if TYPE_CHECKING:
    from patchdeploy.export import CodingConfig, Signing

KeyOption = Annotated[
    list[Path] | None,
    typer.Option("--key", metavar="FILE", help="A private key to sign with; repeat for several."),
]
TrustedOption = Annotated[
    Path | None,
    typer.Option(
        "--trusted", metavar="FILE", help="The list of trusted keys that readers ship with."
    ),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        "--expires",
        metavar="DATE|SECONDS",
        help="From then on it is not installed: 2030-12-31, or Unix seconds. Default: never.",
    ),
]
UnsignedOption = Annotated[
    bool,
    typer.Option("--unsigned", help="Sign nothing: a development bundle, never to be shipped."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="POINTS",
        help="Percentage points of accuracy on the calibration images that coding may cost; "
        "default 0.1.",
    ),
]
FineOption = Annotated[
    bool,
    typer.Option("--fine", help="Code finely; choose nothing: quicker, and about twice the bytes."),
]
AllowUnsignedOption = Annotated[
    bool,
    typer.Option("--allow-unsigned", help="Take a patch that nobody signed, for development."),
]

UNSIGNED_WARNING = (
    "UNSIGNED: anyone can make patches that this bundle's readers take; for development alone, "
    "never ship it"
)
_NEITHER = (
    "no --key and no --unsigned; a patch is signed, or said to be for development; pass --key "
    "FILE (patchdeploy keys new makes one) or --unsigned"
)


def read_signing(
    keys: Sequence[Path] | None, trusted: Path | None, expires: str | None, unsigned: bool
) -> Signing | None:
    """Who signs a new bundle, and for how long; None: nobody, which is told on standard error.

    Raises:
        ConfigError: neither ``keys`` nor ``unsigned``, or options that do not go together.
        PatchKeyError, StorageError: a key file that cannot be used.
    """
    _check_choice(keys, unsigned, {"--trusted": trusted, "--expires": expires})
    if not keys:
        warn(UNSIGNED_WARNING)
        return None
    if trusted is None:
        raise ConfigError(
            "--key without --trusted; the bundle pins the keys that its patches must be signed "
            "with; pass --trusted FILE, the list that patchdeploy keys new --trusted FILE wrote"
        )
    return _make_signing(keys, TrustedKeys.load(trusted), expires)


def read_addition_signing(
    bundle: Path, keys: Sequence[Path] | None, expires: str | None, unsigned: bool
) -> Signing | None:
    """Who signs a task that is added to ``bundle``, for the keys that it pins.

    Raises:
        ConfigError: as `read_signing`, or not what the bundle asks for.
        PatchdeployError: ``bundle`` cannot be read.
    """
    from patchdeploy.bundle import open_bundle

    _check_choice(keys, unsigned, {"--expires": expires})
    pinned = open_bundle(bundle, verify_hashes=False).manifest.trusted
    if not keys and pinned is None:
        warn(UNSIGNED_WARNING)
        return None
    if not keys:
        raise ConfigError(
            f"--unsigned for bundle {bundle}, which pins trusted keys; all its patches must be "
            "signed; pass --key FILE, or export a bundle of its own with --unsigned"
        )
    if pinned is None:
        raise ConfigError(
            f"--key for bundle {bundle}, which pins no trusted keys: it is for development; none "
            "of its patches can be signed; pass --unsigned, or export it again with --trusted"
        )
    return _make_signing(keys, pinned, expires)


def _check_choice(
    keys: Sequence[Path] | None, unsigned: bool, others: dict[str, Path | str | None]
) -> None:
    if not keys and not unsigned:
        raise ConfigError(_NEITHER)
    given = ["--key"] if keys else []
    given += [name for name, value in others.items() if value is not None]
    if unsigned and given:
        raise ConfigError(
            f"--unsigned with {given[0]}; a patch is signed or it is not; leave one of them out"
        )


def _make_signing(keys: Sequence[Path], trusted: TrustedKeys, expires: str | None) -> Signing:
    from patchdeploy.export import Signing

    loaded = tuple(SigningKey.load(path) for path in keys)
    different = len({trusted.find(key.public) for key in loaded})
    if different != len(keys) or different < trusted.threshold:
        raise ConfigError(
            f"{len(keys)} keys given, {different} of them different; a patch must be signed by "
            f"{trusted.threshold} different ones of the trusted keys; pass --key for each"
        )
    return Signing(trusted, loaded, 0 if expires is None else parse_expiry(expires))


def read_coding(budget: float | None, fine: bool) -> CodingConfig | None:
    """How patches are coded; None: finely, with no choice.

    Raises:
        ConfigError: both at once.
    """
    from patchdeploy.export import CodingConfig

    if fine and budget is not None:
        raise ConfigError(
            "--budget with --fine; fine steps are not chosen by what they cost; leave one of them "
            "out"
        )
    if fine:
        return None
    return CodingConfig() if budget is None else CodingConfig(points=budget)


def parse_expiry(text: str) -> int:
    """Unix seconds of a date (its first second, UTC), a date and time, or seconds; 0 is never.

    Raises:
        ConfigError: anything else, or a time that is past.
    """
    if text == "never":
        return 0
    try:
        seconds = int(text) if re.fullmatch("[0-9]{1,16}", text) else _seconds_of(text)
    except (ValueError, OverflowError) as error:
        raise _bad_expiry(text, "not a time") from error
    if not int(time.time()) < seconds <= LARGEST:
        raise _bad_expiry(text, "past, or beyond what a patch file holds")
    return seconds


def _seconds_of(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())


def _bad_expiry(text: str, what: str) -> ConfigError:
    return ConfigError(
        f"--expires is {text!r}, {what}; it must be a date to come, such as 2030-12-31 or "
        "2030-12-31T12:00+01:00, Unix seconds, or never; correct it"
    )


def show_time(seconds: int) -> str:
    """A time of expiry for people."""
    if seconds == 0:
        return "never"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # a year that no calendar here has
        return f"{seconds} s"


def warn(text: str) -> None:
    """One line on standard error that is hard to overlook."""
    errors_console.print(
        f"[bold yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True
    )
