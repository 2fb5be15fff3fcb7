"""What a patch would leave as it is although its kinds name it: said before anything is trained.

In: a base and what a patch owns. Out: nothing, a `ReachWarning` with module paths, or a PatchError
where a setting would do nothing at all. Why: a normalisation of another kind, or a second last
layer, keeps the base's values through any training, and nothing else shows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.errors import PatchError
from patchdeploy.patch.forward import run_patched
from patchdeploy.patch.tensors import random_head
from patchdeploy.patch.variants import PatchConfig, PatchSites, find_sites

NAMES_SHOWN = 5
_fitting: WeakKeyDictionary[Base, set[int]] = WeakKeyDictionary()
"""Numbers of classes that each base has been run with."""


class ReachWarning(UserWarning):
    """A patch does not reach layers of the kinds that it owns."""


def check_reach(base: Base, config: PatchConfig, classes: int) -> None:
    """Look at what a patch of ``config`` and so many ``classes`` does not reach in ``base``.

    Raises:
        PatchError: ``statistics`` without a normalisation that has them, or a network that fails
            with a head of ``classes`` rows.
        UnknownLayerError: a pattern selects nothing.

    Warns:
        ReachWarning: normalisations or convolutions of a kind that no patch changes, a second last
            layer, a kind of ``config`` without a layer.
    """
    sites = find_sites(base, config)
    _check_statistics(base, config, sites)
    check_classes(base, classes)
    _warn_of_heads(base)
    if "scale_bias" in config.kinds and base.unreached:
        modules = dict(base.module.named_modules())
        named = [f"{path} ({type(modules[path]).__name__})" for path in base.unreached]
        _warn(
            f"patch kind 'scale_bias' does not reach {_listed(named)} of base {base.name!r}: a "
            "patch changes Conv2d and BatchNorm2d; these keep the base's values; replace them, or "
            "take it that they stay"
        )
    for kind, found in (
        ("scale_bias", sites.norms or sites.explicit),
        ("depthwise", sites.depthwise),
    ):
        if kind in config.kinds and not found:
            _warn(
                f"patch kind {kind!r} selects no layer of base {base.name!r} (include "
                f"{_listed(config.include)}; exclude {_listed(config.exclude) or 'nothing'}); a "
                "kind that a patch owns has layers; leave it out or correct the patterns"
            )


def _check_statistics(base: Base, config: PatchConfig, sites: PatchSites) -> None:
    if config.statistics == "frozen" or sites.norms:
        return
    raise PatchError(
        f"patch statistics {config.statistics!r} with kinds {', '.join(config.kinds)} would do "
        f"nothing in base {base.name!r}: the patch owns no normalisation there; use statistics "
        "'frozen', or own normalisations (kind scale_bias or statistics; include)"
    )


def check_classes(base: Base, classes: int) -> None:
    """A head of ``classes`` rows fits what runs beside it and after it.

    Raises:
        PatchError: the network fails with it.
    """
    head = base.module.get_submodule(base.head_name)
    assert isinstance(head.weight, Tensor)
    rows = len(head.weight)
    if classes == rows or classes in _fitting.setdefault(base, set()):
        return
    images = torch.zeros(1, 3, base.preprocessing.input_size, base.preprocessing.input_size)
    try:
        with torch.no_grad():
            tensors = random_head(base, classes, 0)
            scores = run_patched(base, tensors, images.to(head.weight.device), PatchConfig())
        fits = scores.shape == (1, classes)
        reason = f"gives {list(scores.shape)}"
    except Exception as error:  # whatever the caller's module raises
        fits, reason = False, f"fails: {next(iter(str(error).splitlines()), 'no message')}"
    if not fits:
        others = f" beside it ({_listed(base.other_heads)}) or" if base.other_heads else ""
        raise PatchError(
            f"base {base.name!r} with a head {base.head_name!r} of {classes} rows {reason}; what "
            f"runs{others} after it is made for {rows} scores; make a base that ends with its last "
            f"layer, or train tasks of {rows} classes"
        )
    _fitting[base].add(classes)


def _warn_of_heads(base: Base) -> None:
    if base.other_heads:
        _warn(
            f"scores of base {base.name!r} come from its head {base.head_name!r} and from "
            f"{_listed(base.other_heads)}; a patch brings a head alone, the rest of the scores "
            "stays the base's; make a base whose scores come from one last layer"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _warn(text: str) -> None:
    warnings.warn(text, ReachWarning, stacklevel=4)
