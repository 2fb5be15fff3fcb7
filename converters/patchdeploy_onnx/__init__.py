"""The ONNX writer: one file of QLinear operators, free in height, width and batch.

In: a quantised base and one variant. Out: the bytes of a .onnx file and its slot table. The
file runs on onnxruntime as it is written: its operators are the channels-last ones that the
runtime's optimiser would otherwise have to make, so a session opens without optimisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchdeploy_onnx.wire import find_initializers, per_run_model, unsigned_kernels

if TYPE_CHECKING:
    from patchdeploy_onnx.converter import OnnxConverter

__all__ = ["OnnxConverter", "find_initializers", "per_run_model", "unsigned_kernels"]


def __getattr__(name: str) -> Any:
    """`OnnxConverter` on first use: running a bundle needs `wire` and must not import onnx."""
    if name == "OnnxConverter":
        from patchdeploy_onnx.converter import OnnxConverter

        return OnnxConverter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
