"""What a training run is told; frozen, from Python, JSON or TOML values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from patchdeploy.errors import ConfigError
from patchdeploy.errors_keys import refuse_unknown_keys

Recipe = Literal["modern", "paper"]
Augment = Literal["none", "shift", "shift_flip", "randaugment"]
Precision = Literal["auto", "float32", "bfloat16"]
Scope = Literal[
    "patch", "head", "large_patch", "large_head", "all", "large_all", "shared", "private"
]

LEARNING_RATES: Mapping[tuple[Recipe, Scope], float] = {
    ("modern", "patch"): 2e-2,
    ("modern", "head"): 1e-1,
    ("modern", "large_patch"): 1e-2,
    ("modern", "large_head"): 3e-3,
    ("modern", "all"): 2e-3,
    ("modern", "large_all"): 3e-4,
    ("modern", "shared"): 3e-3,
    ("modern", "private"): 1e-2,
    ("paper", "patch"): 0.045,
    ("paper", "head"): 0.045,
    ("paper", "large_patch"): 0.045,
    ("paper", "large_head"): 0.045,
    ("paper", "all"): 0.0045,
    ("paper", "large_all"): 0.0045,
    ("paper", "shared"): 0.045,
    ("paper", "private"): 0.045,
}
"""Patches like a large rate, full fine-tuning a small one (paper, Fig. 9). Of the rates tried none
did better than the modern ones, beyond the noise of three seeds, on validation splits of two
packaged sets: over the embedded base, and those of a large base (`LARGE_BASE`) over an ImageNet
MobileNetV2 1.0, which 1e-3 for all weights destroys (docs/training.md, "Which learning rate").
"shared" and "private" are the weights that several tasks train together and each task's own beside
them."""
LARGE_BASE = 1_000_000
"""From how many weights on, the last layer's not counted, a base is a large one. The two that were
measured have 0.7 and 2.2 million; where between them the line lies is not known."""


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        epochs: passes over the training images, for each resolution.
        batch_size: images a step (of each task, where several train together).
        recipe: "modern" (Adam, linear warm-up over the first tenth, cosine to zero) or "paper"
            (RMSProp, momentum 0.9, decay 0.9, epsilon 1; the rate falls by 0.98 every 2.5
            epochs: section 5 and MobileNetV2's published settings).
        learning_rate: None for what suits the recipe, the base and what is trained
            (LEARNING_RATES).
        shared_learning_rate: of the weights that several tasks share and train; None likewise.
        weight_decay: of kernels (tensors with more than one dimension); decoupled (AdamW) with
            "modern", RMSProp's own with "paper".
        label_smoothing: share of the target spread over the other classes, in [0, 1).
        augment: "none", "shift" (crops by up to an eighth), "shift_flip", or "randaugment"
            (torchvision's, after shift_flip).
        mixup, cutmix: parameter alpha of the mixing weight's Beta distribution; 0 for none.
        ema_decay: of an exponential moving average of what is trained, which is what is validated
            and kept; 0 for none.
        distillation_weight: share of the loss that a teacher's answers make, in [0, 1].
        temperature: of both softmaxes in distillation.
        size_penalty: weight of the coded size in the loss (see `training.compact`); 0 for none.
        rounding_step: train through deltas rounded as a coded patch rounds them: a base-two
            logarithm's fraction for scales; 0 for none (see `training.compact`).
        through_int8: train through the int8 base (see `training.int8_aware`).
        validation_fraction: of the training images, held out to choose the best epoch.
        early_best: keep the epoch with the best validation accuracy, else the last.
        share_head: the head is trained at the largest resolution and is the same at the others,
            which then learn scales and biases alone (paper, section 5.4); else one a resolution.
        share_scales: scales too are trained at the largest resolution and are the same at the
            others, which then learn biases alone: a coded patch takes less than half the bytes for
            each of them, if statistics are frozen (variances fold into the coded scales). Their
            scales in float; activation ranges stay each resolution's own.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        precision: "auto" is bfloat16 autocast on a GPU and float32 elsewhere.
        compile: compile the forward pass with torch.compile (meant for long runs on a GPU).
        check_export: refuse before the first step what could be trained and not exported: a base
            that cannot be lowered, a name or a label that no patch file holds; false trains it.
            A baseline makes no patch and is not looked at.
        save_every_steps: write the checkpoint inside long epochs too; 0 for after each epoch.
        seed: order of the images and augmentation.
    """

    epochs: int = 8
    batch_size: int = 64
    recipe: Recipe = "modern"
    learning_rate: float | None = None
    shared_learning_rate: float | None = None
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: Augment = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float = 0.0
    distillation_weight: float = 0.5
    temperature: float = 1.0
    size_penalty: float = 0.0
    rounding_step: float = 0.0
    through_int8: bool = False
    validation_fraction: float = 0.15
    early_best: bool = True
    share_head: bool = True
    share_scales: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    compile: bool = False
    check_export: bool = True
    save_every_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for one in fields(self):
            _check_kind(one.name, getattr(self, one.name), str(one.type))
        _check_rules(self)

    def rate(self, scope: Scope) -> float:
        """The learning rate for what is trained."""
        given = self.shared_learning_rate if scope == "shared" else self.learning_rate
        return LEARNING_RATES[(self.recipe, scope)] if given is None else given

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_json`; missing keys take their defaults.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        refuse_unknown_keys(values, [one.name for one in fields(cls)], "unknown training key")
        return cls(**values)


KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float, type(None)), "a number or None"),
    "bool": ((bool,), "true or false"),
}
"""By annotation: the types that a value may have, and how a message says it. Choices are checked
by their rule."""


def _check_kind(key: str, value: Any, annotation: str) -> None:
    if annotation not in KINDS:
        return
    kinds, rule = KINDS[annotation]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"training {key}={value!r}; it must be {rule}; correct it")


def _check_rules(config: TrainConfig) -> None:
    def positive(value: float | None) -> bool:
        return value is None or 0 < value < math.inf

    def share(value: float) -> bool:
        return 0 <= value < 1

    def weight(value: float) -> bool:
        return 0 <= value < math.inf

    def mixes(value: float) -> bool:  # outside, a Beta distribution draws what is not a number
        return value == 0 or 1e-3 <= value <= 1e3

    rules = {
        "epochs": (config.epochs >= 1, "at least 1"),
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "recipe": (config.recipe in get_args(Recipe), "modern or paper"),
        "learning_rate": (positive(config.learning_rate), "positive"),
        "shared_learning_rate": (positive(config.shared_learning_rate), "positive"),
        "weight_decay": (weight(config.weight_decay), "0 or more"),
        "label_smoothing": (share(config.label_smoothing), "in [0, 1)"),
        "augment": (
            config.augment in get_args(Augment),
            "none, shift, shift_flip or randaugment",
        ),
        "mixup": (mixes(config.mixup), "0, or 0.001 to 1000"),
        "cutmix": (mixes(config.cutmix), "0, or 0.001 to 1000"),
        "ema_decay": (share(config.ema_decay), "in [0, 1)"),
        "distillation_weight": (0 <= config.distillation_weight <= 1, "in [0, 1]"),
        "temperature": (positive(config.temperature), "positive"),
        "size_penalty": (weight(config.size_penalty), "0 or more"),
        "rounding_step": (weight(config.rounding_step), "0 or more"),
        "validation_fraction": (0 < config.validation_fraction < 1, "between 0 and 1"),
        "seed": (0 <= config.seed < 2**32, "at least 0 and below 2^32"),
        "device": (config.device in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
        "precision": (config.precision in get_args(Precision), "auto, float32 or bfloat16"),
        "save_every_steps": (config.save_every_steps >= 0, "0 or more"),
    }
    for key, (good, rule) in rules.items():
        if not good:
            raise ConfigError(
                f"training {key}={getattr(config, key)!r}; it must be {rule}; correct it"
            )
