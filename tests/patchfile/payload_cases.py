"""A payload over `tiny_table`, good until one part is changed, and what both readers say of it."""

import pytest
import slow_decoder
from coding_cases import header_fields, make_header, part, tiny_table, zeros

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile.parts import PARTS
from patchdeploy.patchfile.payload import decode_payload

END = "; pack the task again with its base"
TABLE = tiny_table()
NUMBERS = {name: k for k, name in enumerate(PARTS)}
MOST = {
    "labels": 2**20 + 6,
    "notes": 2**18,
    "steps": 8,
    "activations": 1 + 5 * 6,
    "scales": 1 + 11 * 5,
    "biases": 1 + 11 * 5,
    "kernels": 33,
    "head": 9,
    "golden": 2 + 8 * (192 + 6),
}
"""Over `tiny_table` with 3 classes, 1 resolution, 2 runtimes: by the page."""


def decode(payload: bytes, classes: int = 3, sides=(24,), table=TABLE, **changes):
    return decode_payload(payload, make_header(payload, table, classes, sides, **changes), table)


SLOW = slow_decoder.read_table(TABLE.encoded)


def refusal(payload: bytes, classes: int = 3, sides=(24,), **changes) -> PatchRefusedError:
    with pytest.raises(PatchRefusedError) as caught:
        decode(payload, classes, sides, **changes)
    header = make_header(payload, TABLE, classes, sides, **changes)
    with pytest.raises(slow_decoder.Refused) as slow:
        slow_decoder.decode(payload, header_fields(header), SLOW)
    assert str(slow.value) == caught.value.code
    return caught.value


def with_part(name: str, content: bytes, method: int = 0, **framing) -> bytes:
    """Good parts but one."""
    contents = zeros()
    parts = [part(k, contents[each]) for k, each in enumerate(PARTS)]
    parts[NUMBERS[name]] = part(NUMBERS[name], content, method, **framing)
    return b"".join(parts)
