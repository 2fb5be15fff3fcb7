"""The patch file (``.pdp``): one small signed file per task, for every runtime.

In: a task's slot values. Out: bytes, and back values that may be used. This name gathers the
container, which needs no base: build, sign, verify. In the order of the flow: `header` with
`json` (its canonical text), `keys` (Ed25519), `container` (checks 1 to 6); `values` (a task),
`parts`, `golden` (the self-test) and `payload` (check 7 and 8; the codes in it are those of
`patchdeploy.coding`); `pack` (all together); `server`, `partial`, `download`.
"""

from patchdeploy.patchfile.container import (
    ENTRY_BYTES,
    MAX_FILE_BYTES,
    PREFIX_BYTES,
    CheckedPatch,
    Container,
    Policy,
    add_signature,
    build_patch,
    check_patch_file,
    check_signatures,
    read_container,
    read_header,
    signed_message,
)

__all__ = [
    "ENTRY_BYTES",
    "MAX_FILE_BYTES",
    "PREFIX_BYTES",
    "CheckedPatch",
    "Container",
    "Policy",
    "add_signature",
    "build_patch",
    "check_patch_file",
    "check_signatures",
    "read_container",
    "read_header",
    "signed_message",
]
