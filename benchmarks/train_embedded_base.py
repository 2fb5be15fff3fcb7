"""Train the embedded base: MobileNetV2 0.5 on the 60,000 training images of Fashion-MNIST.

In: the four idx files of Fashion-MNIST (Debian's package ``dataset-fashion-mnist`` provides them)
and a number of minutes. Out: ``patchdeploy/assets/embedded_base.safetensors`` (float16),
``embedded_base.json`` (settings, versions, accuracies) and ``fashion_mnist_sample.npz``.
Why: every test, the demo and every benchmark need a real trained network that a wheel can carry.

Two phases, so that a run that is cut off is still usable: ``--phase train`` leaves a checkpoint
after every epoch, ``--phase finalise`` turns the last one into the assets. The learning rate
follows a one-cycle over the clock (or over ``--epochs``, whichever ends first), because on shared
cores the clock is what is scarce.

The images are grey 28 x 28 pixels; the base has to serve colour photographs and white digits on
black. So each training image is placed by a random affine map, and coloured at random: a
foreground and a background colour, the background often with a smooth random field.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import platform
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
import torchvision
from safetensors.torch import save_file

from patchdeploy.data import Preprocessing, resize_batch

ASSETS = Path(__file__).resolve().parent.parent / "patchdeploy" / "assets"
DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
WIDTH_MULT = 0.5
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
RESOLUTIONS_PX = (32, 48, 64)
RESOLUTION_WEIGHTS = (0.4, 0.4, 0.2)
MEAN, STD = 128 / 255, 0.25


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read one gzip-compressed idx file of unsigned bytes, shape as its header says."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def place(images: torch.Tensor, size_px: int, generator: torch.Generator) -> torch.Tensor:
    """Random scale, rotation, shift and mirror of uint8 [N,28,28] -> float [N,1,size,size] 0..1."""
    count = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = uniform(-0.26, 0.26)
    mirror = 1.0 - 2.0 * (torch.rand(count, generator=generator) < 0.5).float()
    zoom_x, zoom_y = uniform(0.75, 1.1), uniform(0.75, 1.1)
    theta = torch.empty(count, 2, 3)
    theta[:, 0, 0] = mirror * zoom_x * torch.cos(angle)
    theta[:, 0, 1] = -zoom_y * torch.sin(angle)
    theta[:, 1, 0] = mirror * zoom_x * torch.sin(angle)
    theta[:, 1, 1] = zoom_y * torch.cos(angle)
    theta[:, 0, 2] = uniform(-0.12, 0.12)
    theta[:, 1, 2] = uniform(-0.12, 0.12)
    grid = functional.affine_grid(theta, [count, 1, size_px, size_px], align_corners=False)
    grey = images.unsqueeze(1).float() / 255.0
    return functional.grid_sample(grey, grid, mode="bilinear", align_corners=False)


def colour(grey: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Colour float [N,1,S,S] at random -> uint8 [N,3,S,S].

    A quarter stays as it is, an eighth is inverted; the rest gets a foreground and a background
    colour at least 0.25 apart in brightness, and half of these a smooth field behind and before.
    """
    count, size_px = len(grey), grey.shape[-1]
    kind = torch.rand(count, generator=generator).view(-1, 1, 1, 1)
    fore = torch.rand(count, 3, 1, 1, generator=generator)
    back = torch.rand(count, 3, 1, 1, generator=generator)
    gap = (fore.mean(1, keepdim=True) - back.mean(1, keepdim=True)).abs()
    fore = torch.where(gap < 0.25, torch.where(back.mean(1, keepdim=True) < 0.5, 1.0, 0.0), fore)
    cells = int(torch.randint(2, 9, (1,), generator=generator))
    field = torch.rand(count, 3, cells, cells, generator=generator) - 0.5
    field = functional.interpolate(field, size=(size_px, size_px), mode="bilinear")
    strength = 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    strength = strength * (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    coloured = back + (fore - back) * grey + strength * field * (1.0 - 0.7 * grey)
    plain = torch.where(kind < 0.25, grey, 1.0 - grey).expand(-1, 3, -1, -1)
    noise = 0.03 * torch.randn(count, 3, size_px, size_px, generator=generator)
    pixels = torch.where(kind < 0.375, plain, coloured + noise)
    return (pixels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [N,3,S,S] -> float [N,3,S,S], channels last, (p / 255 - MEAN) / STD."""
    scaled = pixels.contiguous(memory_format=torch.channels_last).float()
    return (scaled / 255.0 - MEAN) / STD


def build_network() -> torch.nn.Module:
    """The stock torchvision MobileNetV2 at width 0.5 with ten classes."""
    return torchvision.models.mobilenet_v2(
        weights=None, width_mult=WIDTH_MULT, num_classes=len(CLASSES)
    )


def one_cycle(progress: float) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero; a factor in 0..1."""
    if progress < 0.1:
        return 0.05 + 0.95 * progress / 0.1
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - 0.1) / 0.9)))


def train(arguments: argparse.Namespace) -> None:
    """Train until the clock or the epochs are over; a checkpoint after each epoch."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    images = torch.from_numpy(read_idx(arguments.data / "train-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(arguments.data / "train-labels-idx1-ubyte.gz").copy()).long()
    network = build_network().to(memory_format=torch.channels_last).train()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
    )
    batch, start, steps, progress, epoch = arguments.batch_size, time.monotonic(), 0, 0.0, 0
    total_steps = arguments.epochs * (len(images) // batch)
    weights = torch.tensor(RESOLUTION_WEIGHTS)
    while progress < 1.0:
        order = torch.randperm(len(images), generator=generator)
        running, seen = 0.0, 0
        for first in range(0, len(images) - batch + 1, batch):
            elapsed = time.monotonic() - start
            progress = max(steps / total_steps, elapsed / (60.0 * arguments.minutes))
            if progress >= 1.0:
                break
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * one_cycle(progress)
            chosen = order[first : first + batch]
            size_px = RESOLUTIONS_PX[int(torch.multinomial(weights, 1, generator=generator))]
            pixels = colour(place(images[chosen], size_px, generator), generator)
            loss = functional.cross_entropy(network(normalise(pixels)), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps, running, seen = steps + 1, running + float(loss.detach()), seen + 1
            if steps % 50 == 0:
                rate = steps * batch / (time.monotonic() - start)
                print(
                    f"{epoch} {steps} {progress:.3f} {running / seen:.4f} {rate:.0f}/s", flush=True
                )
        epoch += 1
        record = {
            "steps": steps,
            "epochs": round(steps * batch / len(images), 2),
            "seconds": round(time.monotonic() - start, 1),
            "batch_size": batch,
            "learning_rate": arguments.learning_rate,
            "seed": arguments.seed,
            "threads": arguments.threads,
            "minutes_budget": arguments.minutes,
            "progress": progress,
        }
        temporary = arguments.checkpoint.with_suffix(".tmp")
        torch.save({"state": network.state_dict(), "record": record}, temporary)
        temporary.replace(arguments.checkpoint)
        print(f"epoch {epoch} saved, loss {running / max(seen, 1):.4f}, {record}", flush=True)


def finalise(arguments: argparse.Namespace) -> None:
    """Round the last checkpoint to float16, measure it on the test images, write the assets."""
    stored = torch.load(arguments.checkpoint, weights_only=True)
    state = {
        key: value.half().contiguous()
        for key, value in stored["state"].items()
        if not key.endswith("num_batches_tracked")
    }
    ASSETS.mkdir(parents=True, exist_ok=True)
    save_file(state, ASSETS / "embedded_base.safetensors")
    write_sample(arguments.data)
    network = build_network().eval()
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    preprocessing = Preprocessing((MEAN,) * 3, (STD,) * 3, max(RESOLUTIONS_PX))
    facts = {
        "architecture": "torchvision mobilenet_v2",
        "width_mult": WIDTH_MULT,
        "classes": list(CLASSES),
        "preprocessing": preprocessing.to_json(),
        "training": {"data": "Fashion-MNIST, its 60,000 training images", **stored["record"]},
        "resolutions": list(RESOLUTIONS_PX),
        "test_images": 10_000,
        "test_top1": measure(network, arguments.data, preprocessing),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
    (ASSETS / "embedded_base.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts["test_top1"]))


@torch.no_grad()
def measure(network: torch.nn.Module, data: Path, preprocessing: Preprocessing) -> dict[str, float]:
    """Top-1 on the 10,000 test images at each resolution."""
    images = read_idx(data / "t10k-images-idx3-ubyte.gz")
    labels = torch.from_numpy(read_idx(data / "t10k-labels-idx1-ubyte.gz").copy()).long()
    colour_images = np.repeat(images[..., None], 3, axis=3)
    found = {}
    for size_px in RESOLUTIONS_PX:
        pixels = torch.from_numpy(resize_batch(colour_images, size_px, preprocessing))
        hits = 0
        for part, truth in zip(pixels.split(500), labels.split(500), strict=True):
            answer = network(normalise(part.permute(0, 3, 1, 2))).argmax(1)
            hits += int((answer == truth).sum())
        found[str(size_px)] = hits / len(labels)
    return found


def write_sample(data: Path, seed: int = 0) -> None:
    """3,000 training and 1,000 test images, as many of each class, for the demo."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray[Any, Any]] = {"classes": np.array(CLASSES)}
    for part, prefix, per_class in (("train", "train", 300), ("test", "t10k", 100)):
        images = read_idx(data / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(data / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
        members = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
        picked = np.concatenate([generator.permutation(m)[:per_class] for m in members])
        generator.shuffle(picked)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images[picked], labels[picked]
    np.savez_compressed(ASSETS / "fashion_mnist_sample.npz", **arrays)


def main() -> int:
    """Parse the command line and run the phase."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--phase", choices=("train", "finalise"), default="train")
    parser.add_argument("--fashion-mnist", dest="data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--checkpoint", type=Path, default=Path("embedded_base.pt"))
    parser.add_argument("--minutes", type=float, default=24.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    {"train": train, "finalise": finalise}[arguments.phase](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
