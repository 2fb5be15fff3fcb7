"""Bare sessions that are exact on the processor at hand: the file as written, or its unsigned form.

ONNX Runtime multiplies uint8 by int8 wrongly on x86-64 without VNNI. What a test shows of a file
as written is shown there of its unsigned form, which differs in the top bit of kernel bytes alone
(tests/converters/test_onnx_wire.py), so no test needs to be left out.
"""

import onnxruntime
from patchdeploy_onnx import unsigned_kernels

from patchdeploy.runtime.ort_kernels import SIGNED, UNSIGNED, is_exact

EXACT_FORMS = [form for form in (SIGNED, UNSIGNED) if is_exact(onnxruntime, form)]
"""Forms of kernels that this processor runs exactly, the fastest first."""


def in_form(data: bytes, form: str = EXACT_FORMS[0]) -> bytes:
    """The .onnx ``data``, as a converter wrote it, with kernels of ``form``."""
    return unsigned_kernels(data) if form == UNSIGNED else data
