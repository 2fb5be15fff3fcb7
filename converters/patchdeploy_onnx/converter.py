"""`OnnxConverter`: what the entry point names.

In: a `QuantizedBase` and variants, or a `FoldedNetwork`. Out: .onnx bytes. The writers, and onnx
with them, are imported when a converter is made: running a bundle imports this package for its
wire format and must not need onnx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchdeploy.convert import WrittenModel
from patchdeploy.errors import ConfigError
from patchdeploy.fold import FoldedNetwork
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant


class OnnxConverter:
    """Writes .onnx files that onnxruntime >= 1.29 runs, desktop and mobile.

    Raises:
        ImportError: onnx or onnx-graphsurgeon is not installed.
    """

    name = "onnx"
    suffix = ".onnx"

    def __init__(self) -> None:
        from patchdeploy_onnx import float_writer, int8_writer

        self._int8 = int8_writer
        self._float = float_writer

    def write(self, base: QuantizedBase, variants: Mapping[int, QuantizedVariant]) -> WrittenModel:
        """The int8 file, free in height, width and batch, with the FIRST variant's values.

        Input ``image`` uint8 [N, H, W, 3] RGB, output ``scores`` float32 [N, head capacity].
        The table lists no resolutions: any variant may be laid over the file.

        Raises:
            ConfigError: no variant.
            UnsupportedOperatorError: an operator that has no quantised ONNX form.
        """
        if not variants:
            raise ConfigError(
                "no variant to write; a file holds the values of one variant; "
                "give at least one resolution"
            )
        return self._int8.write_int8(base, next(iter(variants.values())))

    def write_float(self, network: FoldedNetwork, resolutions: Sequence[int]) -> bytes:
        """A stand-alone float32 file; height and width are free, so ``resolutions`` is not used.

        Raises:
            UnsupportedOperatorError: an operator that has no ONNX form.
        """
        del resolutions
        return self._float.write_float32(network)
