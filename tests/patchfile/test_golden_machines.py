"""The scores of a self-test are x86-64's wherever it is packed, and arm64's pass it, too."""

from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import make_patch

from patchdeploy.patchfile import pack
from patchdeploy.patchfile.golden import check_golden, enlarge
from patchdeploy.patchfile.pack import TOLERANCE_LSB, GoldenInputs
from patchdeploy.quantize.arithmetic import saturate
from patchdeploy.quantize.executor import compute_alike, run_integer
from patchdeploy.quantize.model import unflatten_variant
from patchdeploy.quantize.runtimes import MACHINES

THUMBNAILS = np.random.default_rng(5).integers(0, 256, (8, 8, 8, 3), np.uint8)
SEED = 3
"""Of a squeeze-and-excite network whose products round differently on ARM: 1 LSB in its scores."""


def golden_of(patch, base):
    return GoldenInputs(base, THUMBNAILS).score(patch, ("tflite", "onnx"))


def scores_on(machine, base, patch):
    """By format and resolution, in that machine's arithmetic."""
    found = {}
    for name, arithmetic in MACHINES[machine].items():
        for px, values in patch.values.items():
            variant = unflatten_variant(base, values, patch.task, px)
            codes = run_integer(base, variant, enlarge(THUMBNAILS, px), arithmetic).codes
            found.setdefault(name, {})[px] = codes[:, : len(patch.classes)]
    return found


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_golden_scores_are_those_of_x86_64_on_any_machine(monkeypatch, processor):
    monkeypatch.setattr("platform.machine", lambda: processor)
    base, patch = make_patch("squeeze_excitation", seed=SEED)
    golden = golden_of(patch, base)
    for name, by_side in scores_on("x86-64", base, patch).items():
        for px, codes in by_side.items():
            np.testing.assert_array_equal(golden.scores[name][px], codes)
    assert golden.tolerance_lsb == TOLERANCE_LSB
    arm = scores_on("arm64", base, patch)
    assert check_golden(golden, "tflite", arm["tflite"], "arm64") == 1


def off_by(steps):
    """arm64's machines with a mean that is ``steps`` codes off: the head's scores then move."""

    def mean(x, x_params, y_params):
        exact = MACHINES["x86-64"]["tflite"].mean(x, x_params, y_params)
        return saturate(exact.astype(np.int16) + steps)

    return {name: replace(one, mean=mean) for name, one in MACHINES["arm64"].items()}


@pytest.mark.parametrize("steps", [40, 255])
def test_machines_far_apart_widen_the_tolerance_and_the_log_says_so(monkeypatch, caplog, steps):
    machines = {**MACHINES, "arm64": off_by(steps)}
    monkeypatch.setattr(pack, "MACHINES", machines)
    monkeypatch.setattr("patchdeploy.quantize.runtimes.MACHINES", machines)
    base, patch = make_patch("conv_stack")
    golden = golden_of(patch, base)
    x86, arm = (
        {px: run_on(one, base, patch, px) for px in patch.values} for one in machines.values()
    )
    apart = max(int(np.abs(x86[px].astype(int) - arm[px]).max()) for px in x86)
    assert apart > TOLERANCE_LSB  # else the case shows nothing
    assert golden.tolerance_lsb == min(2 * apart, 255)
    assert f"differ by up to {apart} LSB between x86-64 and arm64" in caplog.text
    assert check_golden(golden, "tflite", arm, "arm64") == apart


def run_on(machine, base, patch, px):
    variant = unflatten_variant(base, patch.values[px], patch.task, px)
    codes = run_integer(base, variant, enlarge(THUMBNAILS, px), machine["tflite"]).codes
    return codes[:, : len(patch.classes)]


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("conv_stack", {"tflite", "onnx"}),
        ("residual", {"tflite"}),  # sums
        ("squeeze_excitation", {"onnx"}),  # products
    ],
)
def test_a_second_machine_is_run_only_where_an_operator_differs(name, alike):
    graph = make_patch(name)[0].graph
    pairs = {one: [machine[one] for machine in MACHINES.values()] for one in ("tflite", "onnx")}
    assert {one for one, pair in pairs.items() if compute_alike(graph, *pair)} == alike
