"""The header of a patch file: what it is for, and the hashes of what it does.

In: canonical JSON whose signatures have been verified. Out: a `PatchHeader`, every field of the
type and in the range that docs/patch-format.md gives, or a `PatchRefusedError`. A header holds no
path, no file offset and no tensor name: it cannot say where, only which slots.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from patchdeploy.errors import CanonicalTextError, PatchRefusedError
from patchdeploy.patchfile.json import LARGEST, encode_canonical, parse_canonical

FORMAT = 1
ENCODINGS = {"parts-1": 1, "parts-2": 2}
"""Layouts of a payload, and the least decoder that reads each; "parts-2" has optional parts."""
ENGINE_VERSION = 2
"""What this package's decoder can do; a patch names the least that it needs."""
MIN_HEADER_BYTES, MAX_HEADER_BYTES = 2, 65_536
MAX_PAYLOAD_BYTES = 8 * 2**20
MAX_CLASSES = 65_536
MAX_RESOLUTIONS = 16
MAX_RESOLUTION = 4096
MAX_WORK = 2**24
"""Pixels that the self-test of a patch may ask a device for: the sum of px^2 over the resolutions,
times the images. As much as one image of 4096 x 4096; eight at 224 px are 0.4 million."""
MAX_RUNTIMES = 8
MAX_INT32 = 2**31 - 1

_HEX64 = re.compile(r"[0-9a-f]{64}")
_TASK = re.compile(r"[a-z0-9_-]{1,64}")
_RUNTIME = re.compile(r"[a-z0-9_-]{1,32}")
_HEX64_RULE = "64 lower-case hexadecimal digits"
UPGRADE = "a newer patchdeploy may read it: upgrade patchdeploy in the app"
_REMEDY = "pack the patch again with this version of patchdeploy"
_NEWER = f"{UPGRADE}, or {_REMEDY}"
"""For what a later version may write: another format or encoding, a key that is not known yet."""
_KEYS = frozenset(
    ("base", "classes", "encoding", "engine", "expires", "format", "payload", "resolutions")
    + ("results", "sequence", "sites", "task")
)


@dataclass(frozen=True)
class PatchHeader:
    """One task over one base, as the file says. An instance keeps every rule of the format.

    Attributes:
        task: 1 to 64 of a-z, 0-9, underscore and hyphen.
        base_sha256, base_bytes: of the base's coding table.
        classes: head rows that the task uses; its labels are in the payload.
        engine: least `ENGINE_VERSION` that can decode it.
        expires: Unix seconds from which on it is not installed; 0: never.
        payload_sha256, payload_bytes: of the payload.
        resolutions: sides in pixels, of `MAX_WORK` pixels together at most; further ones are coded
            against the first.
        results: SHA-256 of the base file with the patch laid over, by runtime and resolution.
        sequence: greater for a newer patch of the same task.
        sites: (first, count) of each run of slots that it sets; sorted, never touching.
        encoding: of the payload, one of `ENCODINGS`.

    Raises:
        PatchRefusedError: code "header_field", naming the field.
    """

    task: str
    base_sha256: str
    base_bytes: int
    classes: int
    engine: int
    expires: int
    payload_sha256: str
    payload_bytes: int
    resolutions: tuple[int, ...]
    results: Mapping[str, Mapping[int, str]]
    sequence: int
    sites: tuple[tuple[int, int], ...]
    encoding: str = "parts-1"

    def __post_init__(self) -> None:
        _parse_fields(self._document())

    @property
    def has_optional_parts(self) -> bool:
        """Whether the payload has optional parts after those that every patch has."""
        return self.encoding == "parts-2"

    def to_bytes(self) -> bytes:
        """The canonical JSON.

        Raises:
            PatchRefusedError: code "header_length": too many sites for one header.
        """
        data = encode_canonical(self._document())
        check_header_length(len(data), "let the patch set whole runs of slots, not scattered ones")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> PatchHeader:
        """Parse a header whose signatures have been verified.

        Raises:
            PatchRefusedError: code "header_text" (not canonical JSON) or "header_field".
        """
        try:
            document = parse_canonical(data)
        except CanonicalTextError as error:
            raise PatchRefusedError(
                "header_text", "header", error.expected, error.got, _REMEDY
            ) from error
        return cls(**_parse_fields(document))

    def _document(self) -> dict[str, object]:
        return {
            "base": {"bytes": self.base_bytes, "sha256": self.base_sha256},
            "classes": self.classes,
            "encoding": self.encoding,
            "engine": self.engine,
            "expires": self.expires,
            "format": FORMAT,
            "payload": {"bytes": self.payload_bytes, "sha256": self.payload_sha256},
            "resolutions": list(self.resolutions),
            "results": {
                runtime: {str(px): one for px, one in hashes.items()}
                for runtime, hashes in self.results.items()
            },
            "sequence": self.sequence,
            "sites": [list(run) for run in self.sites],
            "task": self.task,
        }


def check_header_length(length_bytes: int, remedy: str) -> None:
    """Check H, the length of a header.

    Raises:
        PatchRefusedError: code "header_length".
    """
    if not MIN_HEADER_BYTES <= length_bytes <= MAX_HEADER_BYTES:
        raise PatchRefusedError(
            "header_length",
            "header length",
            f"from {MIN_HEADER_BYTES} to {MAX_HEADER_BYTES} bytes",
            f"{length_bytes} bytes",
            remedy,
        )


def _parse_fields(document: object) -> dict[str, Any]:
    """The arguments of `PatchHeader`; the first field that breaks its rule is refused.

    Order: format, the set of keys, then the keys by name; resolutions before results.
    """
    if isinstance(document, dict) and "format" in document:
        _integer(document["format"], "header.format", FORMAT, FORMAT, _NEWER)
    fields = _object(document, "header", _KEYS)
    base = _object(fields["base"], "header.base", {"bytes", "sha256"})
    payload = _object(fields["payload"], "header.payload", {"bytes", "sha256"})
    encoding = fields["encoding"]
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        rule = f"one of {', '.join(ENCODINGS)}"
        raise _refusal("header.encoding", rule, encoding, remedy=_NEWER)
    resolutions = _resolutions(fields["resolutions"])
    return {
        "base_bytes": _integer(base["bytes"], "header.base.bytes", 1, LARGEST),
        "base_sha256": _text(base["sha256"], "header.base.sha256", _HEX64, _HEX64_RULE),
        "classes": _integer(fields["classes"], "header.classes", 2, MAX_CLASSES),
        "encoding": encoding,
        "engine": _integer(fields["engine"], "header.engine", ENCODINGS[encoding], MAX_INT32),
        "expires": _integer(fields["expires"], "header.expires", 0, LARGEST),
        "payload_bytes": _integer(payload["bytes"], "header.payload.bytes", 1, MAX_PAYLOAD_BYTES),
        "payload_sha256": _text(payload["sha256"], "header.payload.sha256", _HEX64, _HEX64_RULE),
        "resolutions": resolutions,
        "results": _results(fields["results"], resolutions),
        "sequence": _integer(fields["sequence"], "header.sequence", 1, LARGEST),
        "sites": _sites(fields["sites"]),
        "task": _text(
            fields["task"], "header.task", _TASK, "1 to 64 of a-z, 0-9, underscore and hyphen"
        ),
    }


def _resolutions(value: object) -> tuple[int, ...]:
    field = "header.resolutions"
    sides = _list(value, field, MAX_RESOLUTIONS)
    for k, px in enumerate(sides):
        _integer(px, f"{field}[{k}]", 1, MAX_RESOLUTION)
    if len(set(sides)) < len(sides):
        raise _refusal(field, "different sides", value)
    pixels = sum(px * px for px in sides)
    if pixels > MAX_WORK:
        rule = f"sides whose squares make at most {MAX_WORK} together"
        raise _refusal(field, rule, f"{value}, {pixels}", quote=False)
    return tuple(sides)


def _results(value: object, resolutions: tuple[int, ...]) -> dict[str, dict[int, str]]:
    field = "header.results"
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_RUNTIMES:
        raise _refusal(field, f"an object of 1 to {MAX_RUNTIMES} runtimes", value)
    sides = {str(px): px for px in resolutions}
    results = {}
    for name, hashes in value.items():
        _text(name, f"{field} key", _RUNTIME, "1 to 32 of a-z, 0-9, underscore and hyphen")
        own = f"{field}.{name}"
        _object(hashes, own, sides.keys())
        results[name] = {
            px: _text(hashes[side], f"{own}.{side}", _HEX64, _HEX64_RULE)
            for side, px in sides.items()
        }
    return results


def _sites(value: object) -> tuple[tuple[int, int], ...]:
    """Runs of slot indices: each starts after a gap behind the one before."""
    field = "header.sites"
    runs = []
    least = 0
    for k, pair in enumerate(_list(value, field, MAX_HEADER_BYTES)):
        own = f"{field}[{k}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise _refusal(own, "a list of first and count", pair)
        first = _integer(pair[0], f"{own}[0]", least, MAX_INT32 - 1)
        count = _integer(pair[1], f"{own}[1]", 1, MAX_INT32 - first)
        runs.append((first, count))
        least = first + count + 1
    return tuple(runs)


def _integer(value: object, field: str, least: int, most: int, remedy: str = _REMEDY) -> int:
    if type(value) is not int or not least <= value <= most:
        rule = f"the integer {least}" if least == most else f"an integer from {least} to {most}"
        raise _refusal(field, rule, value, remedy=remedy)
    return value


def _text(value: object, field: str, pattern: re.Pattern[str], rule: str) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise _refusal(field, rule, value)
    return value


def _list(value: object, field: str, most: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise _refusal(field, f"a list of 1 to {most}", value)
    return value


def _object(value: object, field: str, keys: Set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refusal(field, f"an object with the keys {', '.join(sorted(keys))}", value)
    for key in sorted(keys):
        if key not in value:
            raise _refusal(f"{field}.{key}", "there", "missing", quote=False)
    for key in value:
        if key not in keys:
            rule = f"one of {', '.join(sorted(keys))}"
            raise _refusal(f"{field} key", rule, key, remedy=_NEWER)
    return value


def _refusal(
    field: str, expected: str, got: object, quote: bool = True, remedy: str = _REMEDY
) -> PatchRefusedError:
    shown = repr(got) if quote else str(got)
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    return PatchRefusedError("header_field", field, expected, shown, remedy)
