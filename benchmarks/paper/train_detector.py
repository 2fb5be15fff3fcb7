"""Train a small SSDLite on composed scenes: the detector that Table 3 (left) starts from.

In: garments of Fashion-MNIST pasted on photographs (`patchdeploy.data.scenes`). Out:
``detector.safetensors`` and ``detector.json`` (settings, average precision on held-out scenes) in
``--out``, by default out/paper/detector, where `open_detector_base` finds them.

The paper takes a detector of everyday things (COCO, 18 categories) and classifies ImageNet: other
images and, nearly all, other classes, of the same sort of things. Here the detector knows ten
garments, and the classification has none of them: handwritten digits (other classes, the same
sort of small grey picture, as ImageNet is to COCO) and photographs of surfaces (further away). So
the detector is not given the digits, which `compose_scenes` could paste as well.

    python benchmarks/paper/train_detector.py [--quick] [--threads 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.ops import box_iou

from patchdeploy.base import Base
from patchdeploy.base.detector import build_ssdlite
from patchdeploy.data import load_packaged
from patchdeploy.data.scenes import Scene, compose_scenes, load_photographs, scene_classes
from patchdeploy.measure import describe_device
from patchdeploy.storage import write_atomic

OUT, QUICK_OUT = Path("out/paper/detector"), Path("out/paper/detector_quick")
SECOND_OUT = Path("out/paper/detector_second")
WEIGHTS, FACTS = "detector.safetensors", "detector.json"
MATCH_IOU = 0.5
THREADS = 1
"""Of PyTorch: another number adds gradients in another order, and trains another detector. Two take
0.8 of the time."""


@dataclass(frozen=True)
class DetectorConfig:
    """How the detector is made.

    Attributes:
        sources: packaged sets whose classes are detected.
        scenes, held_scenes: to train on, and to measure on (other objects, other photographs).
        width_mult, size_px: of the network.
        epochs, batch_size, learning_rate: AdamW, one cycle.
        seed: of scenes, weights and order.
    """

    sources: tuple[str, ...] = ("fashion",)
    scenes: int = 3000
    held_scenes: int = 300
    width_mult: float = 0.35
    size_px: int = 96
    epochs: int = 16
    batch_size: int = 32
    learning_rate: float = 4e-3
    seed: int = 0


QUICK = DetectorConfig(scenes=192, held_scenes=32, epochs=2)


@dataclass(frozen=True)
class Detection:
    """What one image shows, or what was found in it.

    Attributes:
        boxes: float32 [k, 4], left, top, right, bottom in px.
        labels: int64 [k].
        scores: float32 [k] in [0, 1]; ones for the truth.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def train_detector(config: DetectorConfig) -> tuple[nn.Module, dict[str, Any]]:
    """A detector in evaluation mode, and what there is to say about it."""
    started = time.perf_counter()
    parts = [load_packaged(name) for name in config.sources]
    classes = scene_classes([train for train, _ in parts])
    scenes = compose_scenes(
        config.scenes, config.size_px, config.seed, [train for train, _ in parts]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        detector = build_ssdlite(len(classes), config.width_mult, config.size_px)
    losses = _fit(detector, scenes, config)
    held = compose_scenes(
        config.held_scenes,
        config.size_px,
        config.seed,
        [test for _, test in parts],
        photographs=load_photographs("test"),
    )
    found = detect(detector, held, config.batch_size)
    precisions = average_precisions(found, [truth_of(scene) for scene in held], len(classes))
    known = precisions[~np.isnan(precisions)]
    facts = {
        "settings": asdict(config),
        "classes": list(classes),
        "epoch_losses": [round(loss, 4) for loss in losses],
        "map_50": round(float(known.mean()), 4) if known.size else None,
        "ap_50": {
            name: None if np.isnan(value) else round(float(value), 4)
            for name, value in zip(classes, precisions, strict=True)
        },
        "seconds": round(time.perf_counter() - started, 1),
        "device": describe_device(),
    }
    return detector, facts


def _fit(detector: nn.Module, scenes: Sequence[Scene], config: DetectorConfig) -> list[float]:
    """Train in place with torchvision's own SSD losses; the mean loss of each epoch."""
    order = np.random.default_rng(config.seed)
    steps = -(-len(scenes) // config.batch_size)
    rates = {"lr": config.learning_rate, "weight_decay": 1e-4}
    optimizer = torch.optim.AdamW(detector.parameters(), **rates)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.epochs * steps, pct_start=0.2
    )
    # Channels last takes 0.7 of the time on a CPU (0.25 s for 0.36 s a step of 32 on one core).
    detector.train().to(memory_format=torch.channels_last)
    epoch_losses = []
    for _ in track(range(config.epochs), "training the detector"):
        total = 0.0
        for batch in np.array_split(order.permutation(len(scenes)), steps):
            images, targets = _batch([scenes[index] for index in batch], order)
            losses = detector(images, targets)
            loss = losses["bbox_regression"] + losses["classification"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) / steps
        epoch_losses.append(total)
    detector.eval()
    return epoch_losses


def _batch(
    scenes: Sequence[Scene], order: np.random.Generator
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """float32 [3, H, W] in [0, 1] and targets; each scene mirrored with probability 1/2."""
    images, targets = [], []
    for scene in scenes:
        image, truth = _to_tensor(scene.image), truth_of(scene)
        boxes = truth.boxes
        if order.integers(2):
            width = image.shape[2]
            image = image.flip(2)
            boxes = torch.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
            )
        images.append(image)
        targets.append({"boxes": boxes, "labels": truth.labels + 1})
    return images, targets


def _to_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def truth_of(scene: Scene) -> Detection:
    """The boxes and labels of a scene, with scores of 1."""
    boxes, labels = torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels)
    return Detection(boxes, labels, torch.ones(len(labels)))


@torch.no_grad()
def detect(detector: nn.Module, scenes: Sequence[Scene], batch_size: int) -> list[Detection]:
    """What the detector finds, with labels from 0 (its own are from 1; 0 is the background)."""
    found = []
    for start in range(0, len(scenes), batch_size):
        images = [_to_tensor(scene.image) for scene in scenes[start : start + batch_size]]
        for one in detector(images):
            found.append(Detection(one["boxes"], one["labels"] - 1, one["scores"]))
    return found


def average_precisions(
    found: Sequence[Detection], truths: Sequence[Detection], classes: int
) -> NDArray[np.float64]:
    """Average precision per class at IoU 0.5, float64 [classes] in [0, 1]; NaN where no box is.

    The area under precision over recall, precision made non-increasing (PASCAL VOC 2010 and
    later). Detections claim boxes in the order of their scores, each the box of its class that it
    covers best; a box that is claimed already makes a false detection.
    """
    return np.array([_average_precision(found, truths, label) for label in range(classes)])


def _average_precision(
    found: Sequence[Detection], truths: Sequence[Detection], label: int
) -> float:
    boxes = [truth.boxes[truth.labels == label] for truth in truths]
    total = sum(len(one) for one in boxes)
    if total == 0:
        return float("nan")
    claims = [
        (float(score), image, box)
        for image, one in enumerate(found)
        for score, box in zip(
            one.scores[one.labels == label], one.boxes[one.labels == label], strict=True
        )
    ]
    claims.sort(key=lambda claim: -claim[0])
    claimed: set[tuple[int, int]] = set()
    right = np.zeros(len(claims))
    for rank, (_, image, box) in enumerate(claims):
        if not len(boxes[image]):
            continue
        overlap, which = box_iou(box[None], boxes[image])[0].max(0)
        if float(overlap) >= MATCH_IOU and (image, int(which)) not in claimed:
            claimed.add((image, int(which)))
            right[rank] = 1.0
    recall = np.concatenate([[0.0], np.cumsum(right) / total])
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * falling).sum())


def save_detector(folder: Path, detector: nn.Module, facts: dict[str, Any]) -> None:
    """Write both files; an older detector stays whole if the disk is full."""
    state = {key: value.contiguous() for key, value in detector.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(state))
    write_atomic(folder / FACTS, json.dumps(facts, indent=1).encode())


def open_detector_base(folder: Path = OUT) -> Base:
    """The feature extractor of the saved detector, as a base.

    Raises:
        FileNotFoundError: no detector there.
    """
    if reason := detector_lacking(folder):
        raise FileNotFoundError(reason)
    facts = json.loads((folder / FACTS).read_text())
    settings = facts["settings"]
    empty = build_ssdlite(len(facts["classes"]), settings["width_mult"], settings["size_px"])
    return Base.from_detector(empty, checkpoint=folder / WEIGHTS, name="ssdlite/features")


def detector_lacking(folder: Path) -> str:
    """What must be run before `open_detector_base`; empty where the detector is there."""
    if (folder / FACTS).exists():
        return ""
    options = {QUICK_OUT: " --quick", SECOND_OUT: f" --threads 2 --out {SECOND_OUT}"}
    return (
        f"{folder} has no {FACTS}; it holds the detector that Table 3 starts from; run: "
        f"python benchmarks/paper/train_detector.py{options.get(folder, '')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=THREADS, help="of PyTorch; another number, another detector"
    )
    parser.add_argument("--out", type=Path, help=f"default: {OUT}, quick ones {QUICK_OUT}")
    arguments = parser.parse_args()
    out = arguments.out or (QUICK_OUT if arguments.quick else OUT)
    torch.set_num_threads(arguments.threads)
    settings = asdict(QUICK if arguments.quick else DetectorConfig()) | {"seed": arguments.seed}
    detector, facts = train_detector(DetectorConfig(**settings))
    save_detector(out, detector, facts)
    for name, value in facts["ap_50"].items():
        print(f"AP@0.5 {name:24} {value}")
    print(
        f"mAP@0.5 {facts['map_50']} on {settings['held_scenes']} held-out scenes, "
        f"{facts['seconds']} s, saved in {out}"
    )


if __name__ == "__main__":
    main()
