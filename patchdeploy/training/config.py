"""What a training run is told; frozen, from Python, JSON or TOML values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from patchdeploy.errors import ConfigError

Recipe = Literal["modern", "paper"]
Augment = Literal["none", "shift", "shift_flip"]
Scope = Literal["patch", "head", "all"]

LEARNING_RATES: Mapping[tuple[Recipe, Scope], float] = {
    ("modern", "patch"): 2e-2,
    ("modern", "head"): 1e-1,
    ("modern", "all"): 1e-3,
    ("paper", "patch"): 0.045,
    ("paper", "head"): 0.045,
    ("paper", "all"): 0.0045,
}
"""Patches like a large rate, full fine-tuning a small one (paper, Fig. 9). The modern ones did best
on validation splits of the packaged digits and surfaces, of 3e-3 to 1e-1 (patch), 1e-2 to 1e-1
(head) and 1e-3 to 1e-2 (all): five epochs, batch 32, embedded base."""


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        epochs: passes over the training images, for each resolution.
        batch_size: images a step.
        recipe: "modern" (Adam, linear warm-up over the first tenth, cosine to zero) or "paper"
            (RMSProp, momentum 0.9, decay 0.9, epsilon 1; the rate falls by 0.98 every 2.5
            epochs: section 5 and MobileNetV2's published settings).
        learning_rate: None for what suits the recipe and what is trained (LEARNING_RATES).
        label_smoothing: share of the target spread over the other classes, in [0, 1).
        augment: "none", "shift" (crops by up to an eighth), or "shift_flip".
        validation_fraction: of the training images, held out to choose the best epoch.
        early_best: keep the epoch with the best validation accuracy, else the last.
        share_head: the head is trained at the largest resolution and is the same at the others,
            which then learn scales and biases alone (paper, section 5.4); else one a resolution.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        seed: order of the images and augmentation.
    """

    epochs: int = 8
    batch_size: int = 64
    recipe: Recipe = "modern"
    learning_rate: float | None = None
    label_smoothing: float = 0.0
    augment: Augment = "none"
    validation_fraction: float = 0.15
    early_best: bool = True
    share_head: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for key, kinds, rule in (
            ("epochs", (int,), "a whole number"),
            ("batch_size", (int,), "a whole number"),
            ("seed", (int,), "a whole number"),
            ("learning_rate", (int, float, type(None)), "a number or None"),
            ("label_smoothing", (int, float), "a number"),
            ("validation_fraction", (int, float), "a number"),
            ("early_best", (bool,), "true or false"),
            ("share_head", (bool,), "true or false"),
        ):
            value = getattr(self, key)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ConfigError(f"training {key}={value!r}; it must be {rule}; correct it")
        rules = (
            (self.epochs >= 1, "epochs", "at least 1"),
            (self.batch_size >= 1, "batch_size", "at least 1"),
            (self.recipe in get_args(Recipe), "recipe", "modern or paper"),
            (
                self.learning_rate is None or 0 < self.learning_rate < math.inf,
                "learning_rate",
                "positive",
            ),
            (0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)"),
            (self.augment in get_args(Augment), "augment", "none, shift or shift_flip"),
            (0 < self.validation_fraction < 1, "validation_fraction", "between 0 and 1"),
            (self.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda"),
        )
        for good, key, rule in rules:
            if not good:
                raise ConfigError(
                    f"training {key}={getattr(self, key)!r}; it must be {rule}; correct it"
                )

    def rate(self, scope: Scope) -> float:
        """The learning rate for what is trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LEARNING_RATES[(self.recipe, scope)]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_json`; missing keys take their defaults.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        known = [one.name for one in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(key, known, 1)
                raise ConfigError(
                    f"unknown training key {key!r}; the keys are {', '.join(known)}; "
                    + (f"did you mean {near[0]!r}?" if near else "remove it")
                )
        return cls(**values)
