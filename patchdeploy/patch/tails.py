"""What a normalisation's class does after it has normalised.

In: a BatchNorm2d or a class derived from it. Out: the modules that run after the normalisation, or
an error where the class does something else. Why: batches of several tasks, and of several
processes, normalise by tensors of their own in place of the module, and must still do all that it
does. Derived classes with an activation inside are common (timm's BatchNormAct2d: drop, then act).
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from patchdeploy.errors import PatchError

Tail = tuple[nn.Module, ...]
_found: WeakKeyDictionary[nn.Module, Tail | None] = WeakKeyDictionary()
SPREAD = (0.01, 1.0, 100.0)
"""Factors of the normal values that a class is tried with: an activation's every branch is met."""


def is_hooked(module: nn.Module) -> bool:
    """A forward hook changes, or sees, what ``module`` reads or gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_plain_norm(norm: nn.Module) -> bool:
    """It normalises as BatchNorm2d does and does nothing else."""
    own = type(norm).forward is not nn.BatchNorm2d.forward or "forward" in vars(norm)
    return isinstance(norm, nn.BatchNorm2d) and not own and not is_hooked(norm)


def find_tail(norm: nn.Module, path: str) -> Tail:
    """The modules that give what ``norm`` gives, run after a normalisation.

    They are its own submodules in their order, or else a copy of it that normalises by mean 0 and
    variance 1: whichever gives the same, in evaluation and in training mode. Tried once.

    Raises:
        PatchError: neither does.
    """
    if is_plain_norm(norm):
        return ()
    if norm not in _found:
        tails = [tuple(norm.children())] if not is_hooked(norm) else []
        tails.append((_neutral(norm),))
        _found[norm] = next((one for one in tails if _runs_as(norm, one)), None)
    tail = _found[norm]
    if tail is None:
        raise PatchError(
            f"normalisation {path!r} ({type(norm).__name__}) does more than normalise and then "
            "change what it gives; a batch of several tasks or ranks cannot run it; train the "
            "tasks one by one (train_patch) in one process, or make the base with a BatchNorm2d "
            "there"
        )
    return tail


def _neutral(norm: nn.Module) -> nn.Module:
    """A copy that only does what ``norm`` does besides normalising; its submodules' tensors are
    the same ones."""
    inside = [one for child in norm.children() for one in (*child.parameters(), *child.buffers())]
    made: Any = copy.deepcopy(norm, {id(one): one for one in inside}).eval()
    made.__dict__.pop("forward", None)
    with torch.no_grad():
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            getattr(made, name).fill_(value)
        made.running_var.fill_(1.0 - made.eps)
    neutral: nn.Module = made
    return neutral


@torch.no_grad()
def _runs_as(norm: Any, tail: Tail) -> bool:
    generator = torch.Generator().manual_seed(0)
    count = norm.num_features
    x = torch.cat([one * torch.randn(2, count, 3, 3, generator=generator) for one in SPREAD])
    x = x.to(norm.running_mean.device)
    before = norm.training
    try:
        return all(_is_same(norm, tail, x, training) for training in (False, True))
    except Exception:  # a forward of its own that takes other input: it does something else
        return False
    finally:
        norm.training = before


def _is_same(norm: Any, tail: Tail, x: Tensor, training: bool) -> bool:
    norm.training = training
    copies = {key: value.clone() for key, value in norm.named_buffers(recurse=False)}
    found = functional_call(norm, copies, (x.clone(),))
    mean, var = (None, None) if training else (norm.running_mean, norm.running_var)
    expected = nn.functional.batch_norm(
        x, mean, var, norm.weight, norm.bias, training=training, eps=norm.eps
    )
    for one in tail:
        expected = one(expected)
    # A few roundings of values up to the largest: under 1e-6 of it; an activation that is left out
    # changes far more.
    return torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
