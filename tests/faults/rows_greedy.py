"""Row 3, second part: a patch of a trusted signer that asks a device for more work than it may.

Files of two sides and 0 to 8 images in their self-test, right in everything else, are compared with
the rule of docs/patch-format.md in plain numbers; and with what an app has at hand, they are for a
side that it lacks. A verdict comes before any model is loaded, so it costs what any other does.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

from container_cases import sha
from fault_cases import POLICY, RUNTIMES, Subject, join_parts, make_subject, open_verdict
from fault_cases import sign_payload as sign
from tried import Progress, Told, Verdicts

MOST_PIXELS = 16_777_216
"""Of docs/patch-format.md: 2^24."""
SIDES = (1, 16, 224, 724, 1024, 1448, 1449, 2047, 2048, 2896, 2897, 4000, 4095, 4096, 4097)
IMAGES = range(9)
MOST_CPU_SECONDS = 0.25


def asking(subject: Subject, sides: tuple[int, int], images: int) -> bytes:
    """A signed file of these sides with so many images in its self-test."""
    golden = bytes([images, 8 if images else 0])
    golden += bytes(images * (192 + len(RUNTIMES) * len(sides) * subject.fields["classes"]))
    payload = join_parts({**subject.parts, "golden": golden})
    results = {name: {str(px): sha(b"result") for px in sides} for name in RUNTIMES}
    return sign(subject, payload, resolutions=list(sides), results=results)


def expect_code(sides: tuple[int, int], images: int) -> str:
    """The rule once more."""
    pixels = sides[0] ** 2 + sides[1] ** 2
    if max(sides) > 4096 or pixels > MOST_PIXELS:
        return "header_field"
    return "work" if images * pixels > MOST_PIXELS else "ok"


def try_greedy(scale: float, progress: Progress) -> Told:
    """Every pair of sides with every number of images, alone and where one side is not at hand."""
    subject, verdicts, slowest = make_subject("tiny"), Verdicts(), 0.0
    pairs = list(itertools.permutations(SIDES, 2))
    chosen = pairs if scale >= 1 else pairs[:: max(1, round(1 / max(scale, 0.01)))]
    for number, sides in enumerate(chosen):
        for images in IMAGES:
            data, code = asking(subject, sides, images), expect_code(sides, images)
            start = time.process_time()
            verdicts.expect(open_verdict(data, subject.table), code, (sides, images))
            slowest = max(slowest, time.process_time() - start)
            here = replace(POLICY, resolutions=frozenset(sides[:1]))
            lacking = "header_field" if code == "header_field" else "resolution"
            verdicts.expect(open_verdict(data, subject.table, here), lacking, (sides, images))
        progress((number + 1) / len(chosen))
    assert slowest < MOST_CPU_SECONDS, f"slowest verdict {slowest} s"
    return Told(
        f"{len(chosen) * len(IMAGES)} files of two sides to 4,097 px with 0 to 8 images in their "
        "self-test, each also where a side is not at hand",
        f"{verdicts.listed()}; slowest verdict {1000 * slowest:.0f} ms of processor time, before a "
        "model is loaded",
        verdicts.count,
    )
