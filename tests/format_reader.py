"""A reader of patch files written from docs/patch-format.md alone: it imports nothing of ours.

In: the bytes of ``base.coding`` and of a ``.pdp`` file. Out: flat arrays by resolution. Plain
Python floats where the page speaks of float64, so that every operation is rounded on its own.
"""

import hashlib
import json
import math
import struct
import zlib

import numpy as np


def read_safetensors(data):
    """Header length, header, arrays."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["patchdeploy"])
    dtypes = {"F32": "<f4", "I32": "<i4", "I8": "i1"}
    arrays = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[start:end], dtypes[entry["dtype"]])
        assert list(arrays[name].shape) == entry["shape"]
    return metadata, arrays


def read_patch(data, coding):
    """(header, labels, {px: {array name: array}}) of a patch over the table ``coding``."""
    assert data[:8] == b"PDPATCH1"
    assert data[13:16] == bytes(3)
    (length,) = struct.unpack("<I", data[8:12])
    header = json.loads(data[16 : 16 + length])
    payload = data[16 + length + 65 * data[12] :]
    assert len(payload) == header["payload"]["bytes"]
    assert hashlib.sha256(payload).hexdigest() == header["payload"]["sha256"]
    assert header["base"] == {"bytes": len(coding), "sha256": hashlib.sha256(coding).hexdigest()}
    table, arrays = read_safetensors(coding)
    parts = split_parts(payload)
    labels = read_labels(parts[0])
    layout, sides = table["layout"], header["resolutions"]
    codes = read_codes(parts, table, len(sides), header["classes"])
    steps = parts[2]
    values = {
        px: decode(codes[k], steps, table, arrays, header["classes"]) for k, px in enumerate(sides)
    }
    assert header["sites"] == [[0, layout["sites"] + len(table["convs"]) + count_owned(table)]]
    return header, labels, values


def split_parts(payload):
    parts, place = [], 0
    for number in range(9):
        index, method, length, stored = struct.unpack_from("<BBII", payload, place)
        assert index == number
        place += 10
        body = payload[place : place + stored]
        place += stored
        content = body if method == 0 else zlib.decompress(body, wbits=-15)
        assert len(content) == length
        parts.append(content)
    assert place == len(payload)
    return parts


def read_labels(content):
    labels, place = [], 0
    while place < len(content):
        (length,) = struct.unpack_from("<H", content, place)
        labels.append(content[place + 2 : place + 2 + length].decode())
        place += 2 + length
    return labels


def planes(content, count):
    """Byte planes -> integers; a sign is in the lowest bit."""
    used = content[0]
    assert len(content) == 1 + used * count
    numbers = []
    for k in range(count):
        folded = sum(content[1 + plane * count + k] << (8 * plane) for plane in range(used))
        numbers.append(folded // 2 if folded % 2 == 0 else -(folded + 1) // 2)
    return numbers


def count_owned(table):
    owned = table["conv_fields"].index("owned")
    return sum(row[owned] for row in table["convs"])


def read_codes(parts, table, sides, classes):
    """Codes of every resolution, those of the first added to the others."""
    layout = table["layout"]
    rows = layout["rows"] - layout["head_capacity"] + classes
    sites = layout["sites"]
    head = classes * layout["head_row_elements"]
    kernels = layout["elements"] - layout["head_capacity"] * layout["head_row_elements"]
    zero_points = list(parts[3][: sides * sites])
    whole = {
        "zero_points": (zero_points, sites, True),
        "activation_scales": (planes(parts[3][sides * sites :], sides * sites), sites, False),
        "scales": (planes(parts[4], sides * rows), rows, False),
        "biases": (planes(parts[5], sides * rows), rows, False),
        "kernels": (list(parts[6]), kernels, True),
        "head": (list(parts[7]), head, True),
    }
    found = []
    for k in range(sides):
        codes = {}
        for name, (numbers, count, wraps) in whole.items():
            own = numbers[k * count : (k + 1) * count]
            if k:
                own = [a + b for a, b in zip(own, numbers[:count], strict=True)]
            codes[name] = [one % 256 for one in own] if wraps else own
        found.append(codes)
    return found


def make_ratios():
    text = (
        "1.00b1afa5abcbf 1.0163da9fb3335 1.02c9a3e778061 1.059b0d3158574 "
        "1.0b5586cf9890f 1.172b83c7d517b 1.306fe0a31b715 1.6a09e667f3bcd"
    )
    roots = [float.fromhex(f"0x{one}p+0") for one in text.split()]
    ratios = [1.0]
    for i in range(1, 256):
        b = i.bit_length() - 1
        ratios.append(ratios[i - (1 << b)] * roots[b])
    return ratios


RATIOS = make_ratios()


def from_bits(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def to_bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def signed(byte):
    return byte - 256 if byte > 127 else byte


def decode(codes, steps, table, arrays, classes):
    """One resolution's flat arrays."""
    layout = table["layout"]
    activation = [from_bits(0x3D000000 + code) for code in codes["activation_scales"]]
    spare = layout["head_capacity"] - classes
    coded_end = layout["head_row"] + classes
    x, y = (np.float32(activation[layout[key]]) for key in ("head_input", "head_output"))
    masked = np.float32(np.float32(y / x) / np.float32(256))
    weight_scale, bias = [], []
    row = coded = 0
    convs = [dict(zip(table["conv_fields"], one, strict=True)) for one in table["convs"]]
    for index, conv in enumerate(convs):
        t, e = steps[index], signed(steps[len(convs) + index])
        for _ in range(conv["rows"]):
            if coded_end <= row < coded_end + spare:
                weight_scale.append(masked)
                bias.append(-131072)
            else:
                own = (float(arrays[name][row]) for name in ("scale", "beta", "slope"))
                x_scale = activation[conv["x_index"]]
                n, m = codes["scales"][coded], codes["biases"][coded]
                s, b = decode_row(n, m, t, e, *own, x_scale)
                weight_scale.append(np.float32(s))
                bias.append(b)
                coded += 1
            row += 1
    first = layout["head_element"]
    width = layout["head_capacity"] * layout["head_row_elements"]
    base = [int(byte) % 256 for byte in np.delete(arrays["kernels"], slice(first, first + width))]
    kernels = [(a + b) % 256 for a, b in zip(codes["kernels"], base, strict=True)]
    head = codes["head"] + [0] * (spare * layout["head_row_elements"])
    weights = kernels[:first] + head + kernels[first:]
    return {
        "weight_scale": np.array(weight_scale, np.float32),
        "bias": np.array(bias, np.int32),
        "activation_scale": np.array(activation, np.float32),
        "activation_zero_point": np.array(
            [signed((code + 128) % 256) for code in codes["zero_points"]], np.int8
        ),
        "weights": np.array([signed(one) for one in weights], np.int8),
    }


def decode_row(n, m, t, e, scale, beta, slope, x_scale):
    if t == 255:
        s = from_bits(to_bits(scale) + n)
    else:
        units = n << t
        s = struct.unpack(
            "<f", struct.pack("<f", math.ldexp(scale * RATIOS[units & 255], units >> 8))
        )[0]
    if e == -128:
        return s, m
    shift = beta + math.ldexp(float(m), e)
    product = slope * s
    return s, round((shift + product) / (x_scale * s))  # Python rounds halves to even
