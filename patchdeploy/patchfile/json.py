"""Canonical JSON: one text for one value, so that a signature or a hash covers the value itself.

In: a document of objects, lists, whole numbers and plain text. Out: its one byte form, and back,
or a `CanonicalTextError`. The form is small enough for another language to check in a few lines:
printable ASCII without backslash, keys sorted and each once, no spaces, numbers 0..2^53 - 1.
"""

from __future__ import annotations

import json
from itertools import accumulate

from patchdeploy.errors import CanonicalTextError

LARGEST = 2**53 - 1
"""The largest integer: every language holds it exactly, as a float64 too."""
MAX_DEPTH = 8
"""Objects and lists inside each other; what is deeper is refused before it is parsed."""

_PRINTABLE = bytes(byte for byte in range(0x20, 0x7F) if byte != ord("\\"))
_MARKS = b"{}[]:,0123456789"
_BRACKETS = b"{}[]"
_OTHERS = bytes(byte for byte in range(256) if byte not in _BRACKETS)


def encode_canonical(document: object) -> bytes:
    """``document`` in canonical form; the caller answers for what it holds."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse_canonical(data: bytes, *, allow_null: bool = False) -> object:
    """The document whose canonical form is ``data``; time and memory grow with its length alone.

    Args:
        allow_null: ``null`` may stand for a value.

    Raises:
        CanonicalTextError: any other text, also one that JSON itself would take.
    """
    _check_characters(data)
    outside = b'"'.join(data.split(b'"')[::2])
    _check_marks(outside.replace(b"null", b"") if allow_null else outside)
    _check_depth(outside)
    try:
        document: object = json.loads(data.decode("ascii"), parse_int=_parse_integer)
    except json.JSONDecodeError as error:
        raise CanonicalTextError("JSON", f"something else at offset {error.pos}") from error
    again = encode_canonical(document)
    if again != data:
        raise CanonicalTextError(
            "in canonical order, each key once", f"another text at offset {_first(again, data)}"
        )
    return document


def _check_characters(data: bytes) -> None:
    bad = data.translate(None, _PRINTABLE)
    if bad:
        raise CanonicalTextError(
            "printable ASCII without backslash",
            f"byte 0x{bad[0]:02x} at offset {data.index(bad[:1])}",
        )


def _check_marks(outside: bytes) -> None:
    """Outside of strings: no space, sign, fraction, exponent or literal."""
    bad = outside.translate(None, _MARKS + b'"')
    if bad:
        raise CanonicalTextError(
            "objects, lists, strings and whole numbers from 0, with no space between",
            f"{chr(bad[0])!r} outside a string",
        )


def _check_depth(outside: bytes) -> None:
    brackets = outside.translate(None, _OTHERS)
    depth = max(accumulate(1 if byte in b"{[" else -1 for byte in brackets), default=0)
    if depth > MAX_DEPTH:
        raise CanonicalTextError(f"at most {MAX_DEPTH} levels deep", f"{depth} levels")


def _parse_integer(text: str) -> int:
    """The number of a run of digits, refused by its length before it is converted."""
    if len(text) > len(str(LARGEST)) or int(text) > LARGEST:
        shown = text if len(text) <= 20 else f"{text[:20]}... of {len(text)} digits"
        raise CanonicalTextError(f"integers from 0 to {LARGEST}", shown)
    return int(text)


def _first(one: bytes, other: bytes) -> int:
    """The first offset at which two different texts differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(one), len(other)))
