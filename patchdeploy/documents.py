"""JSON of another's making: bounded before it is parsed, and read field by field.

In: bytes. Out: a `Field` whose methods give values of one type and range, or a FileFormatError
that names the field, what it holds and the rule. Nothing is converted: a bool is no number, a text
is no number, a float is no integer. Depth, number of values, length of numbers, keys that come
twice and text that is no Unicode are looked at for the whole document before a field is read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, NoReturn

from patchdeploy.errors import FileFormatError

MAX_DEPTH = 16
"""Objects and lists inside each other, the document itself included."""
MAX_VALUES = 2_000_000
"""Values of a document: they take at most about 60 bytes each once they are parsed."""
MAX_NOTES_BYTES = 64 << 20
"""Of the header of a safetensors file, its metadata included."""
MAX_DIGITS = 308
"""Of an integer: what is longer is larger than any float64."""
HEX64 = re.compile(r"[0-9a-f]{64}")
HEX64_RULE = "64 lower-case hexadecimal digits"
DECIMAL = re.compile(r"[1-9][0-9]{0,9}")

_shown = Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = 80
_REMEDY = "use the file that patchdeploy wrote: copy it again, or export it again"


@dataclass(frozen=True)
class Field:
    """One value of a document.

    Attributes:
        value: as it was parsed.
        name: of the document and of the field in it, for errors.
        error: the kind of FileFormatError that is raised.
    """

    value: Any
    name: str
    error: type[FileFormatError] = FileFormatError

    def refuse(self, rule: str) -> NoReturn:
        """Raise the error that this value breaks ``rule``."""
        raise self.error(
            f"{self.name} is {_shown.repr(self.value)}; it must be {rule}; {_REMEDY}"
        ) from None

    def keys(self, required: Iterable[str], optional: Iterable[str] = ()) -> Mapping[str, Field]:
        """The fields of an object that has ``required`` and no keys but ``optional`` beyond."""
        needed = sorted(required)
        known = sorted({*needed, *optional})
        found = self._mapping()
        for key in found:
            if key not in known:
                raise self.error(
                    f"unknown key {_shown.repr(key)} in {self.name}; the keys are "
                    f"{', '.join(known)}; export it again or upgrade patchdeploy"
                )
        for key in needed:
            if key not in found:
                raise self.error(
                    f"{self.name} has no key {key!r}; the keys are {', '.join(known)}; {_REMEDY}"
                )
        return {key: self._inner(value, f".{key}") for key, value in found.items()}

    def table(
        self, pattern: re.Pattern[str], rule: str, most: int, least: int = 0
    ) -> Mapping[str, Field]:
        """The fields of an object of ``least`` to ``most`` keys that match ``pattern`` in full."""
        found = self._mapping()
        if not least <= len(found) <= most:
            self._inner(len(found), ": its number of keys").refuse(f"{least} to {most}")
        for key in found:
            if pattern.fullmatch(key) is None:
                self._inner(key, ": a key").refuse(rule)
        return {key: self._inner(value, f".{key}") for key, value in found.items()}

    def items(self, most: int, least: int = 0) -> list[Field]:
        """The fields of a list of ``least`` to ``most`` values."""
        if type(self.value) is not list:
            self.refuse("a list")
        if not least <= len(self.value) <= most:
            self._inner(len(self.value), ": its length").refuse(f"{least} to {most}")
        return [self._inner(value, f"[{k}]") for k, value in enumerate(self.value)]

    def text(self, pattern: re.Pattern[str], rule: str) -> str:
        """A text that matches ``pattern`` in full."""
        if type(self.value) is not str or pattern.fullmatch(self.value) is None:
            self.refuse(rule)
        return str(self.value)

    def short_text(self, most: int, least: int = 0) -> str:
        """Any text of ``least`` to ``most`` characters."""
        if type(self.value) is not str or not least <= len(self.value) <= most:
            self.refuse(f"a text of {least} to {most} characters")
        return str(self.value)

    def choice(self, options: Iterable[str]) -> str:
        """One of ``options``."""
        known = list(options)
        if type(self.value) is not str or self.value not in known:
            self.refuse(f"one of {', '.join(known)}")
        return self.value

    def integer(self, least: int, most: int) -> int:
        """A whole number in [least, most]; true and 1.0 are none."""
        if type(self.value) is not int or not least <= self.value <= most:
            self.refuse(f"an integer from {least} to {most}")
        return self.value

    def number(self, least: float, most: float) -> float:
        """A finite number in [least, most]."""
        if type(self.value) not in (int, float) or not least <= self.value <= most:
            self.refuse(f"a number from {least} to {most}")
        return float(self.value)

    def flag(self) -> bool:
        """true or false."""
        if type(self.value) is not bool:
            self.refuse("true or false")
        return bool(self.value)

    def _mapping(self) -> dict[str, Any]:
        if type(self.value) is not dict:
            self.refuse("an object")
        return dict(self.value)

    def _inner(self, value: Any, suffix: str) -> Field:
        return Field(value, f"{self.name}{suffix}", self.error)


def parse_document(
    data: bytes | memoryview,
    name: str,
    most_bytes: int,
    error: type[FileFormatError] = FileFormatError,
    most_depth: int = MAX_DEPTH,
) -> Field:
    """The JSON document in ``data``; time and memory grow with its length alone.

    Args:
        name: of the document, for errors.

    Raises:
        FileFormatError: of the kind ``error``: too long, too deep, no JSON in UTF-8, a key twice,
            an integer of more than `MAX_DIGITS` digits, NaN or an infinity.
    """
    data = bytes(data)
    if len(data) > most_bytes:
        raise _broken(error, name, f"{len(data)} bytes long", f"at most {most_bytes} bytes")
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > MAX_VALUES:
        raise _broken(error, name, f"of up to {values} values", f"of at most {MAX_VALUES}")
    try:
        document = json.loads(
            data.decode(),
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_each_once,
        )
    except RecursionError as cause:
        rule = f"at most {most_depth} levels deep"
        raise _broken(error, name, "deeper than can be parsed", rule) from cause
    except ValueError as cause:
        found = f"of {len(data)} bytes and does not parse ({cause})"
        raise _broken(error, name, found, "the whole JSON text that patchdeploy wrote") from cause
    _check_depth(document, name, error, most_depth)
    if b"\\u" in data:
        _check_text(document, name, error)
    return Field(document, name, error)


def parse_tensor_notes(data: bytes, key: str, name: str, most_depth: int) -> Field:
    """The JSON document that a safetensors file has as text under ``key`` of its metadata.

    Raises:
        FileFormatError: as `parse_document`; or there is no such text.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MAX_NOTES_BYTES):
        found = f"of {len(data)} bytes and says that its header has {length}"
        raise _broken(FileFormatError, name, found, f"whole, with at most {MAX_NOTES_BYTES}")
    header = parse_document(data[8 : 8 + length], f"{name}, its header", MAX_NOTES_BYTES)
    notes = header.value.get("__metadata__") if type(header.value) is dict else None
    text = notes.get(key) if type(notes) is dict else None
    if type(text) is not str:
        raise _broken(FileFormatError, name, "without notes", f"one with the text {key!r}")
    try:
        inner = text.encode()
    except UnicodeEncodeError as cause:
        raise _broken(FileFormatError, name, "with text that is none", "Unicode text") from cause
    return parse_document(inner, name, MAX_NOTES_BYTES, most_depth=most_depth)


def _broken(error: type[FileFormatError], name: str, found: str, rule: str) -> FileFormatError:
    return error(f"{name} is {found}; it must be {rule}; {_REMEDY}")


def _integer(text: str) -> int:
    if len(text.removeprefix("-")) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} characters, {text[:MAX_DIGITS]}...")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {_shown.repr(twice)} comes twice")
    return found


def _check_depth(
    document: object, name: str, error: type[FileFormatError], most_depth: int
) -> None:
    level: list[Any] = [document]
    for _ in range(most_depth + 1):
        level = [one for one in level if type(one) in (dict, list)]
        if not level:
            return
        level = [inner for one in level for inner in (one.values() if type(one) is dict else one)]
    raise _broken(error, name, "too deep", f"at most {most_depth} levels deep")


def _check_text(document: object, name: str, error: type[FileFormatError]) -> None:
    """No text, key or value, is half of a surrogate pair."""
    for text in _texts(document):
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            found = f"with the text {_shown.repr(text)}"
            raise _broken(error, name, found, "Unicode text alone") from cause


def _texts(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if type(one) is str:
            yield one
        elif type(one) is dict:
            yield from one
            waiting += one.values()
        elif type(one) is list:
            waiting += one
