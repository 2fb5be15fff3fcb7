"""Confidence scores and routing with plain Python integers: a second reading of the definitions."""

from patchdeploy.cascade import CascadeRule


def table(ratio: int) -> list[int]:
    entries, entry = [], 2**31 - 1
    for _ in range(256):
        entries.append(entry // 128)
        entry = entry * ratio // 2**32
    return entries


def log2_units(number: int) -> int:
    """Units of 2^-16 by squaring a 30-bit mantissa, as a phone would."""
    whole = number.bit_length() - 1
    mantissa = number * 2**30 // 2**whole
    result = whole
    for _ in range(16):
        mantissa = mantissa * mantissa // 2**30
        bit = 1 if mantissa >= 2**31 else 0
        mantissa //= 1 + bit
        result = 2 * result + bit
    return result


def confidence(kind: str, codes: list[int], ratio: int) -> int:
    best = max(codes)
    differences = [best - code for code in codes]
    if kind == "margin":
        return sorted(differences)[1]
    entries = table(ratio)
    weights = [entries[d] for d in differences]
    total = sum(weights)
    if kind == "probability":
        return entries[0] * 2**30 // total
    bits_per_code = 32 * 2**16 - log2_units(ratio)
    mean = bits_per_code * sum(d * w for d, w in zip(differences, weights, strict=True)) // total
    entropy = log2_units(total) - log2_units(entries[0]) + mean
    return 2**20 - min(max(entropy, 0), 2**20)


def answering_stage(rule: CascadeRule, codes: dict[int, list[int]]) -> int:
    for place, stage in enumerate(rule.stages[:-1]):
        if confidence(rule.score, codes[stage.resolution], stage.ratio) >= stage.threshold:
            return place
    return len(rule.stages) - 1
