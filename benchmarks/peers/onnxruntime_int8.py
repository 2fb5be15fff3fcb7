"""Peer: torch.onnx.export, then onnxruntime's quantize_static, per channel.

In: a network folder (see network.py). Out: one .onnx. Runs in patchdeploy's own environment:
``python onnxruntime_int8.py FOLDER OUTPUT --format qdq|qoperator [--px 224]``. Activations are
uint8, weights int8: what onnxruntime recommends on x86, and the fastest of its choices there.
The model is optimised first (quant_pre_process folds the batch norms), as its guide asks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported

import numpy as np
import torch
from network import load_module, load_settings, normalise
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

FORMATS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}


class _Reader(CalibrationDataReader):
    """Feeds normalised images [1, 3, px, px] one at a time."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = ({"image": p[None]} for p in pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def export(folder: Path, output: Path, layout: str, px: int) -> None:
    """Write the int8 model: float32 normalised [1, 3, px, px] in, float32 logits out."""
    settings = load_settings(folder)
    module = load_module(folder)
    images = np.load(folder / "calibration.npy")
    rows = (np.arange(px) * images.shape[1]) // px
    pixels = normalise(settings, images[:, rows][:, :, rows]).transpose(0, 3, 1, 2)
    with tempfile.TemporaryDirectory() as scratch:
        plain, prepared = Path(scratch) / "plain.onnx", Path(scratch) / "prepared.onnx"
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, px, px),),
            str(plain),
            input_names=["image"],
            output_names=["scores"],
            opset_version=18,
            external_data=False,
            dynamo=True,
        )
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(output),
            _Reader(np.ascontiguousarray(pixels)),
            quant_format=FORMATS[layout],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--format", choices=sorted(FORMATS), default="qdq")
    parser.add_argument("--px", type=int)
    arguments = parser.parse_args()
    px = arguments.px or load_settings(arguments.folder).px
    export(arguments.folder, arguments.output, arguments.format, px)


if __name__ == "__main__":
    main()
