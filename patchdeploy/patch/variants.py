"""A model patch: the few tensors that turn a frozen base into another task or resolution.

In: a base, and which kinds of tensors a task owns. Out: a `Patch`, plain arrays by state-dict
name, one variant per resolution, saved as ``patch.safetensors`` and ``patch_config.json``.

Kinds (paper, section 2): ``scale_bias`` is gamma, beta and the statistics of every
normalisation, and an explicit ``<conv>.patch_scale`` and ``<conv>.patch_bias`` for convolutions
that have none; ``statistics`` mu and sigma alone, with the base's gamma and beta (appendix B.1);
``depthwise`` the depthwise kernels; ``head`` the last layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from patchdeploy.base import Base
from patchdeploy.errors import (
    ConfigError,
    IrregularFileError,
    NonFiniteError,
    PatchError,
    PatchFileError,
    UnknownLayerError,
    UnknownResolutionError,
)
from patchdeploy.errors_keys import refuse_unknown_keys
from patchdeploy.errors_reason import describe_reason
from patchdeploy.patch.stored import MOST_BYTES, Tensors, check_hash, read_stored, write_stored
from patchdeploy.storage import read_regular, write_atomic
from patchdeploy.storage_kinds import HEAD_BYTES, describe_content

Kind = Literal["scale_bias", "statistics", "depthwise", "head"]
Statistics = Literal["frozen", "reestimated", "batch"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATISTICS: tuple[Statistics, ...] = get_args(Statistics)
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
CONFIG_FILE, TENSOR_FILE = "patch_config.json", "patch.safetensors"


@dataclass(frozen=True)
class PatchConfig:
    """What a patch owns.

    Attributes:
        kinds: any of "scale_bias", "statistics" (which "scale_bias" includes), "depthwise",
            "head".
        include, exclude: patterns (``fnmatch``) over module paths of convolutions and
            normalisations; the head is chosen by its kind alone.
        statistics: of the normalisations: "frozen" (the base's; best on little data),
            "reestimated" (measured on the training images, then frozen), or "batch" (learned
            with the batches; wants long training).
        head_seed: random start of the head. A head that is not trained stays at it, so it is the
            same for every task with as many classes.
    """

    kinds: tuple[Kind, ...] = ("scale_bias", "head")
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    statistics: Statistics = "frozen"
    head_seed: int = 0

    def __post_init__(self) -> None:
        for key in ("kinds", "include", "exclude"):
            if isinstance(getattr(self, key), str):
                raise ConfigError(
                    f"patch {key}={getattr(self, key)!r}; it must be a list of names; write "
                    f"{key}=({getattr(self, key)!r},)"
                )
            if not all(isinstance(one, str) for one in getattr(self, key)):
                raise ConfigError(
                    f"patch {key}={getattr(self, key)!r:.200}; it must be a list of names; correct "
                    "it"
                )
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(
                    f"patch kind {kind!r}; the kinds are {', '.join(KINDS)}; choose among them"
                )
        if self.statistics not in STATISTICS:
            raise ConfigError(
                f"patch statistics {self.statistics!r}; they are {', '.join(STATISTICS)}; "
                "choose one"
            )

        if type(self.head_seed) is not int or not 0 <= self.head_seed < 2**32:
            raise ConfigError(
                f"patch head_seed={self.head_seed!r}; it must be a whole number of at least 0 and "
                "below 2^32; correct it"
            )
        if "statistics" in self.kinds and self.statistics == "frozen":
            raise ConfigError(
                "patch kind 'statistics' with statistics 'frozen'; the patch would own the base's "
                "as they are; choose reestimated or batch, or leave the kind out"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PatchConfig:
        """The inverse of `to_json`; missing keys take their defaults.

        Raises:
            ConfigError: an unknown key or value.
        """
        refuse_unknown_keys(values, [one.name for one in fields(cls)], "unknown patch key")
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fixed)


@dataclass(frozen=True)
class PatchSites:
    """Where a patch attaches to one base: module paths, in the network's order.

    Attributes:
        norms: normalisations.
        explicit: convolutions that no normalisation reads (and that are not the head).
        depthwise: convolutions with one kernel a channel.
        head: the last layer, or None where the patch does not own it.
    """

    norms: tuple[str, ...]
    explicit: tuple[str, ...]
    depthwise: tuple[str, ...]
    head: str | None


def find_sites(base: Base, config: PatchConfig) -> PatchSites:
    """The sites that ``config`` selects in ``base``.

    Raises:
        UnknownLayerError: a pattern that matches no convolution or normalisation.
    """
    modules = dict(base.module.named_modules())
    paths = [p for p, m in modules.items() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    patterns = (*config.include, *config.exclude)
    if not paths:
        _refuse_without_layers(base, config)
        patterns = ()
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = ", ".join(get_close_matches(pattern, paths, 3, 0.3)) or ", ".join(paths[:3])
            raise UnknownLayerError(
                f"pattern {pattern!r} matches no layer of base {base.name!r}; patterns are matched "
                f"against module paths such as {near}; correct it"
            )

    def selected(path: str) -> bool:
        return any(fnmatchcase(path, p) for p in config.include) and not any(
            fnmatchcase(path, p) for p in config.exclude
        )

    left_out = {base.head_name, *base.unused}
    chosen = [path for path in paths if selected(path) and path not in left_out]
    scale_bias = "scale_bias" in config.kinds
    own_norms = scale_bias or "statistics" in config.kinds
    return PatchSites(
        norms=tuple(p for p in chosen if own_norms and isinstance(modules[p], nn.BatchNorm2d)),
        explicit=tuple(p for p in chosen if scale_bias and p in base.norms and not base.norms[p]),
        depthwise=tuple(
            p for p in chosen if "depthwise" in config.kinds and is_depthwise(modules[p])
        ),
        head=base.head_name if "head" in config.kinds else None,
    )


def _refuse_without_layers(base: Base, config: PatchConfig) -> None:
    """Without convolution or normalisation nothing but the head is left to own.

    Raises:
        UnknownLayerError: another kind, or a pattern other than "*".
    """
    if set(config.kinds) - {"head"} or (config.include, config.exclude) != (("*",), ()):
        raise UnknownLayerError(
            f"base {base.name!r} has no convolution (Conv2d) and no normalisation (BatchNorm2d) "
            f"for patch kinds {', '.join(config.kinds)} and patterns; the head is all that a patch "
            "of it can own; use PatchConfig(('head',))"
        )


def is_depthwise(module: nn.Module) -> bool:
    """A convolution with one kernel (or a multiple) for each input channel."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def count_parameters(base: Base, config: PatchConfig, classes: int) -> dict[str, int]:
    """Exact counts of values: ``scale_bias`` (gamma and beta, explicit ones included),
    ``statistics`` (mu and var), ``depthwise``, ``head``, ``trained`` (all that gradients reach)
    and ``base`` (every parameter of the base, as torch counts).
    """
    sites = find_sites(base, config)
    modules = dict(base.module.named_modules())
    statistics = sum(2 * modules[p].num_features for p in sites.norms)
    scale_bias = statistics if "scale_bias" in config.kinds else 0
    scale_bias += sum(2 * modules[p].out_channels for p in sites.explicit)
    depthwise = sum(modules[p].weight.numel() for p in sites.depthwise)
    head = 0
    if sites.head is not None:
        layer = modules[sites.head]
        per_class = layer.weight[0].numel() + (layer.bias is not None)
        head = classes * per_class
    return {
        "scale_bias": scale_bias,
        "statistics": statistics,
        "depthwise": depthwise,
        "head": head,
        "trained": scale_bias + depthwise + head,
        "base": sum(parameter.numel() for parameter in base.module.parameters()),
    }


@dataclass(frozen=True, eq=False)
class Patch:
    """One task over one base.

    Attributes:
        task: its name.
        base_sha256: content hash of the base that it was trained on.
        config: what it owns.
        classes: labels, in the order of the head's rows.
        variants: by resolution in pixels, float32 arrays by state-dict name. The head is always
            among them, trained or at its random start.
        metrics: accuracies and settings, for people; plain JSON values.
    """

    task: str
    base_sha256: str
    config: PatchConfig
    classes: tuple[str, ...]
    variants: Mapping[int, Tensors]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for resolution, tensors in self.variants.items():
            for key, value in tensors.items():
                if not np.isfinite(value).all():
                    raise NonFiniteError(
                        f"patch {self.task!r} at {resolution} px: tensor {key!r} has "
                        f"{int((~np.isfinite(value)).sum())} values that are NaN or infinite; all "
                        "must be finite; train again with a smaller learning rate"
                    )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides in pixels, ascending."""
        return tuple(sorted(self.variants))

    def tensors(self, resolution: int) -> Tensors:
        """The arrays of one resolution.

        Raises:
            UnknownResolutionError: the patch has no such variant.
        """
        if resolution not in self.variants:
            raise UnknownResolutionError(
                f"patch {self.task!r} has no variant for {resolution} px; it has "
                f"{', '.join(map(str, self.resolutions))} px; train that resolution too"
            )
        return self.variants[resolution]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``patch_config.json`` and ``patch.safetensors`` into ``folder``.

        Arrays that are equal at every resolution are stored once. The tensor file carries the
        configuration too, and the hash of it all, so it is whole on its own at every moment.

        Raises:
            StorageError: the folder cannot be written; an older patch in it stays whole.
            PatchError: no resolution in it.
        """
        if not self.variants:
            raise PatchError(
                f"patch {self.task!r} has no resolution; a patch to save has at least 1; train one"
            )
        folder = Path(folder)
        document = {
            "task": self.task,
            "base_sha256": self.base_sha256,
            "config": self.config.to_json(),
            "classes": list(self.classes),
            "resolutions": list(self.resolutions),
            "metrics": dict(self.metrics),
        }
        data, described = write_stored(document, self.variants)
        write_atomic(folder / TENSOR_FILE, data)
        write_atomic(folder / CONFIG_FILE, json.dumps(described, indent=1).encode())

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Patch:
        """The patch that `save_pretrained` wrote. The tensor file alone is enough: it carries the
        configuration too, and ``patch_config.json`` is its readable copy.

        Raises:
            PatchFileError: missing, truncated, damaged, or of another format.
            NonFiniteError: NaN or infinity in it.
        """
        path = Path(folder) / TENSOR_FILE
        try:
            data = read_regular(path, MOST_BYTES, follow=True)
            document, variants = read_stored(data)
            patch = cls(
                task=document["task"],
                base_sha256=document["base_sha256"],
                config=PatchConfig.from_json(document["config"]),
                classes=tuple(document["classes"]),
                variants=variants,
                metrics=document["metrics"],
            )
            check_hash(data, document, str(path))
        except (NonFiniteError, ConfigError):
            raise
        except Exception as error:  # safetensors has errors of its own; all mean the same here
            raise PatchFileError(
                f"patch {path} cannot be read ({_describe(path, error)}); it must be the whole "
                "file that save_pretrained wrote; copy it again"
            ) from error
        return patch


def _describe(path: Path, error: Exception) -> str:
    if isinstance(error, IrregularFileError):
        return str(error).partition("; ")[0]
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    with path.open("rb") as file:  # a regular one: it was read
        found = describe_content(file.read(HEAD_BYTES))
    return found[0] if found else describe_reason(error)
