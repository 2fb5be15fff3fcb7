"""A second reader of payloads, from docs/patch-format.md alone: plain numbers, one at a time.

It shares no line and no constant with the package. Anything that breaks a rule raises `Refused`
with the code. Slow, and meant to be read beside the page.
"""

import json
import math
import struct
import zlib
from typing import NamedTuple

ROOTS = (
    "0x1.00b1afa5abcbfp+0 0x1.0163da9fb3335p+0 0x1.02c9a3e778061p+0 0x1.059b0d3158574p+0 "
    "0x1.0b5586cf9890fp+0 0x1.172b83c7d517bp+0 0x1.306fe0a31b715p+0 0x1.6a09e667f3bcdp+0"
)
TINY = 2.0**-126
MOST = 2**31 - 1


class Refused(Exception):  # noqa: N818
    """The code of docs/patch-format.md."""


class Table(NamedTuple):
    layout: dict
    convs: list[dict]
    scale: tuple[float, ...]
    beta: tuple[float, ...]
    slope: tuple[float, ...]
    kernels: tuple[int, ...]


class Values(NamedTuple):
    weight_scale: list[float]
    bias: list[int]
    activation_scale: list[float]
    activation_zero_point: list[int]
    weights: list[int]


class Decoded(NamedTuple):
    labels: list[str]
    notes: dict
    tolerance: int
    thumbnails: bytes
    scores: dict[str, dict[int, list[list[int]]]]
    values: dict[int, Values]
    cascade: tuple | None


def read_table(data: bytes) -> Table:
    length = int.from_bytes(data[:8], "little")
    text, body = data[8 : 8 + length], data[8 + length :]
    entries = json.loads(text)
    about = json.loads(entries["__metadata__"]["patchdeploy"])
    arrays = {}
    for name, letter in (("scale", "f"), ("beta", "f"), ("slope", "f"), ("kernels", "b")):
        first, end = entries[name]["data_offsets"]
        (count,) = entries[name]["shape"]
        arrays[name] = struct.unpack(f"<{count}{letter}", body[first:end])
    convs = [dict(zip(about["conv_fields"], row, strict=True)) for row in about["convs"]]
    return Table(about["layout"], convs, **arrays)


def decode(payload: bytes, header: dict, table: Table) -> Decoded:
    payload = bytes(payload)
    layout, convs = table.layout, table.convs
    slots = layout["sites"] + len(convs) + sum(conv["owned"] for conv in convs)
    if header["sites"] != [[0, slots]] or header["classes"] > layout["head_capacity"]:
        raise Refused("sites")
    sides, classes = header["resolutions"], header["classes"]
    runs = len(sides)
    runtimes = sorted(header["results"])
    coded_rows = layout["rows"] - layout["head_capacity"] + classes
    head_row = layout["head_row_elements"]
    owned = layout["elements"] - layout["head_capacity"] * head_row
    most = (
        2**20 + 2 * classes,
        2**18,
        2 * len(convs),
        1 + 6 * runs * layout["sites"],
        1 + 5 * runs * coded_rows,
        1 + 5 * runs * coded_rows,
        runs * owned,
        runs * classes * head_row,
        2 + 8 * (192 + len(runtimes) * runs * classes),
        20 + 9 * 16,
    )
    optional = header["encoding"] == "parts-2"
    parts = read_parts(payload, most, optional)
    labels = read_labels(parts[0], classes)
    notes = read_notes(parts[1])
    if len(parts[2]) != 2 * len(convs):
        raise Refused("parts")
    steps_t = list(parts[2][: len(convs)])
    steps_e = list(struct.unpack(f"{len(convs)}b", parts[2][len(convs) :]))
    sites = layout["sites"]
    zero_points = list(parts[3][: runs * sites])
    if len(zero_points) != runs * sites:
        raise Refused("parts")
    activations = read_planes(parts[3][runs * sites :], runs * sites)
    scales = read_planes(parts[4], runs * coded_rows)
    biases = read_planes(parts[5], runs * coded_rows)
    if len(parts[6]) != runs * owned or len(parts[7]) != runs * classes * head_row:
        raise Refused("parts")
    tolerance, thumbnails, scores = read_golden(parts[8], runtimes, sides, classes)
    cascade = read_cascade(parts[9], sides) if 9 in parts else None
    if len(thumbnails) // 192 * sum(px * px for px in sides) > 2**24:
        raise Refused("work")
    for t, e in zip(steps_t, steps_e, strict=True):
        if (t > 12 and t != 255) or (e < -126 and e != -128):
            raise Refused("values")
    fields = [zero_points, activations, scales, biases, list(parts[6]), list(parts[7])]
    by_side = [split(one, runs) for one in fields]
    values = {}
    for k, px in enumerate(sides):
        plain = [one[k] for one in by_side]
        if k:
            plain = [
                [a + b for a, b in zip(here, one[0], strict=True)]
                for here, one in zip(plain, by_side, strict=True)
            ]
        values[px] = decode_side(plain, classes, steps_t, steps_e, table)
    return Decoded(labels, notes, tolerance, thumbnails, scores, values, cascade)


def split(numbers: list[int], runs: int) -> list[list[int]]:
    each = len(numbers) // runs
    return [numbers[k * each : (k + 1) * each] for k in range(runs)]


def read_parts(payload: bytes, most: tuple[int, ...], optional: bool = False) -> dict[int, bytes]:
    """By number; optional parts that may be passed over are passed over."""
    contents: dict[int, bytes] = {}
    at, before = 0, -1
    while before < 8 or (optional and (before < 9 or at < len(payload))):
        if len(payload) - at < 10 or payload[at + 1] > 1:
            raise Refused("parts")
        number = payload[at]
        if (number != before + 1) if before < 8 else (number <= before):
            raise Refused("parts")
        if 9 < number < 128:
            raise Refused("parts")
        method = payload[at + 1]
        length, stored = struct.unpack("<II", payload[at + 2 : at + 10])
        body = payload[at + 10 : at + 10 + stored]
        if number < 128 and length > most[number]:
            raise Refused("inflate")
        if len(body) != stored:
            raise Refused("parts")
        if method == 0 and stored != length:
            raise Refused("parts")
        if number < 128:
            contents[number] = inflate(body, length) if method else body
        at, before = at + 10 + stored, number
    if at != len(payload):
        raise Refused("parts")
    return contents


def read_cascade(content: bytes, sides) -> tuple:
    """(score, certified, reference px, tolerance, confidence, images, stages) as plain numbers."""
    if len(content) < 20:
        raise Refused("parts")
    version, score, certified, count, reference = content[:5]
    tolerance, confidence, images = struct.unpack("<III", content[8:20])
    good = version == 1 and score < 3 and certified < 2 and 1 <= count <= 16
    good = good and reference < len(sides) and content[5:8] == bytes(3)
    good = good and 1 <= tolerance < 10**6 and 500_000 <= confidence < 10**6
    good = good and images >= certified and len(content) == 20 + 9 * count
    if not good:
        raise Refused("parts")
    stages = []
    for k in range(count):
        place, threshold, ratio = struct.unpack("<BII", content[20 + 9 * k :][:9])
        last = k == count - 1
        if place >= len(sides) or sides[place] in [px for px, _, _ in stages]:
            raise Refused("parts")
        if last and (threshold, ratio) != (0, 0):
            raise Refused("parts")
        if not last and (threshold > MOST or (ratio == 0) != (score == 0)):
            raise Refused("parts")
        stages.append((sides[place], threshold, ratio))
    return score, certified, sides[reference], tolerance, confidence, images, stages


def inflate(body: bytes, length: int) -> bytes:
    stream = zlib.decompressobj(wbits=-15)
    try:
        content = stream.decompress(body, length + 1)
    except zlib.error:
        raise Refused("inflate") from None
    if len(content) != length or not stream.eof or stream.unused_data:
        raise Refused("inflate")
    return content


def read_planes(content: bytes, count: int) -> list[int]:
    if not content or content[0] > 5 or len(content) != 1 + content[0] * count:
        raise Refused("parts")
    numbers = []
    for k in range(count):
        u = sum(content[1 + plane * count + k] << (8 * plane) for plane in range(content[0]))
        numbers.append(u // 2 if u % 2 == 0 else -(u + 1) // 2)
    return numbers


def read_labels(content: bytes, classes: int) -> list[str]:
    labels, at = [], 0
    while at < len(content) and len(labels) < classes:
        length = int.from_bytes(content[at : at + 2], "little")
        label = content[at + 2 : at + 2 + length]
        if len(content) - at < 2 + length:
            raise Refused("parts")
        try:
            labels.append(label.decode("utf-8"))
        except UnicodeDecodeError:
            raise Refused("parts") from None
        at += 2 + length
    if at != len(content) or len(labels) != classes or len(set(labels)) != classes:
        raise Refused("parts")
    return labels


def read_notes(content: bytes) -> dict:
    def number(text):
        if math.isinf(float(text)) or math.isnan(float(text)):
            raise ValueError(text)
        return float(text)

    def levels(one):
        if isinstance(one, dict):
            return 1 + max(map(levels, one.values()), default=0)
        return 1 + max(map(levels, one), default=0) if isinstance(one, list) else 0

    try:
        notes = json.loads(
            content.decode("utf-8"), parse_int=number, parse_float=number, parse_constant=number
        )
    except (ValueError, RecursionError):
        raise Refused("parts") from None
    if not isinstance(notes, dict) or levels(notes) > 32:
        raise Refused("parts")
    return notes


def read_golden(content: bytes, runtimes, sides, classes):
    if len(content) < 2 or content[0] > 8 or (content[0] == 0 and content[1] != 0):
        raise Refused("parts")
    images = content[0]
    at = 2 + images * 192
    if len(content) != at + images * len(runtimes) * len(sides) * classes:
        raise Refused("parts")
    scores: dict[str, dict[int, list[list[int]]]] = {}
    for name in runtimes:
        scores[name] = {}
        for px in sides:
            scores[name][px] = []
            for _ in range(images):
                scores[name][px].append(list(struct.unpack(f"{classes}b", content[at:][:classes])))
                at += classes
    return content[1], content[2 : 2 + images * 192], scores


def float_of_bits(bits: int) -> float:
    if not 0 <= bits <= MOST:
        raise Refused("values")
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def single(value: float) -> float:
    """The nearest float32, or a refusal where there is none."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        raise Refused("values") from None


def good_scale(value: float) -> float:
    if not TINY <= value < math.inf:
        raise Refused("values")
    return value


def ratios() -> list[float]:
    """T[i], by multiplying the roots of i's bits from the lowest to the highest."""
    table = []
    for i in range(256):
        value = 1.0
        for bit, root in enumerate(ROOTS.split()):
            if i >> bit & 1:
                value = value * float.fromhex(root)
        table.append(value)
    return table


RATIOS = ratios()


def decode_scale(reference: float, n: int, t: int) -> float:
    if t == 255:
        return good_scale(float_of_bits(bits_of(reference) + n))
    units = n << t
    exponent = units >> 8
    if abs(exponent) > 400:  # nothing that is normal times 2^400 is still a float32
        raise Refused("values")
    return good_scale(single(math.ldexp(reference * RATIOS[units & 255], exponent)))


def decode_bias(m: int, e: int, beta: float, slope: float, scale: float, x_scale: float) -> int:
    bias = m
    if e != -128:
        shift = beta + math.ldexp(float(m), e)
        product = slope * scale
        total = shift + product
        unit = x_scale * scale
        bias = round(total / unit)  # Python rounds halves to even
    if abs(bias) > MOST:
        raise Refused("values")
    return bias


def decode_side(plain: list[list[int]], classes, steps_t, steps_e, table: Table) -> Values:
    zero_points, activations, scales, biases, kernels, head = plain
    layout = table.layout
    activation_scale = [good_scale(float_of_bits(0x3D000000 + code)) for code in activations]
    weight_scale: list[float] = []
    bias: list[int] = []
    at = row = 0
    x_head = activation_scale[layout["head_input"]]
    y_head = activation_scale[layout["head_output"]]
    for conv, t, e in zip(table.convs, steps_t, steps_e, strict=True):
        x, y = activation_scale[conv["x_index"]], activation_scale[conv["y_index"]]
        for _ in range(conv["rows"]):
            if layout["head_row"] + classes <= row < layout["head_row"] + layout["head_capacity"]:
                weight_scale.append(good_scale(single(single(y_head / x_head) / 256)))
                bias.append(-131072)
                row += 1
                continue
            scale = decode_scale(table.scale[row], scales[at], t)
            if not 2.0**-32 <= x * scale / y < 2.0**8:
                raise Refused("values")
            weight_scale.append(scale)
            bias.append(decode_bias(biases[at], e, table.beta[row], table.slope[row], scale, x))
            at, row = at + 1, row + 1
    weights = decode_weights(kernels, head, classes, table)
    points = [signed((code + 128) % 256) for code in zero_points]
    return Values(weight_scale, bias, activation_scale, points, weights)


def decode_weights(kernels: list[int], head: list[int], classes: int, table: Table) -> list[int]:
    layout, weights, at = table.layout, [], 0
    first, each = layout["head_element"], layout["head_row_elements"]
    for k in range(layout["elements"]):
        if first <= k < first + classes * each:
            weights.append(signed(head[k - first] % 256))
        elif first <= k < first + layout["head_capacity"] * each:
            weights.append(0)
        else:
            weights.append(signed((kernels[at] + table.kernels[k]) % 256))
            at += 1
    if -128 in weights:
        raise Refused("values")
    return weights


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def enlarge(thumbnail: bytes, px: int) -> bytes:
    """8 x 8 x 3 -> px x px x 3."""

    def place(i):
        if px == 1:
            return 0, 0
        return i * 7 // (px - 1), (i * 7 % (px - 1)) * 256 // (px - 1)

    def pixel(row, column, channel):
        return thumbnail[(min(row, 7) * 8 + min(column, 7)) * 3 + channel]

    pixels = []
    for i in range(px):
        a, f = place(i)
        for j in range(px):
            b, g = place(j)
            for c in range(3):
                left = pixel(a, b, c) * (256 - f) + pixel(a + 1, b, c) * f
                right = pixel(a, b + 1, c) * (256 - f) + pixel(a + 1, b + 1, c) * f
                pixels.append((left * (256 - g) + right * g + 32768) >> 16)
    return bytes(pixels)
