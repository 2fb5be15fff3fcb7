"""A cascade's part with wrong bytes, validly signed; and decisions, by two readings of the page.

Each byte of good parts is set to every value, framings of optional parts are made by chance, and
our reader and `slow_decoder` must give the same verdict, and the same cascade where they take it.
"""

from __future__ import annotations

import json

import numpy as np
import slow_cascade
import slow_decoder
from fault_cases import SIDES, join_parts, make_subject, store_part
from fuzz_payload import HEADER_2, cascade_seeds
from tried import Progress, Told, Verdicts, scaled

from patchdeploy.cascade import SCORE_KINDS, Cascade, CascadeRule, Stage, confidence, route
from patchdeploy.cascade.scores import MAX_CONFIDENCE, MAX_RATIO
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile.payload import decode_payload

SUBJECT = make_subject("tiny", 1, ("dw",))
TABLE = slow_decoder.read_table(SUBJECT.table.encoded)
FIELDS = json.loads(HEADER_2.to_bytes())
NINE = join_parts(SUBJECT.parts)
FRAMINGS = 20_000
DECISIONS = 20_000


def try_parts(scale: float, progress: Progress) -> Told:
    """Every byte of three cascades set to every value; random framings."""
    seen = Verdicts()
    contents = [data[1:] for name, data in cascade_seeds().items() if name.startswith("cascade-")]
    step = max(1, round(1 / scale))
    for number, content in enumerate(contents):
        for place in range(len(content)):
            for value in range(0, 256, step):
                changed = content[:place] + bytes([value]) + content[place + 1 :]
                _judge(NINE + store_part(9, changed), seen, (number, place, value))
        progress((number + 1) / (len(contents) + 1))
    generator = np.random.default_rng(27)
    framings = scaled(FRAMINGS, scale)
    for index in range(framings):
        _judge(NINE + _framing(generator, contents), seen, f"framing {index}")
    assert len(seen.codes) >= 3, seen.codes
    return Told(
        f"every byte of a cascade by margin, probability and entropy set to every value; "
        f"{framings:,} framings of optional parts made by chance: {seen.count:,} payloads",
        seen.listed(),
        seen.count,
    )


def _framing(generator: np.random.Generator, contents: list[bytes]) -> bytes:
    """One to three optional parts, most of them nearly right."""
    parts = []
    for _ in range(generator.integers(0, 4)):
        number = int(generator.choice([9, 9, 9, 10, 127, 128, 200, 255]))
        body = contents[generator.integers(len(contents))]
        if generator.random() < 0.2:
            body = body[: generator.integers(len(body) + 1)]
        length = None if generator.random() < 0.9 else int(generator.integers(0, 400))
        stored = None if generator.random() < 0.95 else int(generator.integers(0, 400))
        method = int(generator.random() < 0.05)
        parts.append(store_part(number, body, method, length, stored))
    if generator.random() < 0.5:
        parts.sort(key=lambda part: part[0])
    tail = b"" if generator.random() < 0.9 else generator.bytes(int(generator.integers(1, 12)))
    return b"".join(parts) + tail


def _judge(payload: bytes, seen: Verdicts, what: object) -> None:
    try:
        slow = slow_decoder.decode(payload, FIELDS, TABLE).cascade
        expected = "ok"
    except slow_decoder.Refused as error:
        slow, expected = None, str(error)
    try:
        found = decode_payload(payload, HEADER_2, SUBJECT.table).cascade
        verdict = "ok"
    except PatchRefusedError as error:
        found, verdict = None, error.code
    seen.expect(verdict, expected, what)
    if verdict == "ok" and (None if found is None else _plain(found)) != slow:
        raise AssertionError(f"{what}: {found}, not {slow}")


def _plain(cascade: Cascade) -> tuple:
    """As `slow_decoder` gives it."""
    shown = cascade.certificate
    return (
        SCORE_KINDS.index(cascade.rule.score),
        shown.certified,
        shown.reference,
        round(shown.tolerance * 1e6),
        round(shown.confidence * 1e6),
        shown.images,
        [(one.resolution, one.threshold, one.ratio) for one in cascade.rule.stages],
    )


def try_decisions(scale: float, progress: Progress) -> Told:
    """Which stage answers, from random scores, thresholds and ratios, by two readings."""
    generator = np.random.default_rng(28)
    rounds = scaled(DECISIONS, scale)
    answered = [0, 0]
    for index in range(rounds):
        kind = SCORE_KINDS[index % 3]
        classes = int(generator.choice([2, 3, 10, 100]))
        spread = int(generator.choice([1, 4, 30, 128]))
        low, high = max(-128, -spread), min(127, spread)
        codes = generator.integers(low, high + 1, (1, classes)).astype(np.int8)
        ratio = 0 if kind == "margin" else int(generator.integers(1, MAX_RATIO + 1))
        sure = slow_cascade.confidence(kind, codes[0].tolist(), ratio)
        nudge = int(generator.choice([-1, 0, 0, 1]))
        threshold = min(max(sure + nudge, 0), MAX_CONFIDENCE[kind] + 1)
        rule = CascadeRule(kind, (Stage(SIDES[1], threshold, ratio), Stage(SIDES[0], 0, 0)))
        found = int(route(rule, {SIDES[1]: confidence(kind, codes, ratio)})[0])
        expected = slow_cascade.answering_stage(rule, {SIDES[1]: codes[0].tolist()})
        if found != expected:
            raise AssertionError(f"{kind}, ratio {ratio}, {codes}: stage {found}, not {expected}")
        answered[found] += 1
        if index % 1000 == 0:
            progress(index / rounds)
    assert min(answered) > 0, answered
    return Told(
        f"{rounds:,} decisions from random scores, thresholds at, just below and just above them",
        f"the same stage by both readings: the first {answered[0]:,} times",
        rounds,
    )
