"""Write payload_vectors.json: a tiny base, patch files over it, and what they decode to.

Run it by hand when the format changes, and read the difference. Every byte is made here in plain
numbers, from docs/patch-format.md, with no random generator, no compressor and no array library,
so that it is the same everywhere. What good payloads decode to is computed by `slow_decoder`; codes
stand here by hand.
"""

import base64
import json
import struct
from pathlib import Path

import slow_decoder
from container_cases import document, forge, sha
from make_vectors import POLICY

PATH = Path(__file__).with_name("payload_vectors.json")
CAPACITY, CLASSES, TAPS = 3, 2, 2
LAYOUT = {
    "elements": 10,
    "head_capacity": CAPACITY,
    "head_element": 4,
    "head_input": 2,
    "head_output": 3,
    "head_row": 4,
    "head_row_elements": TAPS,
    "rows": 7,
    "sites": 4,
}
CONVS = [
    ["stem", 2, 3, 0, 1, False],
    ["dw", 2, 2, 1, 2, True],
    ["head", CAPACITY, TAPS, 2, 3, True],
]
SCALES = [(8 + k) / 1024 for k in range(7)]
SLOTS = 4 + 3 + 2
NUMBERS = {
    name: number
    for number, name in enumerate(
        ("labels", "notes", "steps", "activations", "scales", "biases", "kernels", "head", "golden")
    )
} | {"cascade": 9}
DYNAMIC_NOTES = (
    "DY+7bURBEMNaIV4FO3+N23HuS+zocL17UwGSyPfz/fr7+X2+eA6GEyRFM4jFbmiYY4ElVlhjgwlb/OC343jgiRfe+ODC"
    "lziEEXcyiCSKaGIIEUse0kgn72OSRTY5pMilDmWUU0FdoKKaGkrU0oc22umgk768TQ8tepnDGONMMMkUc3WGEbPoIEOO"
    "AiUq1OjaCi17WGOdDTbZYpsdVs/nHw=="
)
"""Raw deflate with Huffman tables of its own (block type 2) of `counting_notes`, by zlib 1.2.13."""


def coding_table() -> bytes:
    """base.coding by hand: a safetensors file."""
    about = {
        "conv_fields": ["name", "rows", "taps", "x_index", "y_index", "owned"],
        "convs": CONVS,
        "format": 1,
        "layout": LAYOUT,
        "output_index": 3,
        "reference_sha256": sha(b"reference"),
    }
    arrays = {
        "beta": ("F32", struct.pack("<7f", *((k - 2) / 4 for k in range(7)))),
        "scale": ("F32", struct.pack("<7f", *SCALES)),
        "slope": ("F32", struct.pack("<7f", *(5 * k - 12 for k in range(7)))),
        "kernels": ("I8", struct.pack("10b", *(21 * k - 100 for k in range(10)))),
    }
    entries, data = {"__metadata__": {"patchdeploy": json.dumps(about)}}, b""
    for name, (dtype, content) in arrays.items():
        count = 10 if dtype == "I8" else 7
        place = [len(data), len(data) + len(content)]
        entries[name] = {"dtype": dtype, "shape": [count], "data_offsets": place}
        data += content
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


TABLE = coding_table()


def planes(count: int, *numbers: int) -> bytes:
    """``count`` planes of ``numbers``."""
    folded = [2 * one if one >= 0 else -2 * one - 1 for one in numbers]
    assert max(folded) < 256**count
    return bytes([count, *(one >> 8 * plane & 255 for plane in range(count) for one in folded)])


def stored(content: bytes) -> bytes:
    """One stored block of raw deflate, the last."""
    return struct.pack("<BHH", 1, len(content), len(content) ^ 0xFFFF) + content


def contents(sides: int = 1, **changes: bytes) -> dict[str, bytes]:
    """Codes of 0: the base's own values; steps of 1/256 octave and 2^-8."""
    return {
        "labels": b"\3\0cat\3\0dog",
        "notes": b"{}",
        "steps": bytes(3) + b"\xf8" * 3,
        "activations": bytes(4 * sides) + b"\0",
        "scales": b"\0",
        "biases": b"\0",
        "kernels": bytes(4 * sides),
        "head": bytes(CLASSES * TAPS * sides),
        "golden": b"\0\0",
        **changes,
    }


def framed(name: str, content: bytes, **changes: object) -> bytes:
    """One part, stored; ``changes`` to number, method, length, and the bytes that stand there."""
    fields = {"number": NUMBERS[name], "method": 0, "length": len(content), "body": content}
    number, method, length, body = {**fields, **changes}.values()
    return struct.pack("<BBII", number, method, length, len(body)) + body


def payload(parts: dict[str, bytes], name: str = "", **changes: object) -> bytes:
    """All parts; ``changes`` to the frame of one."""
    return b"".join(
        framed(each, content, **(changes if each == name else {}))
        for each, content in parts.items()
    )


def header(data: bytes, sides: tuple[int, ...] = (16,), **changes: object) -> dict:
    fields = {
        "base": {"bytes": len(TABLE), "sha256": sha(TABLE)},
        "classes": CLASSES,
        "payload": {"bytes": len(data), "sha256": sha(data)},
        "resolutions": list(sides),
        "results": {"onnx": {str(px): sha(b"result") for px in sides}},
        "sites": [[0, SLOTS]],
    }
    return document(**{**fields, **changes})


# -- good ------------------------------------------------------------------------------------------


def counting_notes() -> bytes:
    return json.dumps({"count": " ".join(map(str, range(99)))}).encode()


def good_cases() -> list[tuple[str, bytes, tuple[int, ...], dict]]:
    """Payload, resolutions, changes to the header."""
    own = contents()
    exact = contents(
        steps=b"\xff" * 3 + b"\x80" * 3,
        activations=bytes([0, 128, 255, 1]) + planes(4, 0, 8_388_608, -65_537, 1),
        scales=planes(4, 1, -1, 8_388_607, -8_388_608, 255, -256),
        biases=planes(5, 2**31 - 1, -(2**31) + 1, 0, -1, 70_000, 1),
        kernels=bytes([1, 255, 128, 127]),
        head=bytes([129, 127, 0, 255]),
    )
    stepped = contents(
        sides=3,
        labels="\5\0K\u00e4se\6\0\u82b1\u82b1".encode(),
        notes=counting_notes(),
        steps=bytes([0, 5, 9]) + struct.pack("3b", -12, -4, 3),
        activations=bytes(range(12)) + planes(3, *(40_000 * k - 200_000 for k in range(12))),
        scales=planes(2, *[300, -301, 9, -9, 0, -1, 7, -7, 0, 1, -1, 1, -255, 256], *[0] * 4),
        biases=planes(2, *([900, -900, 25, -25, 1, -2] + [5 * k - 30 for k in range(12)])),
        kernels=bytes(range(250, 256)) + bytes(range(6)),
        head=bytes([100, 156, 5, 251, *range(8)]),
        golden=b"\2\x09" + bytes(7 * k % 256 for k in range(384)) + bytes(range(244, 256)) * 2,
    )
    two = {"results": {name: {str(px): sha(b"r") for px in (24, 16, 20)} for name in ("b", "onnx")}}
    deflated = payload(stepped, "notes", method=1, body=base64.b64decode(DYNAMIC_NOTES))
    several = framed("kernels", stepped["kernels"], method=1, body=stored(stepped["kernels"]))
    deflated = deflated.replace(framed("kernels", stepped["kernels"]), several)
    return [
        ("every code 0", payload(own), (16,), {}),
        ("exact scales and biases", payload(exact), (16,), {}),
        (
            "notes with space, a key twice and a lone surrogate",
            payload(contents(notes=b' { "a" : 1 , "a" : "\\ud800" } ')),
            (16,),
            {},
        ),
        ("three resolutions in steps, self-test, deflated parts", deflated, (24, 16, 20), two),
    ]


def good_vector(name: str, data: bytes, sides: tuple[int, ...], changes: dict) -> dict:
    fields = header(data, sides, **changes)
    decoded = slow_decoder.decode(data, fields, slow_decoder.read_table(TABLE))
    vector = entry(name, data, "ok", sides, **changes)
    vector["labels"] = decoded.labels
    if decoded.cascade is not None:
        vector["cascade"] = cascade_entry(*decoded.cascade)
    vector["values"] = {str(px): hashes(one) for px, one in decoded.values.items()}
    if decoded.thumbnails:
        thumbnails = [decoded.thumbnails[:192], decoded.thumbnails[192:]]
        vector["tolerance"] = decoded.tolerance
        vector["enlarged"] = {
            str(px): sha(b"".join(slow_decoder.enlarge(one, px) for one in thumbnails))
            for px in sides
        }
        vector["scores"] = {
            runtime: {str(px): scores for px, scores in by_side.items()}
            for runtime, by_side in decoded.scores.items()
        }
    return vector


def cascade_entry(score, certified, reference, tolerance, confidence, images, stages) -> dict:
    """A cascade in the words of docs/cascades.md; shares in millionths."""
    return {
        "score": ("margin", "probability", "entropy")[score],
        "certified": bool(certified),
        "reference": reference,
        "tolerance_millionths": tolerance,
        "confidence_millionths": confidence,
        "images": images,
        "stages": [
            {"resolution": px, "threshold": threshold, "ratio": ratio}
            for px, threshold, ratio in stages
        ],
    }


def hashes(values: slow_decoder.Values) -> dict[str, str]:
    letters = {"weight_scale": "f", "bias": "i", "activation_scale": "f"}
    return {
        name: sha(struct.pack(f"<{len(array)}{letters.get(name, 'b')}", *array))
        for name, array in values._asdict().items()
    }


def cascade(*stages: tuple[int, int, int], **changes: int) -> bytes:
    """Content of the cascade's part: ``stages`` as position of the resolution, threshold, ratio."""
    fields = {
        "version": 1,
        "score": 0,
        "certified": 1,
        "stages": len(stages),
        "reference": 0,
        "reserved": 0,
        "tolerance": 10_000,
        "confidence": 950_000,
        "images": 2_000,
        **changes,
    }
    *small, reserved, tolerance, confidence, images = fields.values()
    head = bytes(small) + reserved.to_bytes(3, "little")
    rest = struct.pack("<III", tolerance, confidence, images)
    return head + rest + b"".join(struct.pack("<BII", *one) for one in stages)


LAST = (0, 0, 0)
"""A last stage at the header's first resolution."""


def with_cascade(content: bytes, *further: bytes) -> bytes:
    """A payload of three resolutions with the part and ``further`` ones after it."""
    return payload(contents(3)) + framed("cascade", content) + b"".join(further)


def three(encoding: str = "parts-2", engine: int = 2) -> dict:
    """Changes to a header: three resolutions."""
    results = {"onnx": {str(px): sha(b"r") for px in (24, 20, 16)}}
    return {
        "resolutions": [24, 20, 16],
        "results": results,
        "encoding": encoding,
        "engine": engine,
    }


def good_cascades() -> list[tuple[str, bytes, tuple[int, ...], dict]]:
    margin = cascade((2, 40, 0), (1, 255, 0), LAST)
    entropy = cascade(
        (2, 2**31 - 1, 1), (0, 0, 0), score=2, reference=1, certified=0, images=0, tolerance=1
    )
    probability = cascade((1, 2**30, 2**32 - 1), (2, 0, 0), score=1, confidence=999_999)
    alone = cascade((1, 0, 0), tolerance=999_999, confidence=500_000, images=2**32 - 1)
    later = struct.pack("<BBII", 128, 0, 3, 3) + b"new"
    last = struct.pack("<BBII", 255, 0, 0, 0)
    files = {
        "cascade by margin over three resolutions": with_cascade(margin),
        "cascade by entropy that is not certified": with_cascade(entropy),
        "cascade by probability, deflated": payload(contents(3))
        + framed("cascade", probability, method=1, body=stored(probability)),
        "cascade of one stage": with_cascade(alone),
        "cascade and parts of later versions": with_cascade(margin, later, last),
        "a part of a later version alone": payload(contents(3)) + later,
    }
    return [(name, data, (24, 20, 16), three()) for name, data in files.items()]


# -- bad -------------------------------------------------------------------------------------------


def bad_cascades() -> list[tuple]:
    two = ((2, 40, 0), LAST)
    files = {
        "cascade of version 2": cascade(*two, version=2),
        "cascade with score 3": cascade(*two, score=3),
        "cascade with certified 2": cascade(*two, certified=2),
        "cascade without a stage": cascade(),
        "cascade of 17 stages": cascade(*two[:1] * 15, LAST, stages=17),
        "cascade of a fourth resolution as reference": cascade(*two, reference=3),
        "cascade with a reserved byte": cascade(*two, reserved=256),
        "cascade of tolerance 0": cascade(*two, tolerance=0),
        "cascade of tolerance 1": cascade(*two, tolerance=1_000_000),
        "cascade of confidence below a half": cascade(*two, confidence=499_999),
        "cascade of confidence 1": cascade(*two, confidence=1_000_000),
        "cascade certified on no image": cascade(*two, images=0),
        "cascade with a stage too few": cascade(*two, stages=3),
        "cascade with a stage too many": cascade(*two, stages=1),
        "cascade cut in its head": cascade(*two)[:19],
        "cascade of a fourth resolution": cascade((3, 40, 0), LAST),
        "cascade with a resolution twice": cascade((2, 40, 0), (2, 30, 0), LAST),
        "cascade with a threshold above 2^31 - 1": cascade((2, 2**31, 0), LAST),
        "margin with a ratio": cascade((2, 40, 1), LAST),
        "probability without a ratio": cascade((2, 40, 0), LAST, score=1),
        "last stage with a threshold": cascade((2, 40, 0), (0, 1, 0)),
        "last stage with a ratio": cascade((2, 40, 1), (0, 0, 1), score=1),
    }
    good = cascade(*two)
    framings = {
        "optional part missing": (payload(contents(3)), "parts"),
        "cascade twice": (with_cascade(good, framed("cascade", good)), "parts"),
        "parts out of order": (
            payload(contents(3)) + struct.pack("<BBII", 128, 0, 0, 0) + framed("cascade", good),
            "parts",
        ),
        "an unknown part that a reader needs": (
            with_cascade(good, struct.pack("<BBII", 127, 0, 0, 0)),
            "parts",
        ),
        "a part after number 255": (
            with_cascade(good, *[struct.pack("<BBII", 255, 0, 0, 0)] * 2),
            "parts",
        ),
        "byte after the cascade": (with_cascade(good) + b"\0", "parts"),
        "cascade of more bytes than it may have": (with_cascade(bytes(20 + 16 * 9 + 1)), "inflate"),
        "cascade whose stream ends early": (
            payload(contents(3)) + framed("cascade", good, method=1, body=stored(good[:-1])),
            "inflate",
        ),
    }
    bad = [(name, with_cascade(content), "parts", three()) for name, content in files.items()]
    bad += [(name, data, code, three()) for name, (data, code) in framings.items()]
    first = ("a cascade in encoding parts-1", with_cascade(good), "parts", three("parts-1", 1))
    return [*bad, first]


def bad_sites() -> list[tuple]:
    five = contents(labels=b"".join(b"\1\0%d" % k for k in range(CAPACITY + 1)), head=bytes(8))
    own = payload(contents())
    return [
        ("one slot not set", own, "sites", {"sites": [[0, SLOTS - 1]]}),
        ("a slot past the table", own, "sites", {"sites": [[0, SLOTS + 1]]}),
        ("more classes than head rows", payload(five), "sites", {"classes": CAPACITY + 1}),
    ]


def bad_parts() -> list[tuple]:
    own = contents()
    head = own["head"]

    def of(name: str, content: bytes) -> bytes:
        return payload({**own, name: content})

    files = {
        "head of more bytes than it may have": (of("head", bytes(5)), "inflate"),
        "head that says 2^32 - 1 bytes": (payload(own, "head", length=2**32 - 1), "inflate"),
        "stream that gives more": (
            payload(own, "head", method=1, body=stored(bytes(9))),
            "inflate",
        ),
        "stream that gives less": (
            payload(own, "head", method=1, body=stored(bytes(3))),
            "inflate",
        ),
        "byte after the stream": (
            payload(own, "head", method=1, body=stored(head) + b"\0"),
            "inflate",
        ),
        "stream without an end": (
            payload(own, "head", method=1, body=b"\0" + stored(head)[1:]),
            "inflate",
        ),
        "no stream": (payload(own, "head", method=1, body=b"\7"), "inflate"),
        "no stream, and the next part out of order": (
            payload(own, "labels", method=1, body=b"\7").replace(
                framed("notes", own["notes"]), framed("notes", own["notes"], number=5)
            ),
            "inflate",
        ),
        "part out of order": (payload(own, "head", number=8), "parts"),
        "unknown method": (payload(own, "head", method=2), "parts"),
        "stored part of another length": (payload(own, "head", length=3), "parts"),
        "last part cut": (payload(own)[:-1], "parts"),
        "byte after the last part": (payload(own) + b"\0", "parts"),
        "a label twice": (of("labels", b"\3\0cat\3\0cat"), "parts"),
        "a label missing": (of("labels", b"\3\0cat"), "parts"),
        "label not UTF-8": (of("labels", b"\3\0cat\1\0\xff"), "parts"),
        "notes that are a list": (of("notes", b"[]"), "parts"),
        "notes with NaN": (of("notes", b'{"a":NaN}'), "parts"),
        "notes with a number past float64": (of("notes", b'{"a":1' + b"0" * 309 + b"}"), "parts"),
        "steps of one convolution missing": (of("steps", own["steps"][:-1]), "parts"),
        "six planes": (of("activations", bytes(4) + b"\6" + bytes(14)), "parts"),
        "planes cut": (of("scales", b"\1" + bytes(5)), "parts"),
        "head one byte short": (of("head", head[:-1]), "parts"),
        "tolerance without images": (of("golden", b"\0\1"), "parts"),
        "self-test without scores": (of("golden", b"\1\0" + bytes(192)), "parts"),
    }
    return [(name, data, code, {}) for name, (data, code) in files.items()]


def bad_work() -> list[tuple]:
    """More pixels in the self-test than a patch may ask for."""

    def asking(images: int, sides: tuple[int, ...], **changes: bytes) -> tuple[bytes, str, dict]:
        golden = bytes([images, 8]) + bytes(192 * images) + bytes(CLASSES * images * len(sides))
        results = {"onnx": {str(px): sha(b"r") for px in sides}}
        data = payload(contents(len(sides), golden=golden, **changes))
        return data, "work", {"resolutions": list(sides), "results": results}

    bad_step = {"steps": b"\0\x0d\0" + b"\xf8" * 3}
    cases = {
        "two images at 4096 px": asking(2, (4096,)),
        "eight images at 1449 px": asking(8, (1449,)),
        "three images at three sides": asking(3, (2047, 1023, 600)),
        "order: work before values": asking(5, (2048,), **bad_step),
    }
    return [(name, *one) for name, one in cases.items()]


def bits(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def bad_values() -> list[tuple]:
    exact = bytes([255] * 3) + b"\x80" * 3
    low, zero = 2.0**-65, bits(2.0**-5)
    spare = contents(
        steps=exact,
        activations=bytes(4) + planes(4, *[bits(low) - zero] * 3, bits(1 / low) - zero),
        scales=planes(4, 0, 0, 0, 0, *(bits(2.0**126) - bits(SCALES[k]) for k in (4, 5))),
    )
    last = bits(2.0**8) - 1 - bits(SCALES[0])
    least = bits(2.0**-32) - bits(SCALES[0])
    activation = {"inf": bits(float("inf")), "0": 0, "below normal": bits(2.0**-126) - 1}
    activation["with the sign set"] = bits(1.0) + 2**31
    files = {
        f"activation scale {name}": contents(activations=bytes(4) + planes(5, 0, 0, 0, one - zero))
        for name, one in activation.items()
    }
    return [
        (name, payload(parts), "values", {})
        for name, parts in {
            **files,
            "step 13": contents(steps=b"\0\x0d\0" + b"\xf8" * 3),
            "step -127": contents(steps=bytes(3) + b"\xf8\x81\xf8"),
            "weight scale beyond float32": contents(scales=planes(3, 40_000, 0, 0, 0, 0, 0)),
            "a spare row's scale beyond float32": spare,
            "multiplier 2^8": contents(steps=exact, scales=planes(4, last + 1, 0, 0, 0, 0, 0)),
            "multiplier below 2^-32": contents(
                steps=exact, scales=planes(4, least - 1, 0, 0, 0, 0, 0)
            ),
            "bias 2^31": contents(steps=exact, biases=planes(5, 0, 0, 0, 0, 0, 2**31)),
            "bias -2^31": contents(steps=exact, biases=planes(5, 0, -(2**31), 0, 0, 0, 0)),
            "head element -128": contents(head=b"\0\0\0\x80"),
            "kernel element -128": contents(kernels=bytes([256 - 28, 0, 0, 0])),
        }.items()
    ] + [
        (
            "bad value in the second resolution alone",
            payload(contents(2, activations=bytes(8) + planes(4, *[0] * 7, -zero))),
            "values",
            {"resolutions": [16, 8], "results": {"onnx": {"16": sha(b"r"), "8": sha(b"r")}}},
        )
    ]


def edges() -> list[tuple[str, bytes, tuple[int, ...], dict]]:
    """Just inside what `bad_values` is just outside of."""
    exact = bytes([255] * 3) + b"\x80" * 3
    last, least = bits(2.0**8) - 1, bits(2.0**-32)
    both = planes(4, last - bits(SCALES[0]), least - bits(SCALES[1]), 0, 0, 0, 0)
    return [("multipliers at their bounds", payload(contents(steps=exact, scales=both)), (16,), {})]


def entry(name: str, data: bytes, code: str, sides: tuple[int, ...] = (16,), **changes) -> dict:
    signed = forge(header(data, sides, **changes), data)
    return {"name": name, "file": base64.b64encode(signed).decode("ascii"), "code": code}


def make_payload_vectors() -> dict:
    bad = bad_sites() + bad_parts() + bad_work() + bad_values() + bad_cascades()
    good = [good_vector(*one) for one in good_cases() + edges() + good_cascades()]
    return {
        "about": "Patch files over one tiny base for readers in any language; see "
        "docs/patch-format.md. Keys as in vectors.json: TEST KEYS, never trust them.",
        "format": 1,
        "policy": {**POLICY, "engine": 2, "base_sha256": sha(TABLE), "base_bytes": len(TABLE)},
        "coding_table": base64.b64encode(TABLE).decode("ascii"),
        "cases": good + [entry(*one[:3], **one[3]) for one in bad],
    }


def encode(vectors: dict) -> str:
    return json.dumps(vectors, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(encode(make_payload_vectors()))
