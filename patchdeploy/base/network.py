"""A frozen network that patches are trained over: module, preprocessing, content hash.

In: a torchvision name, a checkpoint, any nn.Module, a detector, a Keras MobileNetV2 file, or the
embedded base. Out: a `Base` that never changes: evaluation mode, no gradients, and the signs of the
normalisation scales made positive once, so that quantised rows serve every task as they are.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchdeploy.base.function import join_hash
from patchdeploy.base.layers import (
    CONVOLUTIONS,
    NORMS,
    content_hash,
    describe_function,
    is_detector,
    make_scales_positive,
    trace_layers,
)
from patchdeploy.base.plain import make_plain, unify_norms
from patchdeploy.base.state import check_finite, fill_module, read_state
from patchdeploy.base.weights import tensors_alone
from patchdeploy.data import ASSETS, ImageDataset, Preprocessing
from patchdeploy.errors import BaseError, CheckpointError, IrregularFileError
from patchdeploy.errors_keys import suggest_nearest
from patchdeploy.errors_reason import describe_reason

EMBEDDED_WEIGHTS = ASSETS / "embedded_base.safetensors"
EMBEDDED_FACTS = ASSETS / "embedded_base.json"


class OldHashWarning(UserWarning):
    """A patch, a bundle or a run names its base by the hash of the tensors alone."""


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen network.

    Attributes:
        module: in evaluation mode, nothing requires a gradient; do not change it.
        preprocessing: how pixels become its input, float32 [N, 3, H, W].
        name: architecture, for people and for the hash.
        head_name: module path of the last layer (Linear or Conv2d).
        norms: for every convolution, the module path of the normalisation that reads it, or None.
        sha256: content hash of the function: of ``tensors_sha256`` and of every operator of a
            forward pass with its operands and settings (`patchdeploy.base.function`).
        tensors_sha256: content hash of names, shapes and bytes of the state, of how convolutions
            and normalisations are set, of preprocessing and name: what ``sha256`` was in earlier
            versions; bundles keep it beside their operators.
        unused: module paths of convolutions and normalisations that no forward pass reaches
            (auxiliary classifiers); no patch has a site there.
        unreached: module paths of convolutions and normalisations that run and are no sites,
            because they are of another kind (BatchNorm1d, GroupNorm, ConvTranspose2d).
        other_heads: module paths of layers beside the head that scores come from directly; a patch
            leaves them as they are.
    """

    module: nn.Module
    preprocessing: Preprocessing
    name: str
    head_name: str
    norms: Mapping[str, str | None]
    sha256: str
    tensors_sha256: str
    unused: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        preprocessing: Preprocessing,
        name: str,
        head_name: str | None = None,
    ) -> Base:
        """A base from any module that maps float32 [N, 3, H, W] to [N, classes].

        The module is copied. Wrappers come off, computed weights (weight_norm) are stored, and
        normalisations become BatchNorm2d with scale and bias (`patchdeploy.base.plain`). Where a
        normalisation after a convolution has a negative scale, that row of the kernel, its bias,
        the running mean and the scale change sign together: the function stays the same to the
        last bit (IEEE 754 rounding is symmetric in sign).

        Raises:
            NonFiniteError: NaN or infinity in a parameter or statistic.
            BaseError: no Linear or Conv2d to be the head, a forward pass that fails or gives no
                [1, classes], a normalisation without statistics, or a module that is not dense
                float32, is TorchScript, or cannot be copied.
        """
        frozen = make_plain(module, name)
        side = preprocessing.input_size
        check_finite(frozen.state_dict(), name)
        made = unify_norms(frozen, side, name)
        trace = trace_layers(frozen, side, name)
        make_scales_positive(frozen, trace.norms, side, name)
        head = head_name or trace.head(name)
        layers = dict(frozen.named_modules())
        if not isinstance(layers.get(head), nn.Linear | nn.Conv2d):
            raise BaseError(
                f"base {name!r} has no Linear or Conv2d {head!r}; the head is its last layer; name "
                f"one of {', '.join(trace.classifiers[-3:])}"
            )
        sites = (*CONVOLUTIONS, *NORMS)
        unused = tuple(
            path
            for path, layer in layers.items()
            if isinstance(layer, sites) and path not in trace.reached
        )
        function = describe_function(frozen, side, name)
        tensors_hash = content_hash(frozen, preprocessing, name, made)
        return cls(
            module=frozen,
            preprocessing=preprocessing,
            name=name,
            head_name=head,
            norms=trace.norms,
            sha256=join_hash(tensors_hash, function),
            tensors_sha256=tensors_hash,
            unused=unused,
            unreached=tuple(
                path
                for path in function.layers
                if path != head and not isinstance(layers.get(path), (*sites, nn.Linear))
            ),
            other_heads=tuple(path for path in function.last_layers if path != head),
        )

    def is_named(self, sha256: str, what: str) -> bool:
        """Whether ``sha256`` names this base.

        Args:
            what: what carries the name, for the warning.

        Warns:
            OldHashWarning: it is ``tensors_sha256``, by which earlier versions named a base.
        """
        if sha256 == self.tensors_sha256:
            warnings.warn(
                f"{what} names base {self.name!r} by {sha256[:16]}, the hash of its tensors alone, "
                "as earlier versions did; the tensors are the same, what is computed with them "
                "(order, activations, pooling) was not compared; the base's hash is now "
                f"{self.sha256[:16]}; make it again, or load the patch and save it, and both are "
                "compared",
                OldHashWarning,
                stacklevel=3,
            )
            return True
        return sha256 == self.sha256

    @classmethod
    def from_torchvision(
        cls,
        name: str,
        weights: str | None = None,
        *,
        seed: int = 0,
        preprocessing: Preprocessing | None = None,
        **arguments: Any,
    ) -> Base:
        """A torchvision classifier by name, with the weights of its enum or random ones.

        Args:
            weights: None (random, from ``seed``; see `with_statistics_of`), "DEFAULT", or a name
                of the model's enum such as "IMAGENET1K_V2"; torchvision downloads them and checks
                their hash.
            arguments: for the model function, for instance ``width_mult`` or ``num_classes``.

        Raises:
            BaseError: an unknown name, or the weights cannot be downloaded.
        """
        module, chosen = build_torchvision(name, weights, seed, arguments)
        if is_detector(module):
            raise BaseError(
                f"torchvision's {name!r} finds or segments objects; a base gives class scores; "
                f"Base.from_detector({name!r}) takes the layers of its backbone with a new linear "
                "layer"
            )
        for path, layer in list(module.named_children()):
            if path.lower().startswith("aux") and isinstance(layer, nn.Module):
                setattr(module, path, None)  # a second classifier that only training runs
                module.aux_logits = False
        settings = preprocessing or _torchvision_preprocessing(name, chosen)
        if getattr(module, "transform_input", False):
            # Inception and GoogLeNet change ImageNet-normalised input to mean and std 0.5; taking
            # pixels that way in the first place is the same function.
            module.transform_input = False
            settings = _after_transform_input(settings)
        label = f"torchvision/{name}" + "".join(f"+{k}={v}" for k, v in sorted(arguments.items()))
        return cls.from_module(module, settings, label)

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        module: nn.Module,
        preprocessing: Preprocessing,
        name: str | None = None,
    ) -> Base:
        """``module`` with the state dict in ``path`` (.safetensors, or .pt read as weights only).

        Raises:
            CheckpointError: not readable, or names and shapes that do not fit.
            NonFiniteError: NaN or infinity in it.
        """
        filled = fill_module(module, Path(path))
        return cls.from_module(filled, preprocessing, name or type(module).__name__)

    @classmethod
    def from_detector(
        cls,
        detector: nn.Module | str,
        weights: str | None = None,
        *,
        checkpoint: Path | str | None = None,
        classes: int = 1000,
        seed: int = 0,
        preprocessing: Preprocessing | None = None,
        name: str | None = None,
        **arguments: Any,
    ) -> Base:
        """An SSD's feature extractor with a new linear layer (paper, 5.2); the detector stays as
        it is. See `patchdeploy.base.detector`.

        Args:
            detector: a torchvision SSD, or the name of one such as "ssdlite320_mobilenet_v3_large".
            weights: for a name: "DEFAULT" or "COCO_V1", which torchvision downloads.
            checkpoint: a state dict of the whole detector, .safetensors or .pt.
            classes: rows of the new layer; every patch brings a head of its own.
            seed: of the new layer, and of a named detector without weights.
            preprocessing: by default what the detector's own transform does.
            arguments: for torchvision's model function.

        Raises:
            BaseError: no such detector, or no feature extractor that is known in it.
            CheckpointError: the checkpoint does not fit.
        """
        from patchdeploy.base.detector import classifier_of, preprocessing_of

        if isinstance(detector, str):
            label = name or f"torchvision/{detector}/features"
            fixed = {"weights_backbone": None, **arguments}  # by default ImageNet's, a download
            source, _ = build_torchvision(detector, weights, seed, fixed)
        elif weights or arguments:
            given = ", ".join([*(["weights"] if weights else []), *arguments])
            raise BaseError(
                f"{given} for a detector that is a module; they are for torchvision's names; load "
                "them into the module, or give checkpoint"
            )
        else:
            source, label = detector, name or f"{type(detector).__name__}/features"
        if checkpoint is not None:
            source = fill_module(source, Path(checkpoint))
        settings = preprocessing or preprocessing_of(source, label)
        module = classifier_of(source, classes, settings.input_size, seed, label)
        return cls.from_module(module, settings, label)

    def with_statistics_of(self, images: ImageDataset, limit: int = 512) -> Base:
        """A base of the same weights with mu and var measured on up to ``limit`` images.

        For random weights (paper, 5.1): without it their signals vanish, and neither a last layer
        nor a patch with frozen statistics learns. A patch with ``statistics="reestimated"`` learns
        without it, as it measures its own.

        Raises:
            DataError: fewer than 2 images.
        """
        from patchdeploy.base.statistics import measure_statistics

        count = min(limit, len(images))
        chosen = images.subset([k * len(images) // count for k in range(count)])
        pixels = chosen.at(self.preprocessing.input_size, self.preprocessing)
        module = measure_statistics(self.module, self.preprocessing, pixels)
        return Base.from_module(module, self.preprocessing, self.name, self.head_name)

    @classmethod
    def embedded(cls) -> Base:
        """The base that ships with patchdeploy: MobileNetV2, trained on Fashion-MNIST.

        Its settings and accuracy are in ``patchdeploy/assets/embedded_base.json``; the float16
        values of the file, as float32, are the base.
        """
        import torchvision

        facts = json.loads(EMBEDDED_FACTS.read_text())
        state = {key: value.float() for key, value in read_state(EMBEDDED_WEIGHTS).items()}
        module = torchvision.models.mobilenet_v2(
            width_mult=facts["width_mult"], num_classes=len(facts["classes"])
        )
        missing = module.load_state_dict(state, strict=False).missing_keys
        if any(not key.endswith("num_batches_tracked") for key in missing):
            raise CheckpointError(f"{EMBEDDED_WEIGHTS} lacks {missing[0]}; reinstall patchdeploy")
        settings = Preprocessing.from_json(facts["preprocessing"])
        return cls.from_module(module, settings, "patchdeploy/embedded")

    @classmethod
    def from_keras_mobilenet_v2(cls, path: Path | str) -> Base:
        """A Keras MobileNetV2 (width 1.0) .h5 file; see `patchdeploy.base.keras`."""
        from patchdeploy.base.keras import read_mobilenet_v2

        module, preprocessing = read_mobilenet_v2(Path(path))
        return cls.from_module(module, preprocessing, "keras/mobilenet_v2")

    @classmethod
    def keras_structure(cls) -> Base:
        """Keras' MobileNetV2 of width 1.0 with random weights: what a file of one is read into."""
        from patchdeploy.base.keras import make_mobilenet_v2

        settings = Preprocessing((0.5,) * 3, (0.5,) * 3, 224)
        return cls.from_module(make_mobilenet_v2(1000), settings, "keras/mobilenet_v2")


def build_torchvision(
    name: str, weights: str | None, seed: int, arguments: Mapping[str, Any]
) -> tuple[Any, Any]:
    """torchvision's network and the member of its weights enum, or None for random weights.

    Raises:
        BaseError: an unknown name, or the weights cannot be downloaded.
    """
    import torchvision

    try:
        enum = torchvision.models.get_model_weights(name) if weights else None
        chosen = enum[weights] if weights and enum is not None else None
        with torch.random.fork_rng(devices=[]), tensors_alone():
            torch.manual_seed(seed)
            return torchvision.models.get_model(name, weights=chosen, **arguments), chosen
    except (OSError, RuntimeError, CheckpointError, IrregularFileError) as error:
        raise BaseError(
            f"weights {weights!r} of {name!r} cannot be downloaded or read ({_reason(error)}); "
            f"they come from the network or from torch's cache, {torch.hub.get_dir()}/checkpoints; "
            "put the whole file there, or use from_checkpoint"
        ) from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise BaseError(
            f"torchvision has no {name!r} with weights {weights!r} ({error}); see "
            "torchvision.models.list_models() and the model's weights enum"
            + _suggest_torchvision(name, weights)
        ) from error


def _reason(error: Exception) -> str:
    """What urllib and ours say, whole; of torch's own text what is not advice."""
    ours = isinstance(error, OSError | CheckpointError | IrregularFileError)
    return str(error) if ours else describe_reason(error)


def _torchvision_preprocessing(name: str, weights: Any) -> Preprocessing:
    if weights is None:
        return Preprocessing(input_size=299 if name == "inception_v3" else 224)
    transform = weights.transforms()
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    return Preprocessing(
        tuple(transform.mean),
        tuple(transform.std),
        crop,
        resize="crop",
        crop_fraction=crop / resize,
    )


def _after_transform_input(settings: Preprocessing) -> Preprocessing:
    """``settings`` and torchvision's ``transform_input`` in one.

    transform_input takes x = (u - m) / s to a x + b with a = s0 / 0.5, b = (m0 - 0.5) / 0.5, where
    m0 and s0 are ImageNet's mean and standard deviation. So mean = m - b s / a, std = s / a.
    """
    imagenet = Preprocessing()
    channels = zip(settings.mean, settings.std, imagenet.mean, imagenet.std, strict=True)
    std = [round(s * 0.5 / s0, 12) for _, s, _, s0 in channels]
    channels = zip(settings.mean, std, imagenet.mean, imagenet.std, strict=True)
    mean = [round(m - (m0 - 0.5) / 0.5 * s, 12) for m, s, m0, _ in channels]
    return replace(settings, mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))


def _suggest_torchvision(name: str, weights: str | None) -> str:
    import torchvision

    known = torchvision.models.list_models()
    if name in known:
        known, name = [one.name for one in torchvision.models.get_model_weights(name)], str(weights)
    near = suggest_nearest(name, known, "")
    return f"; {near}" if near else ""
