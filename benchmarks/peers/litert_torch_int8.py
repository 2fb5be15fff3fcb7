"""Peer: litert-torch + ai-edge-quantizer, static int8 weights and activations.

In: a network folder (see network.py). Out: one .tflite. Run in .envs/litert-torch:
``python litert_torch_int8.py FOLDER OUTPUT [--layout nchw|nhwc] [--px 224 192 ...]``.
``nchw`` is what a user gets who converts a torch module as it is; ``nhwc`` asks for a
channel-last input. Several ``--px`` give a file with one signature per resolution.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe
from network import load_module, load_settings, normalise
from torch import nn


def export(folder: Path, layout: str, resolutions: list[int]) -> bytes:
    """The int8 flatbuffer: one signature ``classify_<px>`` per resolution."""
    settings = load_settings(folder)
    module: nn.Module = load_module(folder)
    if layout == "nhwc":
        module = litert_torch.to_channel_last_io(module, args=[0]).eval()
    converter = None
    for px in resolutions:
        shape = (1, px, px, 3) if layout == "nhwc" else (1, 3, px, px)
        target = litert_torch if converter is None else converter
        converter = target.signature(f"classify_{px}", module, (torch.zeros(shape),))
    model = converter.convert()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "float.tflite"
        model.export(str(path))
        worker = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        images = np.load(folder / "calibration.npy")
        samples = {}
        for px in resolutions:
            pixels = normalise(settings, nearest(images, px))
            if layout == "nchw":
                pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
            samples[f"classify_{px}"] = [{"args_0": pixels[k : k + 1]} for k in range(len(pixels))]
        result = worker.quantize(worker.calibrate(samples))
    return bytes(result.quantized_model)


def nearest(images: np.ndarray, px: int) -> np.ndarray:
    """Nearest-neighbour resize: calibration for resolutions other than the folder's own."""
    rows = (np.arange(px) * images.shape[1]) // px
    return images[:, rows][:, :, rows]


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nhwc")
    parser.add_argument("--px", type=int, nargs="*")
    arguments = parser.parse_args()
    resolutions = arguments.px or [load_settings(arguments.folder).px]
    arguments.output.write_bytes(export(arguments.folder, arguments.layout, resolutions))


if __name__ == "__main__":
    main()
