"""Small patches: training rounds on the file's own grid, and counts what the file will take."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import (
    EXACT_BIASES,
    EXACT_SCALES,
    MIN_BIAS_STEP,
    CodedRows,
    CodingSteps,
    nearest_scales,
    scales_from,
)
from patchdeploy.coding.lossless_steps import lossless_steps
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged
from patchdeploy.export import Exporter
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.patchfile.payload import encode_payload
from patchdeploy.slots import PatchValues
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.compact import (
    Compact,
    _Grid,
    compact_forward,
    floor_log2,
    make_compact,
    training_steps,
)
from patchdeploy.training.int8_rows import row_steps

Flags = NDArray[np.bool_]
KINDS = ("scale_bias", "depthwise", "head")
CLASSES = ("a", "b", "c")
SIDES = (16, 12)
STEP = 0.125
ROUNDED = TrainConfig(epochs=2, batch_size=8, learning_rate=0.02, device="cpu", rounding_step=STEP)
KEPT = {"0.patch_scale", "0.patch_bias", "2.weight", "5.weight", "6.weight", "6.bias", "9.weight"}
"""Of `small`, trained: scales and biases, a depthwise kernel (2) and a head (not KEPT)."""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    """A convolution without normalisation, a depthwise one with it, one through a hard sigmoid."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 24, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.Hardsigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    for norm in (module[3], module[6]):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.25, 4.0)
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 16)
    return Base.from_module(module, preprocessing, "small")


@pytest.fixture(scope="module")
def exporter(base: Base) -> Exporter:
    """More rows in the head than a task has classes, and depthwise slots."""
    return Exporter.prepare(base, head_capacity=5, depthwise_slots=True)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    """64 and 32 real scans of handwritten digits, three classes."""
    train, test = load_packaged("optical_digits")
    kept = [
        part.subset([k for k, label in enumerate(part.labels) if label < 3])
        for part in (train, test)
    ]
    train, test = (replace(part, classes=train.classes[:3]) for part in kept)
    return train.subset(range(64)), test.subset(range(32))


def moved_tensors(base: Base, seed: int = 0, spread: float = 0.2) -> dict[str, Tensor]:
    """Every tensor of a patch away from the base's; all but the statistics are trained."""
    state, generator = base.module.state_dict(), torch.Generator().manual_seed(seed)

    def noise(count: Tensor) -> Tensor:
        return spread * torch.randn(count.shape, generator=generator)

    tensors = {
        "0.patch_scale": torch.exp(noise(torch.ones(16))),
        "0.patch_bias": noise(torch.ones(16)),
    }
    for key, value in state.items():
        if key.endswith("running_var") or key in ("3.weight", "6.weight"):
            tensors[key] = value * torch.exp(noise(value))
        elif not key.startswith("0.") and not key.startswith("5.") and value.ndim:
            tensors[key] = value + noise(value)
    for key, value in tensors.items():
        value.requires_grad_("running" not in key)
    return tensors


def compact(
    exporter: Exporter,
    tensors: Mapping[str, Tensor],
    first: Mapping[str, Tensor] | None = None,
    kinds: tuple[str, ...] = KINDS,
    **keys: float,
) -> Compact:
    config = TrainConfig(**keys)  # type: ignore[arg-type]
    found = make_compact(exporter.graph, tensors, config, PatchConfig(kinds), 3, first)
    assert found is not None
    return found


def patch_of(base: Base, variants: Mapping[int, Mapping[str, Tensor]]) -> Patch:
    arrays = {
        px: {key: value.detach().numpy() for key, value in tensors.items()}
        for px, tensors in variants.items()
    }
    config = PatchConfig(KINDS, statistics="reestimated")
    return Patch("task", base.sha256, config, CLASSES, arrays)


def assert_coded_without_moving(
    exporter: Exporter, patch: Patch, images: ImageDataset, steps: CodingSteps
) -> None:
    """Coded on ``steps``, no scale moves by more than float32's rounding and no bias by more than
    one of its own units; and something was coded."""
    file = exporter.quantize(patch, images)
    values = {px: file.values[px] for px in sorted(file.values, reverse=True)}
    codes = encode_values(values, len(patch.classes), exporter.table, steps)
    decoded = decode_values(codes, exporter.table)
    rows = CodedRows.of(exporter.table, len(patch.classes))
    kept = np.array(steps.scale)[rows.conv] != EXACT_SCALES
    for px, before in values.items():
        scales = [
            np.delete(one.weight_scale, rows.spare)[kept].astype(np.float64)
            for one in (before, decoded[px])
        ]
        # Three float32 roundings: the trained tensor, the slot's scale, the decoded one.
        np.testing.assert_allclose(scales[1], scales[0], rtol=3 * 2.0**-24 * 1.01)
        biases = [
            np.delete(one.bias, rows.spare)[kept].astype(np.int64) for one in (before, decoded[px])
        ]
        # The table's beta and slope are float32: 2^-24 of a bias, here below 2^20 units, and the
        # rounding to whole units on both sides.
        units = before.activation_scale[rows.x[kept]] * scales[0]
        assert (np.abs(biases[1] - biases[0]) <= 1)[~saturates(before, rows, kept, units)].all()
    first = codes.resolutions[max(values)]
    assert np.count_nonzero(first.scales[kept]) > 10
    assert np.count_nonzero(first.biases[kept]) > 10


def saturates(values: PatchValues, rows: CodedRows, kept: Flags, units: np.ndarray) -> Flags:
    """Rows that put out one value whatever comes in: quantising has cut their biases, to two output
    steps outside the range or more, so they are on no grid."""
    real = np.delete(values.bias, rows.spare)[kept] * units
    scale = values.activation_scale[rows.y[kept]]
    zero = values.activation_zero_point[rows.y[kept]].astype(np.int64)
    return (real < (-128 - zero - 1.5) * scale) | (real > (127 - zero + 1.5) * scale)


@pytest.mark.parametrize(
    ("kinds", "statistics", "keys"),
    [
        (("scale_bias", "head"), "reestimated", {"size_penalty": 0.1, "ema_decay": 0.9}),
        (KINDS, "frozen", {"share_scales": True}),
    ],
)
def test_a_patch_trained_through_rounding_is_coded_without_moving(
    base, digits, kinds, statistics, keys
):
    train, held = digits
    patch = train_patch(
        base,
        train,
        replace(ROUNDED, **keys),
        PatchConfig(kinds, statistics=statistics),
        validation=held,
        resolutions=SIDES,
        quiet=True,
    )
    exporter = Exporter.prepare(base, head_capacity=5, depthwise_slots="depthwise" in kinds)
    steps = training_steps(exporter.graph, exporter.table, STEP)
    assert_coded_without_moving(exporter, patch, train.subset(range(8)), steps)
    # The steps are found again in the values, so that export takes no finer ones.
    found = lossless_steps(exporter.quantize(patch, train.subset(range(8))).values, exporter.table)
    body = [k for k, one in enumerate(steps.scale) if one != EXACT_SCALES]
    # Scales or shifts that have not moved have no grid to find.
    assert all(found.scale[k] >= steps.scale[k] or found.scale[k] == 0 for k in body)
    assert all(found.bias[k] >= steps.bias[k] or found.bias[k] == MIN_BIAS_STEP for k in body)
    assert sum(found.bias[k] >= steps.bias[k] for k in body) >= 2
    assert sum(found.scale[k] >= steps.scale[k] for k in body) >= 2


@given(st.integers(0, 2**32 - 1), st.sampled_from((1 / 200, 1 / 16, 0.125, 0.3)))
@settings(max_examples=4, deadline=None)
def test_any_rounded_tensors_are_coded_without_moving(base, exporter, digits, seed, step):
    """Own statistics, own kernels, a hard sigmoid, explicit scales: not what training reaches in a
    few steps but anything near the base."""
    variants = {}
    for px in SIDES:
        variants[px] = moved_tensors(base, seed + px)
        compact(exporter, variants[px], rounding_step=step).finish(variants[px])
    steps = training_steps(exporter.graph, exporter.table, step)
    images = digits[0].subset(range(8))
    assert_coded_without_moving(exporter, patch_of(base, variants), images, steps)


@given(
    st.lists(st.floats(2.0**-20, 2.0**20), min_size=30, max_size=30),
    st.integers(0, 12),
)
@settings(max_examples=60, deadline=None)
def test_training_rounds_scales_to_the_bits_that_the_file_decodes(exporter, ratios, t):
    table = exporter.table
    steps = CodingSteps((t,) * len(table.convs), (0,) * len(table.convs))
    rows = CodedRows.of(table, table.layout.head_capacity)
    scale = np.resize(np.array(ratios), table.layout.rows) * table.scale
    grid = _Grid.of(table, steps, torch.device("cpu"))
    found = grid.round_scales(torch.tensor(scale)).numpy()
    codes = nearest_scales(scale.astype(np.float32), steps, rows)
    decoded = scales_from(codes, steps, rows)
    # A scale half way between two steps may go up here and down there by float32's rounding.
    exact = np.log2(scale / rows.scale) * 256 / 2.0**t
    clear = np.abs(np.abs(exact - np.floor(exact)) - 0.5) > 1e-3
    np.testing.assert_array_equal(found[clear], decoded[clear].astype(np.float64))


def test_the_forward_pass_is_that_of_the_finished_tensors_and_the_gradient_passes(base, exporter):
    tensors = moved_tensors(base)
    own = compact(exporter, tensors, rounding_step=STEP)
    model = PatchedModel(base)
    model.add_task("t", CLASSES, PatchConfig(KINDS, statistics="reestimated"), 16, start=tensors)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scores = compact_forward(model, tensors, own)(images)
    scores.square().sum().backward()
    for name in ("0.patch_scale", "0.patch_bias", "2.weight", "3.weight", "3.bias", "6.bias"):
        assert tensors[name].grad is not None, name
        assert tensors[name].grad.abs().max() > 0, name
    unrounded = model(images)
    assert not torch.equal(scores, unrounded)
    own.finish(tensors)
    model.add_task("r", CLASSES, PatchConfig(KINDS, statistics="reestimated"), 16, start=tensors)
    # The same bits go through the same operations.
    assert torch.equal(scores, model(images))
    before = {name: value.detach().clone() for name, value in tensors.items()}
    own.finish(tensors)
    for name, value in tensors.items():
        # Rounding again takes the same whole numbers: float32's rounding of a tensor is left.
        torch.testing.assert_close(value.detach(), before[name], rtol=2.0**-21, atol=2.0**-21)


def test_the_count_is_its_formula_and_its_gradient_pulls_to_the_base(base, exporter):
    tensors = moved_tensors(base)
    own = compact(exporter, tensors, size_penalty=0.5)
    used = own.forward_tensors(tensors)
    assert all(used[name] is value for name, value in tensors.items())  # a penalty rounds nothing
    step, bias, _ = row_steps(own.structure, tensors)
    table, total, count, row = exporter.table, 0.0, 0, 0
    for k, conv in enumerate(table.convs):
        rows = slice(row, row + conv.rows)
        row += conv.rows
        if own.steps.scale[k] == EXACT_SCALES:
            assert own.steps.bias[k] == EXACT_BIASES
            continue
        scale = step.detach().numpy()[rows]
        octaves = np.log2(scale / table.scale[rows])
        moved = bias.detach().numpy()[rows] - table.slope[rows] * scale - table.beta[rows]
        total += np.log2(1 + np.abs(octaves) * 256 / 2.0 ** own.steps.scale[k]).sum()
        total += np.log2(1 + np.abs(moved) / 2.0 ** own.steps.bias[k]).sum()
        count += 2 * conv.rows
    kernel = tensors["2.weight"].detach().numpy()
    codes = kernel / (np.abs(kernel).reshape(16, -1).max(1) / 127).reshape(-1, 1, 1, 1)
    base_codes = table.kernels[: kernel.size].reshape(16, 3, 3, 1).transpose(0, 3, 1, 2)
    total += np.log2(1 + np.abs(codes - base_codes)).sum()
    loss = own.size_loss(tensors)
    # Hundreds of terms below 16 in float64; the table's float32 values are the same on both sides,
    # and the result is a float32.
    np.testing.assert_allclose(loss.item(), 0.5 * total / (count + kernel.size), rtol=1e-6)
    loss.backward()
    state = base.module.state_dict()
    for name in ("3.weight", "6.weight"):
        gradient = tensors[name].grad
        assert gradient is not None
        variance = name.replace("weight", "running_var")
        ratio = (tensors[name] / state[name]).detach() * torch.sqrt(
            (state[variance] + 1e-5) / (tensors[variance] + 1e-5)
        )
        if name == "6.weight":  # the depthwise one's scale also follows its kernel's peak
            assert torch.equal(torch.sign(gradient), torch.sign(torch.log(ratio)))


def test_at_the_base_itself_the_penalty_is_nearly_zero_and_has_a_finite_gradient(base, exporter):
    tensors = {"6.weight": base.module.state_dict()["6.weight"].clone().requires_grad_(True)}
    own = compact(exporter, tensors, kinds=("scale_bias", "head"), size_penalty=1.0)
    loss = own.size_loss(tensors)
    loss.backward()
    # log2(1 + d) of d = 8 steps an octave * 2^-24 / ln 2, the table's float32 scale.
    assert loss.item() < 8 * 2.0**-24 / math.log(2) / math.log(2)
    assert torch.isfinite(tensors["6.weight"].grad).all()


def test_a_further_resolution_counts_from_the_first(base, exporter):
    tensors = moved_tensors(base)
    first = {name: value.detach().clone() for name, value in tensors.items()}
    kinds = ("scale_bias", "head")
    for name in ("2.weight",):  # kernels are counted from the base's
        tensors[name] = first[name] = base.module.state_dict()[name].clone()
    assert compact(exporter, tensors, first, kinds, size_penalty=1.0).size_loss(tensors) == 0.0
    assert compact(exporter, tensors, None, kinds, size_penalty=1.0).size_loss(tensors) > 1.0


def test_without_settings_or_anything_to_code_nothing_is_done(base, exporter):
    tensors = moved_tensors(base)
    config = PatchConfig(KINDS)
    assert make_compact(exporter.graph, tensors, TrainConfig(), config, 3) is None
    head = {"10.weight": tensors["10.weight"]}
    rounding = TrainConfig(rounding_step=0.5)
    assert make_compact(exporter.graph, head, rounding, config, 3) is None
    frozen = {name: value.detach() for name, value in tensors.items()}
    assert make_compact(exporter.graph, frozen, rounding, config, 3) is None


def test_steps_are_powers_of_two_below_what_was_asked_for(base, exporter):
    steps = training_steps(exporter.graph, exporter.table, 0.15)
    state = base.module.state_dict()
    share = 0.15 * math.log(2.0)
    spreads = [
        float(state["0.weight"].double().square().sum() / 16) ** 0.5,  # unit inputs, no norm
        float(state["3.weight"].double().square().mean()) ** 0.5,
        float(state["6.weight"].double().square().mean()) ** 0.5 / 6,  # y / 6 + 1/2, saturated
    ]
    assert steps.scale == (5, 5, 5, EXACT_SCALES)  # 2^5 / 256 is an eighth
    exponents = tuple(math.floor(math.log2(share * one)) for one in spreads)
    assert steps.bias == (*exponents, EXACT_BIASES)
    assert training_steps(exporter.graph, exporter.table, 100.0).scale[0] == 12
    assert training_steps(exporter.graph, exporter.table, 2.0**-20).scale[0] == 0


@pytest.mark.parametrize("value", [0.125, 0.2, 1.0, 3.0, 2.0**-140, 2.0**130])
def test_the_power_of_two_below_a_number_is_found_exactly(value):
    assert floor_log2(value) == min(max(math.floor(math.log2(value)), -126), 127)


def test_a_penalty_makes_the_file_smaller(base, digits):
    exporter = Exporter.prepare(base, head_capacity=3)
    steps = training_steps(exporter.graph, exporter.table, STEP)
    sizes = []
    for weight in (0.0, 1.0):
        config = replace(ROUNDED, size_penalty=weight)
        patch = train_patch(
            base, digits[0], config, validation=digits[1], resolutions=[16], quiet=True
        )
        file = exporter.quantize(patch, digits[0].subset(range(32)))
        parts = encode_payload(file, exporter.table, steps).part_bytes
        sizes.append(parts["scales"] + parts["biases"])
    assert sizes[1] < sizes[0]
