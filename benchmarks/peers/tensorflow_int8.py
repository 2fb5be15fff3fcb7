"""Peer: TensorFlow's converter, full-integer post-training quantisation.

In: a network folder (see network.py; read here without torch). Out: one .tflite with uint8
input and int8 output. Runs in patchdeploy's own environment (tensorflow-cpu is a development
dependency): ``python tensorflow_int8.py FOLDER OUTPUT [--px 224]``. The network is a
``tf.function`` of convolutions and batch norms over the same weights; the converter folds.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file


class MobileNetV2:
    """MobileNetV2 over a torchvision state dict, NHWC, normalised input, logits out."""

    def __init__(self, folder: Path) -> None:
        self.settings = json.loads((folder / "network.json").read_text())
        self.state = load_file(folder / "weights.safetensors")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [1, px, px, 3] -> float32 [1, classes]."""
        x = self._conv_norm(x, "features.0.0", "features.0.1", stride=2)
        block = 1
        while f"features.{block}.conv.0.0.weight" in self.state:
            x = self._inverted_residual(x, block)
            block += 1
        x = self._conv_norm(x, f"features.{block}.0", f"features.{block}.1")
        x = tf.reduce_mean(x, axis=[1, 2])
        weight, bias = self.state["classifier.1.weight"], self.state["classifier.1.bias"]
        return tf.matmul(x, tf.constant(weight.T)) + tf.constant(bias)

    def _inverted_residual(self, x: tf.Tensor, block: int) -> tf.Tensor:
        name = f"features.{block}.conv"
        expands = f"{name}.2.weight" in self.state and f"{name}.3.weight" in self.state
        y = self._conv_norm(x, f"{name}.0.0", f"{name}.0.1") if expands else x
        depthwise = f"{name}.1" if expands else f"{name}.0"
        stride = 2 if block in (2, 4, 7, 14) else 1
        y = self._conv_norm(y, f"{depthwise}.0", f"{depthwise}.1", stride)
        last = 2 if expands else 1
        y = self._conv_norm(y, f"{name}.{last}", f"{name}.{last + 1}", relu6=False)
        return x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y

    def _conv_norm(
        self, x: tf.Tensor, conv: str, norm: str, stride: int = 1, relu6: bool = True
    ) -> tf.Tensor:
        kernel = self.state[f"{conv}.weight"]
        padding = "SAME"
        if kernel.shape[2] == 3 and stride == 2:
            torch_pads = self.settings["padding"] == "torch"
            if torch_pads or x.shape[1] % 2:
                before = 1 if torch_pads else 0
                x = tf.pad(x, [[0, 0], [before, 1], [before, 1], [0, 0]])
                padding = "VALID"
        if kernel.shape[1] == 1 and kernel.shape[0] == x.shape[-1] and kernel.shape[2] == 3:
            hwio = kernel.transpose(2, 3, 0, 1)
            x = tf.nn.depthwise_conv2d(x, hwio, [1, stride, stride, 1], padding)
        else:
            x = tf.nn.conv2d(x, kernel.transpose(2, 3, 1, 0), stride, padding)
        x, *_ = tf.compat.v1.nn.fused_batch_norm(
            x,
            self.state[f"{norm}.weight"],
            self.state[f"{norm}.bias"],
            self.state[f"{norm}.running_mean"],
            self.state[f"{norm}.running_var"],
            epsilon=self.settings["eps"],
            is_training=False,
        )
        return tf.nn.relu6(x) if relu6 else x


def export(folder: Path, px: int) -> bytes:
    """The int8 flatbuffer: uint8 normalised-pixel codes in, int8 logits out."""
    model = MobileNetV2(folder)
    images = np.load(folder / "calibration.npy")
    rows = (np.arange(px) * images.shape[1]) // px
    mean = np.asarray(model.settings["mean"], np.float32)
    std = np.asarray(model.settings["std"], np.float32)
    pixels = (images[:, rows][:, :, rows].astype(np.float32) / np.float32(255) - mean) / std
    signature = tf.TensorSpec([1, px, px, 3], tf.float32)
    concrete = tf.function(model).get_concrete_function(signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([pixels[k : k + 1]] for k in range(len(pixels)))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--px", type=int)
    arguments = parser.parse_args()
    settings = json.loads((arguments.folder / "network.json").read_text())
    arguments.output.write_bytes(export(arguments.folder, arguments.px or settings["px"]))


if __name__ == "__main__":
    main()
