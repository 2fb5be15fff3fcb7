"""Row 10 of the fault table: overlaps, holes, overflows, other slots; parts of other lengths.

A patch can name slots and nothing else, and only all of them. What it can still get wrong is which
runs it names and how long its parts are; every boundary is moved by one here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from fault_cases import FAULT_BASES, Subject, make_subject, open_verdict, sign_payload, store_part
from tried import Progress, Told, Verdicts

from patchdeploy.patchfile.parts import PARTS, deflate

LAST = 2**31 - 1
"""The end of slot indices."""


def try_sites(scale: float, progress: Progress) -> Told:
    """Every wrong choice of runs over each base; every part a byte longer, shorter, elsewhere."""
    runs, parts = Verdicts(), Verdicts()
    bases = FAULT_BASES if scale >= 1 else FAULT_BASES[:2]
    for number, name in enumerate(bases):
        subject = make_subject(name)
        _try_runs(subject, runs)
        _try_parts(subject, parts)
        progress((number + 1) / len(bases))
    return Told(
        f"{runs.count:,} choices of slots over {len(bases)} bases: a hole, an overlap, a touch and "
        "an end at every slot, both ends +-1, all powers of two to 2^53; "
        f"{parts.count:,} payloads: each part, its lengths and its place +-1, in each order of two",
        f"slots: {runs.listed()}; payloads: {parts.listed()}",
        runs.count + parts.count,
    )


def _try_runs(subject: Subject, seen: Verdicts) -> None:
    for sites, expected in _choices(subject.table.slot_count):
        data = sign_payload(subject, subject.payload, sites=sites)
        seen.expect(open_verdict(data, subject.table), expected, f"sites {sites!s:.80}")


def _choices(count: int) -> list[tuple[Any, str | set[str]]]:
    """Runs over ``count`` slots, and what must be said of them."""
    whole = [0, count]
    choices: list[tuple[Any, str | set[str]]] = [([whole], "ok")]
    for k in range(1, count):
        choices += [
            ([[0, k], [k, count - k]], "header_field"),
            ([[0, k], [k - 1, count - k + 1]], "header_field"),
            ([[0, k]], "sites"),
            ([[k, count - k]], "sites"),
            ([[k, 1]], "sites"),
        ]
        if k + 1 < count:
            choices.append(([[0, k], [k + 1, count - k - 1]], "sites"))
    choices += [([one], "sites") for one in _moved_ends(count)]
    choices += [([whole, [count, 1]], "header_field"), ([whole, [count + 1, 1]], "sites")]
    choices += [([[count, 1]], "sites"), ([[1, count - 1], [0, 1]], "header_field")]
    for bit in range(54):
        for value in {2**bit - 1, 2**bit, 2**bit + count}:
            choices.append(([[value, count]], _verdict_of(value, count, count)))
            choices.append(([[0, value]], _verdict_of(0, value, count)))
            choices.append(([[LAST - 1, value]], _verdict_of(LAST - 1, value, count)))
    choices += [
        (sites, "header_field")
        for sites in ([], [[]], [[0]], [[0, count, 0]], 0, "", {}, [0, count], [["0", count]])
    ]
    return choices


def _moved_ends(count: int) -> list[list[int]]:
    """Both ends of the whole run moved by one, each way, but for those below 0."""
    return [[0, count - 1], [0, count + 1], [1, count - 1], [1, count], [1, count - 2]]


def _verdict_of(first: int, length: int, count: int) -> str:
    if first >= LAST or length < 1 or first + length > LAST:
        return "header_field" if max(first, length) < 2**53 else "header_text"
    return "ok" if (first, length) == (0, count) else "sites"


def _try_parts(subject: Subject, seen: Verdicts) -> None:
    good = [store_part(k, subject.parts[name]) for k, name in enumerate(PARTS)]
    _expect(subject, seen, good, "ok", "all parts, stored")
    for index, name in enumerate(PARTS):
        for what, part, expected in _other_parts(index, subject.parts[name]):
            parts = [*good[:index], part, *good[index + 1 :]]
            _expect(subject, seen, parts, expected, f"{name}: {what}")
        _expect(subject, seen, [*good[:index], *good[index + 1 :]], "parts", f"no {name}")
        _expect(subject, seen, [*good[: index + 1], *good[index:]], "parts", f"{name} twice")
        _expect(subject, seen, good[:index], "parts", f"nothing from {name} on")
    for first, second in pairwise(range(len(PARTS))):
        swapped = list(good)
        swapped[first], swapped[second] = good[second], good[first]
        _expect(subject, seen, swapped, "parts", f"{PARTS[first]} after {PARTS[second]}")
    for extra in (b"\0", good[-1], store_part(len(PARTS), b"")):
        _expect(subject, seen, [*good, extra], "parts", f"{len(extra)} bytes after the last part")


def _other_parts(index: int, body: bytes) -> list[tuple[str, bytes, set[str]]]:
    """A part with another length, number or method, or deflated in another way."""
    packed = deflate(body)
    wrong = {"parts", "inflate"}
    others = [
        ("a byte more", store_part(index, body + b"\0"), wrong),
        ("a byte less", store_part(index, body[:-1]), wrong),
        ("empty", store_part(index, b""), wrong),
        ("told longer", store_part(index, body, length=len(body) + 1), wrong),
        ("stored longer", store_part(index, body, stored=len(body) + 1), wrong),
        ("stored without end", store_part(index, body, stored=2**32 - 1), wrong),
        ("another number", store_part(index + 1, body), wrong),
        ("method 2", store_part(index, body, method=2), wrong),
        ("method 255", store_part(index, body, method=255), wrong),
        ("deflated", store_part(index, packed, 1, len(body)), {"ok"}),
        ("deflated, told longer", store_part(index, packed, 1, len(body) + 1), wrong),
        ("deflated, cut", store_part(index, packed[:-1], 1, len(body)), wrong),
        ("deflated, a byte after", store_part(index, packed + b"\0", 1, len(body)), wrong),
        ("deflated twice", store_part(index, packed + packed, 1, len(body)), wrong),
        ("deflated, told as stored", store_part(index, packed, 0, len(body)), wrong),
        ("not deflated", store_part(index, body, 1, len(body)), wrong),
        ("a byte more, deflated", store_part(index, deflate(body + b"\0"), 1, len(body)), wrong),
        ("nothing, deflated", store_part(index, b"", 1, len(body)), wrong),
    ]
    if body:
        others += [
            ("told shorter", store_part(index, body, length=len(body) - 1), wrong),
            ("stored shorter", store_part(index, body, stored=len(body) - 1), wrong),
            ("deflated, told shorter", store_part(index, packed, 1, len(body) - 1), wrong),
        ]
        return others
    kept = {"a byte less", "empty"}  # the same part: it was empty
    return [(what, part, {"ok"} if what in kept else rule) for what, part, rule in others]


def _expect(
    subject: Subject, seen: Verdicts, parts: list[bytes], expected: str | set[str], what: str
) -> None:
    payload = b"".join(parts)
    if payload:
        data = sign_payload(subject, payload)
        seen.expect(open_verdict(data, subject.table), expected, what)
