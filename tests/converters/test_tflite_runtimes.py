"""int8 .tflite files in every runtime, operator by operator, against the integer executor.

LiteRT with XNNPACK is bit-equal to the executor, through whole networks; so is
TensorFlow's interpreter, but for the mean. Builtin kernels (both of these without
the delegate, and tflite-runtime 2.14, whose wheel delegates no int8) requantise with 31-bit
fixed-point multipliers: see MOST_LSB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_cases import CONV_ONLY_CASES, GRAPH_CASES, make_case, random_images
from patchdeploy_tflite import TFLiteConverter
from patchdeploy_tflite.flatfile import lay_out

from patchdeploy.graph import GlobalAvgPool, Operator, tied_values
from patchdeploy.quantize.executor import _Run, _run_operator, run_integer
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant
from patchdeploy.quantize.runtimes import REFERENCE, arithmetic_of

LITERT = arithmetic_of("tflite")

RESOLUTIONS = (16, 17, 25)
IMAGES = 3
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("interpret.py")
OLD_PYTHON = Path(
    os.environ.get(
        "PATCHDEPLOY_TFLITE_RUNTIME_PYTHON", ROOT / ".envs" / "tflite-runtime" / "bin" / "python"
    )
)

RUNTIMES = {
    "litert": ("default", "builtin", "reference"),
    "tensorflow": ("default", "reference"),
    "tflite_runtime": ("default", "reference"),
}
BIT_EQUAL = ("litert default",)
# LiteRT 2.3 with XNNPACK is what the executor emulates: nothing may differ.
#
# A builtin kernel and the executor round the same exact value v = acc * m (or a sum, or a mean).
# Builtin: m in 31 bits (relative error 2^-31, at most 2^-22 LSB on |v| <= 2^9, beyond which both
# saturate), then a doubling high product rounds at 2^-shift LSB with shift >= 1 (error <= 1/4; a
# multiplier of 1/2 or more rounds once), then the last rounding. Executor: three float32
# roundings (2^-24 each, at most 2^-13 LSB), then the last rounding. The two numbers before the
# last rounding are less than 1 apart, so the codes are at most 1 apart. A mean divides by n with
# one more rounding of 1/(2n) LSB at most: the same bound.
MOST_LSB = 1
# TensorFlow 2.21 delegates to another release of XNNPACK, whose MEAN adds its float32 terms in
# another order: each is within 2^-13 LSB of the exact mean before the one rounding.
ROUNDED_APART = {"tensorflow default": (GlobalAvgPool,)}

Case = tuple[QuantizedBase, dict[int, QuantizedVariant]]
Outputs = Mapping[str, np.ndarray[Any, Any]]


def write_exposed(base: QuantizedBase, variants: Mapping[int, QuantizedVariant]) -> bytes:
    """The file that the converter writes, with every value as an output besides 'scores'."""
    subgraphs, blobs = TFLiteConverter().plan(base, variants)
    for graph in subgraphs:
        index = {tensor.name: k for k, tensor in enumerate(graph.tensors)}
        graph.outputs["input"] = index[f"{base.graph.input}:int8"]
        for operator in base.graph.operators:
            graph.outputs[operator.output.replace(":", "_")] = index[operator.output]
    return lay_out(subgraphs, blobs, "every value").data


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {name: make_case(name, RESOLUTIONS, seed=3) for name in GRAPH_CASES}


@pytest.fixture(scope="module")
def inputs(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    arrays: dict[str, Any] = {}
    for name, (base, variants) in cases.items():
        arrays[f"{name}/model"] = np.frombuffer(write_exposed(base, variants), np.uint8)
        for px in variants:
            arrays[f"{name}/classify_{px}"] = random_images(IMAGES, px, seed=px)
    path = tmp_path_factory.mktemp("tflite") / "inputs.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module", params=list(RUNTIMES))
def ran(request: pytest.FixtureRequest, inputs: Path) -> dict[str, Outputs]:
    """All that a runtime computed, by "runtime kernels", on one thread in its own process."""
    runtime, python = request.param, Path(sys.executable)
    if runtime == "tflite_runtime":
        python = OLD_PYTHON
        if not python.exists():
            pytest.skip(f"no Python with tflite-runtime 2.14 at {python}")
    targets = {name: inputs.with_name(f"{runtime}-{name}.npz") for name in RUNTIMES[runtime]}
    jobs = [f"{name}={target}" for name, target in targets.items()]
    command = [str(python), str(SCRIPT), runtime, str(inputs), *jobs]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs: dict[str, Outputs] = {}
    for name, target in targets.items():
        with np.load(target) as arrays:
            outputs[f"{runtime} {name}"] = {key: arrays[key] for key in arrays.files}
    return outputs


def test_every_operator_gives_the_executors_codes(
    ran: dict[str, Outputs], cases: dict[str, Case]
) -> None:
    """Each operator on the codes that the runtime itself fed to it."""
    for runtime, outputs in ran.items():
        worst: dict[type, int] = {}
        for case, (base, variants) in cases.items():
            for px, variant in variants.items():
                for operator, difference in _differences(base, variant, outputs, case, px):
                    kind = type(operator)
                    worst[kind] = max(worst.get(kind, 0), difference)
        for kind, difference in worst.items():
            exact = runtime in BIT_EQUAL or (
                runtime in ROUNDED_APART and kind not in ROUNDED_APART[runtime]
            )
            assert difference <= (0 if exact else MOST_LSB), (runtime, kind)


def _differences(
    base: QuantizedBase, variant: QuantizedVariant, outputs: Outputs, case: str, px: int
) -> Iterator[tuple[Operator, int]]:
    run = _Run(base, variant, tied_values(base.graph), LITERT)
    key = f"{case}/classify_{px}"
    for operator in base.graph.operators:
        given = [_value(outputs, key, base, value) for value in operator.inputs]
        expected = _run_operator(run, operator, given)
        found = _value(outputs, key, base, operator.output)
        yield operator, int(np.abs(found.astype(int) - expected.astype(int)).max())


def test_outputs_spread_over_many_codes(ran: dict[str, Outputs], cases: dict[str, Case]) -> None:
    """The comparison above could not fail on values that are stuck at a bound."""
    for outputs in ran.values():
        for case, (base, variants) in cases.items():
            for operator in base.graph.operators:
                codes = [
                    _value(outputs, f"{case}/classify_{px}", base, operator.output)
                    for px in variants
                ]
                seen = np.unique(np.concatenate([code.reshape(-1) for code in codes]))
                assert len(seen) >= 6, (case, operator.name)


def test_scores_are_bit_equal_through_the_whole_network_with_xnnpack(
    ran: dict[str, Outputs], cases: dict[str, Case]
) -> None:
    for outputs in _bit_equal(ran):
        for case, (base, variants) in cases.items():
            for px, variant in variants.items():
                expected = run_integer(base, variant, random_images(IMAGES, px, px), LITERT)
                np.testing.assert_array_equal(
                    outputs[f"{case}/classify_{px}/scores"], expected.logits, strict=True
                )


def test_convolutions_are_bit_equal_in_exact_arithmetic_too(
    ran: dict[str, Outputs], cases: dict[str, Case]
) -> None:
    """Up to the pool nothing but convolutions runs, and those round the same everywhere."""
    for outputs in _bit_equal(ran):
        for case in CONV_ONLY_CASES:
            base, variants = cases[case]
            for px, variant in variants.items():
                codes: dict[str, Any] = {}
                images = random_images(IMAGES, px, px)
                run_integer(base, variant, images, REFERENCE, observe=codes.__setitem__)
                pool = next(o for o in base.graph.operators if isinstance(o, GlobalAvgPool))
                found = _value(outputs, f"{case}/classify_{px}", base, pool.input)
                np.testing.assert_array_equal(found, codes[pool.input])


def _bit_equal(ran: dict[str, Outputs]) -> list[Outputs]:
    found = [outputs for runtime, outputs in ran.items() if runtime in BIT_EQUAL]
    if not found:
        pytest.skip(f"{', '.join(ran)} round apart in places: compared operator by operator")
    return found


def _value(outputs: Outputs, key: str, base: QuantizedBase, value: str) -> Any:
    name = "input" if value == base.graph.input else value.replace(":", "_")
    return outputs[f"{key}/{name}"]
