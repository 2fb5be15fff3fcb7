"""The forms in which people keep a network's tensors, and the network's own names in each.

In: what a checkpoint file holds. Out: tensors under the names that a module has. A checkpoint may
nest them (``model``, ``state_dict``, ``model_state_dict``, a moving average too), put a wrapper's
name into every key (DataParallel's ``module``, torch.compile's ``_orig_mod``), a prefix before it
(Lightning's ``model.``), and add counters that no forward pass reads.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]

WRAPPERS = frozenset(
    (
        "module",
        "_orig_mod",
        "_forward_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    )
)
"""What DataParallel, AveragedModel, torch.compile, Fabric and FSDP put into the names."""
COUNTERS = frozenset(("num_batches_tracked", "n_averaged", "total_ops", "total_params"))
"""Last parts of names that count something; no forward pass reads them."""
DEPTH = 3
MOST_PLACES = 10_000

_log = logging.getLogger("patchdeploy.base")


def find_states(document: Any) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in ``document``, by its place (``""``: the whole)."""
    found: dict[str, dict[str, Tensor]] = {}
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    seen: set[int] = set()
    while waiting and len(seen) < MOST_PLACES:
        place, value, depth = waiting.pop(0)
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        named = {key: one for key, one in value.items() if isinstance(key, str)}
        tensors = {key: one for key, one in named.items() if isinstance(one, Tensor)}
        if any(not is_counter(key, one) for key, one in tensors.items()):
            found[place] = tensors
        if depth < DEPTH:
            waiting += [
                (f"{place}.{key}".lstrip("."), one, depth + 1) for key, one in named.items()
            ]
    return found


def is_counter(key: str, value: Tensor) -> bool:
    """A count that some library keeps beside the weights: known by name, or one whole number."""
    whole = not (value.is_floating_point() or value.is_complex() or value.is_quantized)
    return key.rpartition(".")[2] in COUNTERS or (value.ndim == 0 and whole)


def strip_wrappers(state: State) -> dict[str, Tensor]:
    """``state`` without the names of wrappers; as it is where two names would become one."""
    short = {
        ".".join(part for part in key.split(".") if part not in WRAPPERS): one
        for key, one in state.items()
    }
    return short if len(short) == len(state) else dict(state)


def only_state(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file without a network to compare with: the place with most of them."""
    most = max(map(len, states.values()))
    return strip_wrappers(
        states[_prefer([one for one, found in states.items() if len(found) == most])]
    )


def choose_state(
    states: Mapping[str, Mapping[str, Tensor]], expected: State, where: str
) -> dict[str, Tensor]:
    """The tensors among ``states`` that the network's names fit best, under those names.

    Where the file has several whole sets of them, such as the weights and their moving average,
    the average is taken, which is what evaluation uses, and a warning is logged.

    Args:
        expected: the network's state dict.
        where: the file, for the warning.
    """
    wanted = {key for key, value in expected.items() if not is_counter(key, value)}
    forms: dict[str, dict[str, Tensor]] = {}
    scores: dict[str, int] = {}
    for place, state in states.items():
        for name, form in _name_forms(state, wanted):
            label, score = f"{place}.{name}".strip("."), len(wanted & set(form))
            if score > scores.get(label, -1):
                forms[label], scores[label] = form, score
    best = [place for place, score in scores.items() if score == max(scores.values())]
    chosen = _prefer(best)
    others = [one for one in best if one != chosen and not _same(forms[one], forms[chosen], wanted)]
    if others and scores[chosen] == len(wanted):
        _log.warning(
            "%s holds %d sets of weights that fit (%s); took %r; to use another one, save it alone",
            where,
            1 + len(others),
            ", ".join(repr(one) for one in [chosen, *others][:5]),
            chosen,
        )
    return forms[chosen]


def _name_forms(state: State, wanted: Collection[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """``state`` under names with wrappers taken out and with each prefix that fits best."""
    plain = strip_wrappers(state)
    for form in (dict(state), plain) if plain.keys() != state.keys() else (plain,):
        prefixes: Counter[str] = Counter()
        for key in form:
            parts = key.split(".")
            for count in range(min(len(parts), DEPTH + 1)):
                if ".".join(parts[count:]) in wanted:
                    prefixes[".".join(parts[:count])] += 1
        most = max(prefixes.values(), default=0)
        if not most:
            yield "", form
        for prefix in (one for one, count in prefixes.items() if count == most):
            start = f"{prefix}." if prefix else ""
            yield (
                prefix,
                {
                    key.removeprefix(start): one
                    for key, one in form.items()
                    if key.startswith(start)
                },
            )


def _prefer(places: list[str]) -> str:
    """A moving average first, an optimiser's tensors last, else the first."""

    def rank(place: str) -> tuple[bool, bool]:
        parts = place.lower().replace(".", "_").split("_")
        return (not {"ema", "averaged", "swa"} & set(parts), "optimizer" in parts)

    return min(places, key=rank)


def _same(one: State, other: State, names: Collection[str]) -> bool:
    return all(key in other and torch.equal(one[key], other[key]) for key in names if key in one)
