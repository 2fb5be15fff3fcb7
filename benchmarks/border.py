"""What the exact border costs: a file with `exact_border` against the same network without it.

In: torchvision's MobileNetV2 (random weights of a seed: times do not depend on them), ImageNet's
mean and deviation. Out: for each runtime and resolution the ratio of the times of one image,
interleaved, with its 95 % interval, and the bytes that the file grows by. The two files differ in
the dense 1x1 convolution after the image alone, which is why the network does not matter much but
the resolution does.

    python benchmarks/border.py [--rounds 200] [--threads 1] [--px 96 --px 224] [--out FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import print_table, save_results, warn_if_busy
from runners import Runner, make_runner
from torchvision.models import mobilenet_v2

from patchdeploy.base import Base
from patchdeploy.convert import load_converter
from patchdeploy.data import Preprocessing
from patchdeploy.fold import fold_patch
from patchdeploy.lower import lower_base
from patchdeploy.measure import Measurement, measure_interleaved
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.variant import quantize_variant

RUNTIMES = {"litert": "tflite", "onnxruntime": "onnx"}
WAYS = {"plain": False, "exact": True}
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)
CLASSES = 1000


def write_files(sides: list[int]) -> dict[tuple[str, int, str], bytes]:
    """(runtime, px, way) -> the file of one resolution."""
    torch.manual_seed(0)
    base = Base.from_module(mobilenet_v2().eval(), IMAGENET, name="mobilenet_v2")
    generator = np.random.default_rng(0)
    images = {px: generator.integers(0, 256, (2, px, px, 3), dtype=np.uint8) for px in sides}
    files = {}
    for way, exact in WAYS.items():
        graph = lower_base(base, exact_border=exact)
        network, quantized = fold_patch(graph), quantize_base(graph, CLASSES)
        for px in sides:
            ranges = calibrate(network, images[px])
            variant = quantize_variant(quantized, network, ranges, "task", px)
            for runtime, name in RUNTIMES.items():
                data = load_converter(name).write(quantized, {px: variant}).data
                files[runtime, px, way] = bytes(data)
    return files


def measure_file(
    files: dict[tuple[str, int, str], bytes], runtime: str, px: int, threads: int, rounds: int
) -> Measurement:
    """One image through both files, in turn."""
    image = np.random.default_rng(1).integers(0, 256, (1, px, px, 3), dtype=np.uint8)
    runners: dict[str, Runner] = {}
    for way in WAYS:
        # The network is asked for by peers' files alone, which take normalised pixels.
        runners[way] = make_runner(runtime, files[runtime, px, way], threads, None, ours=True)  # type: ignore[arg-type]
        runners[way].put(image)
    calls: dict[str, Callable[[], object]] = {way: one.invoke for way, one in runners.items()}
    return measure_interleaved(calls, warmup=10, rounds=rounds)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="timing rounds")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime")
    parser.add_argument("--px", type=int, action="append", help="sides; 96 and 224 by default")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="output folder")
    arguments = parser.parse_args()
    sides = arguments.px or [96, 224]
    warn_if_busy()
    files = write_files(sides)
    document: dict[str, Any] = {"threads": arguments.threads}
    rows = []
    for runtime in RUNTIMES:
        for px in sides:
            found = measure_file(files, runtime, px, arguments.threads, arguments.rounds)
            ratio = found.ratio("exact", "plain")
            grown = len(files[runtime, px, "exact"]) - len(files[runtime, px, "plain"])
            document[f"{runtime}/{px}"] = {**found.to_json("plain"), "bytes_more": grown}
            interval = f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
            times = [f"{found.median_ms(way):.2f}" for way in WAYS]
            rows.append([f"{runtime}, {px} px", *times, interval, f"{grown:,}"])
    columns = ["", "plain, ms", "exact, ms", "exact / plain [95%]", "bytes more"]
    print_table("Exact border", columns, rows)
    save_results(arguments.out, "border", document, [], quick=False)


if __name__ == "__main__":
    main()
