"""Row 9 of the fault table: values that no slot may take, signed and with the right hashes.

Codes are edited, so each bad value really is what a reader would decode: the exact codes make any
bit pattern at all. Beside each stands a good value at the same place, which must be taken and come
out there: the place that is edited is the place that is meant.
"""

from __future__ import annotations

import numpy as np
from fault_cases import (
    POLICY,
    SIDES,
    Subject,
    edit_codes,
    make_subject,
    open_verdict,
    part_contents,
    sign_parts,
    spread,
)
from tried import Progress, Told, Verdicts

from patchdeploy.coding.decode import PatchCodes
from patchdeploy.coding.grid import ACTIVATION_BITS, CodingSteps
from patchdeploy.patchfile.pack import open_patch

SUBJECTS = (("tiny", ("dw",)), ("conv_stack", ("dw1", "dw2")), ("squeeze_excitation", ()))
BAD_SCALES = {
    "NaN": 0x7FC00000,
    "a NaN that signals": 0x7F800001,
    "the last NaN": 0x7FFFFFFF,
    "infinity": 0x7F800000,
    "zero": 0,
    "the smallest denormal": 1,
    "the largest denormal": 0x007FFFFF,
    "-0": -0x80000000,
    "-0 as u32": 0x80000000,
    "-1": 0xBF800000 - 2**32,
    "-1 as u32": 0xBF800000,
    "-infinity as u32": 0xFF800000,
    "33 bits": 2**32 + 0x3D000000,
}
"""Bit patterns of float32, and numbers that are none."""
OUTSIDE = {
    "the smallest normal": 0x00800000,
    "the largest": 0x7F7FFFFF,
}
"""Sound floats that no runtime takes as a scale beside the others: the multiplier leaves 2^-32 ..
2^8. Where nothing multiplies them (the scale of an input that is its own output) they pass."""
BAD_BIASES = (2**31, -(2**31), -(2**31) - 1, 2**32, 2**33 - 1)


def try_values(scale: float, progress: Progress) -> Told:
    """Every bad value at the first, middle and last element of every slot, at both resolutions."""
    seen = Verdicts()
    chosen = SUBJECTS if scale >= 1 else SUBJECTS[:1]
    slots = 0
    for number, (name, owned) in enumerate(chosen):
        subject = make_subject(name, 1, owned)
        slots += subject.table.slot_count
        for px in SIDES:
            _try_activations(subject, px, seen)
            _try_rows(subject, px, seen)
            _try_kernels(subject, px, seen)
            _try_zero_points(subject, px, seen)
        progress((number + 1) / len(chosen))
    return Told(
        f"{len(BAD_SCALES)} bad scales, {len(BAD_BIASES)} biases and -128 at the first, middle and "
        f"last element of each of {slots} slots of {len(chosen)} bases, at both resolutions, coded "
        f"exactly and in steps: {seen.count:,} files",
        seen.listed(),
        seen.count,
    )


def _verdict(subject: Subject, codes: PatchCodes) -> str:
    contents = part_contents(codes, subject.patch.golden)
    return open_verdict(sign_parts(subject, contents), subject.table)


def _code(subject: Subject, px: int, array: str, index: int, plain: int) -> int:
    """The code that makes ``plain`` at ``px``: a difference, but at the first resolution."""
    if px == SIDES[0]:
        return plain
    return plain - int(getattr(subject.codes.resolutions[SIDES[0]], array)[index])


def _edit(subject: Subject, px: int, array: str, index: int, plain: int) -> PatchCodes:
    """Codes that decode to ``plain`` at one place of ``px`` and leave the other resolution."""
    first, second = SIDES
    codes = edit_codes(subject.codes, px, array, index, _code(subject, px, array, index, plain))
    if px == first:
        own = getattr(subject.codes.resolutions[first], array)[index]
        further = getattr(subject.codes.resolutions[second], array)[index]
        codes = edit_codes(codes, second, array, index, int(own) + int(further) - plain)
    return codes


def _plain(subject: Subject, px: int, array: str, index: int) -> int:
    first = int(getattr(subject.codes.resolutions[SIDES[0]], array)[index])
    own = int(getattr(subject.codes.resolutions[px], array)[index])
    return own if px == SIDES[0] else own + first


def _check_taken(
    subject: Subject, px: int, codes: PatchCodes, array: str, index: int, expected: object
) -> None:
    """A file with ``codes`` is taken, and ``expected`` is what stands at that place alone."""
    data = sign_parts(subject, part_contents(codes, subject.patch.golden))
    _, patch = open_patch(data, POLICY, subject.table)
    found = getattr(patch.values[px], array)
    changed = np.flatnonzero(found != getattr(subject.patch.values[px], array))
    assert found[index] == expected, f"{array}[{index}] is {found[index]}, not {expected}"
    assert index in changed, f"{array}[{index}] did not change"


def _try_activations(subject: Subject, px: int, seen: Verdicts) -> None:
    """Every activation site is a slot of one element."""
    for site in range(subject.table.layout.sites):
        for what, bits in BAD_SCALES.items():
            codes = _edit(subject, px, "activation_scales", site, bits - ACTIVATION_BITS)
            seen.expect(_verdict(subject, codes), "values", f"activation {site} is {what}")
        for what, bits in OUTSIDE.items():
            codes = _edit(subject, px, "activation_scales", site, bits - ACTIVATION_BITS)
            seen.expect(_verdict(subject, codes), {"values", "ok"}, f"activation {site}: {what}")
        nudged = _plain(subject, px, "activation_scales", site) + 1
        codes = _edit(subject, px, "activation_scales", site, nudged)
        expected = np.int32(ACTIVATION_BITS + nudged).view(np.float32)
        _check_taken(subject, px, codes, "activation_scale", site, expected)
        seen.codes["ok"] += 1


def _row_starts(subject: Subject) -> list[tuple[int, int]]:
    """(first coded row, coded rows) of each convolution: the head's spare rows are not coded."""
    starts, row = [], 0
    for conv in subject.table.convs:
        is_head = row == subject.table.layout.head_row and conv.owned
        rows = len(subject.patch.classes) if is_head else conv.rows
        starts.append((row, rows))
        row += rows
    return starts


def _try_rows(subject: Subject, px: int, seen: Verdicts) -> None:
    """Scales and biases of every convolution, exactly coded; then scales in steps."""
    base_bits = subject.table.scale.view(np.int32)
    for k, (start, rows) in enumerate(_row_starts(subject)):
        for row in (start + one for one in spread(rows)):
            wide = row  # the head is the last convolution of every subject
            for what, bits in BAD_SCALES.items():
                codes = _edit(subject, px, "scales", row, bits - int(base_bits[wide]))
                seen.expect(_verdict(subject, codes), "values", f"scale {row} is {what}")
            for what, bits in OUTSIDE.items():
                codes = _edit(subject, px, "scales", row, bits - int(base_bits[wide]))
                seen.expect(_verdict(subject, codes), "values", f"scale {row} is {what}")
            for bias in BAD_BIASES:
                codes = _edit(subject, px, "biases", row, bias)
                seen.expect(_verdict(subject, codes), "values", f"bias {row} is {bias}")
            _check_row_controls(subject, px, row, int(base_bits[wide]), seen)
            _try_coarse_scales(subject, px, k, row, seen)


def _check_row_controls(subject: Subject, px: int, row: int, bits: int, seen: Verdicts) -> None:
    """One unit more is taken, and so are the ends of int32."""
    nudged = _plain(subject, px, "scales", row) + 1
    codes = _edit(subject, px, "scales", row, nudged)
    expected = np.int32(bits + nudged).view(np.float32)
    _check_taken(subject, px, codes, "weight_scale", row, expected)
    for bias in (2**31 - 1, -(2**31) + 1):
        codes = _edit(subject, px, "biases", row, bias)
        _check_taken(subject, px, codes, "bias", row, bias)
    seen.codes["ok"] += 3


def _try_coarse_scales(subject: Subject, px: int, conv: int, row: int, seen: Verdicts) -> None:
    """In steps of 2^12 / 256 octaves a code runs out of float32 at both ends."""
    own = subject.codes.steps
    scales = (*own.scale[:conv], 12, *own.scale[conv + 1 :])
    steps = CodingSteps(scales, own.bias)
    start, rows = _row_starts(subject)[conv]
    for code in (20, -20, 2**20, -(2**20), 2**32, -(2**32)):
        codes = subject.codes
        for side in SIDES:
            for other in range(start, start + rows):
                codes = edit_codes(codes, side, "scales", other, 0, steps)
        codes = edit_codes(codes, px, "scales", row, code, steps)
        seen.expect(_verdict(subject, codes), "values", f"scale {row} of {code} octaves * 16")


def _owned_starts(subject: Subject) -> list[tuple[str, int, int]]:
    """(array, first, length) of each owned kernel among the codes."""
    starts, place = [], 0
    for conv in subject.table.convs[:-1]:
        if conv.owned:
            starts.append(("kernels", place, conv.rows * conv.taps))
            place += conv.rows * conv.taps
    head = len(subject.patch.classes) * subject.table.layout.head_row_elements
    return [*starts, ("head", 0, head)]


def _try_kernels(subject: Subject, px: int, seen: Verdicts) -> None:
    """-128 at the first, middle and last element of every kernel that tasks own."""
    reference = subject.table.kernels.view(np.uint8)
    for array, start, length in _owned_starts(subject):
        shift = 0 if array == "kernels" else subject.table.layout.head_element
        for index in (start + one for one in spread(length)):
            zero = int(reference[index]) if array == "kernels" else 0
            for value, expected in ((-128, "values"), (-127, "ok"), (127, "ok")):
                code = (value - zero) & 255
                codes = edit_codes(subject.codes, px, array, index, code)
                # The other resolution decodes to the reference: only one place is bad.
                rest = -code & 255 if px == SIDES[0] else 0
                codes = edit_codes(codes, _other(px), array, index, rest)
                seen.expect(_verdict(subject, codes), expected, f"{array}[{index}] is {value}")
                if expected == "ok":
                    data = sign_parts(subject, part_contents(codes, subject.patch.golden))
                    _, patch = open_patch(data, POLICY, subject.table)
                    assert patch.values[px].weights[shift + index] == value


def _other(px: int) -> int:
    return SIDES[1 - SIDES.index(px)]


def _try_zero_points(subject: Subject, px: int, seen: Verdicts) -> None:
    """A zero point is any int8: all 256 are taken and none comes out as another."""
    for site in spread(subject.table.layout.sites):
        for value in (-128, -1, 0, 127):
            codes = edit_codes(subject.codes, px, "zero_points", site, 0)
            if px == SIDES[0]:
                codes = edit_codes(codes, px, "zero_points", site, (value + 128) & 255)
            else:
                first = int(subject.codes.resolutions[SIDES[0]].zero_points[site])
                codes = edit_codes(codes, px, "zero_points", site, (value + 128 - first) & 255)
            data = sign_parts(subject, part_contents(codes, subject.patch.golden))
            _, patch = open_patch(data, POLICY, subject.table)
            assert patch.values[px].activation_zero_point[site] == value
            seen.codes["ok"] += 1
