"""Fuzz target: any bytes as a list of trusted keys."""

from __future__ import annotations

import case_folders  # noqa: F401  (adds the folders of the cases)
from container_cases import TRUSTED

from patchdeploy.errors import PatchKeyError
from patchdeploy.patchfile.keys import TrustedKeys, check_public_key


def fuzz_one(data: bytes) -> None:
    """A typed error, or a list of these very bytes whose keys may all be pinned.

    Raises:
        AssertionError: neither; any other exception is a fault as well.
    """
    try:
        trusted = TrustedKeys.from_bytes(data)
    except PatchKeyError:
        return
    assert trusted.to_bytes() == data.removesuffix(b"\n")
    live = [key for key in trusted.keys if key is not None]
    assert 1 <= trusted.threshold <= min(4, len(live))
    assert len(set(live)) == len(live)
    for key in live:
        check_public_key(key)


def seeds() -> dict[str, bytes]:
    """What a fuzzer starts from, by name."""
    good = TRUSTED.to_bytes()
    return {
        "five-keys": good,
        "newline": good + b"\n",
        "revoked": TrustedKeys((None, *TRUSTED.keys[1:3]), 2).to_bytes(),
        "small-order": b'{"format":1,"keys":["' + b"0" * 64 + b'"],"threshold":1}',
        "no-keys": b'{"format":1,"keys":[],"threshold":1}',
        "null": b"null",
    }
