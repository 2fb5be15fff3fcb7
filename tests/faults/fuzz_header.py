"""Fuzz target: any bytes as a file, and as the header of a file whose sizes are right.

The files are unsigned and allowed, so that a fuzzer that cannot sign reaches every check.
"""

from __future__ import annotations

import case_folders  # noqa: F401  (adds the folders of the cases)
from container_cases import PAYLOAD, TRUSTED, forge

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import Policy, check_patch_file
from patchdeploy.patchfile.header import PatchHeader

POLICY = Policy(TRUSTED, allow_unsigned=True, runtime="onnx", task="flowers", floor=3, now=1000)


def fuzz_one(data: bytes) -> None:
    """A typed error, or a header of these very bytes.

    Raises:
        AssertionError: neither; any other exception is a fault as well.
    """
    files = [data]
    if 2 <= len(data) <= 65_536:
        files.append(forge(data, PAYLOAD, signers=()))
        check_header(data)
    for file in files:
        try:
            checked = check_patch_file(file, POLICY)
        except PatchRefusedError:
            continue
        assert checked.header.task == "flowers"
        assert checked.header.sequence >= 3
        assert len(checked.payload) == checked.header.payload_bytes


def check_header(data: bytes) -> None:
    """The two codes of check 3, or a header that gives ``data`` back."""
    try:
        header = PatchHeader.from_bytes(data)
    except PatchRefusedError as error:
        if error.code not in {"header_text", "header_field"}:
            raise AssertionError(f"code {error.code}") from error
        return
    assert header.to_bytes() == data


def seeds() -> dict[str, bytes]:
    """What a fuzzer starts from, by name."""
    from container_cases import GOOD, document, text

    return {
        "header": text(document()),
        "header-rich": text(
            document(
                resolutions=[224, 64],
                results={name: {"224": "0" * 64, "64": "f" * 64} for name in ("onnx", "tflite")},
                sites=[[0, 3], [4, 1], [9, 2]],
                expires=2000,
            )
        ),
        "file": GOOD,
        "file-unsigned": forge(signers=()),
        "file-cut": GOOD[:40],
        "many-levels": b"[" * 9 + b"]" * 9,
        "long-integer": b'{"engine":' + b"9" * 30 + b"}",
    }
