"""Any candidate's int8 file, loaded in its runtime and ready to be timed.

In: bytes of a .tflite or .onnx, threads. Out: a `Runner`: pixels put in its input once, ``invoke``
to time, ``scores`` to compare. Inputs differ by exporter (uint8 pixels, quantised or float32
normalised pixels, NHWC or NCHW); preparing them is outside the timed call, which favours the
peers, whose files leave normalisation to the caller.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from patchdeploy_onnx import unsigned_kernels

from patchdeploy.runtime.ort_kernels import UNSIGNED, choose_kernels

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from network import Network, normalise

Pixels = NDArray[np.uint8]


class LiteRTRunner:
    """A .tflite in ai-edge-litert; ``invoke`` is the interpreter's."""

    def __init__(self, data: bytes, threads: int, network: Network, ours: bool) -> None:
        self._interpreter = Interpreter(model_content=data, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]
        self._network, self._ours = network, ours
        self.invoke: Callable[[], object] = self._interpreter.invoke

    def put(self, pixels: Pixels) -> None:
        """Set the input to one image, uint8 [1, px, px, 3]."""
        value: NDArray[Any] = pixels if self._ours else self._convert(pixels)
        self._interpreter.set_tensor(self._input["index"], np.ascontiguousarray(value))

    def from_pixels(self, pixels: Pixels) -> Callable[[], object]:
        """A call that takes the camera's pixels to scores, whatever the file wants them to be."""
        index, interpreter = self._input["index"], self._interpreter
        table = None if self._ours else self._convert(every_level())

        def call() -> object:
            value = pixels if table is None else look_up(table, pixels, self._channels_first)
            interpreter.set_tensor(index, value)
            return interpreter.invoke()

        return call

    @property
    def _channels_first(self) -> bool:
        return bool(self._input["shape"][1] == 3)

    def _convert(self, pixels: Pixels) -> NDArray[Any]:
        """Pixels as a peer's file wants them: normalised, quantised, transposed."""
        value = normalise(self._network, pixels)
        if self._channels_first:
            value = value.transpose(0, 3, 1, 2)
        dtype = self._input["dtype"]
        if dtype != np.float32:
            scale, zero_point = self._input["quantization"]
            limits = np.iinfo(dtype)
            value = np.clip(np.round(value / scale + zero_point), limits.min, limits.max)
        return value.astype(dtype)

    def scores(self) -> NDArray[np.float64]:
        """float64 [classes] of the last invocation, dequantised."""
        found = self._interpreter.get_tensor(self._output["index"])[0].astype(np.float64)
        if self._output["dtype"] == np.float32:
            return found
        scale, zero_point = self._output["quantization"]
        return (found - zero_point) * scale


class OnnxRunner:
    """A .onnx in onnxruntime; ``invoke`` is ``session.run`` with the input made before.

    Ours is channels-last already and opens with graph optimisation off, as the Engine opens it;
    a peer's gets all optimisations.
    """

    def __init__(self, data: bytes, threads: int, network: Network, ours: bool) -> None:
        self._session = open_session(data, threads, ours)
        self._network, self._ours = network, ours
        self._feed: dict[str, NDArray[Any]] = {}
        self._found: list[NDArray[Any]] = []
        self._names = [one.name for one in self._session.get_outputs()]

    def put(self, pixels: Pixels) -> None:
        """Set the input to one image, uint8 [1, px, px, 3]."""
        value: NDArray[Any] = pixels
        if not self._ours:
            value = normalise(self._network, pixels).transpose(0, 3, 1, 2)
        name = self._session.get_inputs()[0].name
        self._feed = {name: np.ascontiguousarray(value)}

    def from_pixels(self, pixels: Pixels) -> Callable[[], object]:
        """A call that takes the camera's pixels to scores, whatever the file wants them to be."""
        name = self._session.get_inputs()[0].name
        levels = normalise(self._network, every_level()).transpose(0, 3, 1, 2)
        table = None if self._ours else levels

        def call() -> object:
            value = pixels if table is None else look_up(table, pixels, True)
            return self._session.run(self._names, {name: value})

        return call

    def invoke(self) -> None:
        """Run once."""
        self._found = self._session.run(self._names, self._feed)

    def scores(self) -> NDArray[np.float64]:
        """float64 [classes] of the last invocation."""
        return self._found[0].reshape(-1).astype(np.float64)


Runner = LiteRTRunner | OnnxRunner


def every_level() -> Pixels:
    """uint8 [1, 256, 1, 3]: each pixel value once, in each channel."""
    return np.repeat(np.arange(256, dtype=np.uint8)[None, :, None, None], 3, axis=3)


def look_up(table: NDArray[Any], pixels: Pixels, channels_first: bool) -> NDArray[Any]:
    """uint8 [1, px, px, 3] through a converted `every_level`: the quickest NumPy conversion.

    One ``take`` where the three channels convert alike, else one a channel.
    """
    levels = table.reshape(3, 256) if channels_first else table.reshape(256, 3).T
    image = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if channels_first else pixels
    if np.array_equal(levels[0], levels[1]) and np.array_equal(levels[0], levels[2]):
        return levels[0].take(image)
    axis = 1 if channels_first else 3
    return np.stack([levels[k].take(image.take(k, axis)) for k in range(3)], axis)


def open_session(data: bytes | str, threads: int, ours: bool) -> Any:
    """A CPU session; graph optimisation is off for our files and full for a peer's.

    Our kernels have the form that the processor multiplies exactly, as in the Engine.
    """
    if ours and choose_kernels(onnxruntime) == UNSIGNED:
        data = unsigned_kernels(Path(data).read_bytes() if isinstance(data, str) else data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if ours else levels.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def make_runner(runtime: str, data: bytes, threads: int, network: Network, ours: bool) -> Runner:
    """A runner for ``runtime`` ("litert" or "onnxruntime")."""
    kind = LiteRTRunner if runtime == "litert" else OnnxRunner
    return kind(data, threads, network, ours)


def all_scores(runner: Runner, images: Pixels) -> NDArray[np.float64]:
    """float64 [N, classes], one image at a time; leaves the first image in the input."""
    rows = []
    for k in range(len(images)):
        runner.put(images[k : k + 1])
        runner.invoke()
        rows.append(runner.scores())
    runner.put(images[:1])
    return np.stack(rows)
