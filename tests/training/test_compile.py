"""Compiled training: the real compiler, the same function, and never silently uncompiled."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from joint_cases import digits, small_base

from patchdeploy.patch import Kind, PatchConfig
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.objective import compile_forward

EAGER = TrainConfig(epochs=1, batch_size=32, seed=3, device="cpu", early_best=False)
COMPILED = replace(EAGER, compile=True)

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile on a processor needs a C++ compiler",
)


@pytest.mark.parametrize("kinds", [("scale_bias", "head"), ("scale_bias", "depthwise")])
def test_every_kind_at_every_resolution_is_compiled_and_learns_what_it_learns_uncompiled(
    kinds: tuple[Kind, ...],
) -> None:
    """Torch's limit is 8 forms, which three kinds reach together; 2 stand for it here."""
    train, held = digits()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=2):
        eager, compiled = (
            train_patch(
                small_base(),
                train,
                config,
                PatchConfig(kinds),
                resolutions=[24, 16],
                validation=held,
                quiet=True,
            )
            for config in (EAGER, COMPILED)
        )
    # 3 steps of Adam at a rate of at most 1e-1 at each of 2 resolutions; a step is the rate times
    # a quotient of gradients, which fused sums round apart by some 2^-15 of itself at most
    tolerance = 6 * 1e-1 * 2.0**-14
    for px in eager.resolutions:
        for name, value in eager.tensors(px).items():
            np.testing.assert_allclose(compiled.tensors(px)[name], value, rtol=0, atol=tolerance)


def test_a_run_that_is_not_compiled_keeps_its_function() -> None:
    base = small_base()
    assert compile_forward(base.module, EAGER) is base.module
