"""Small patches: exact coding, rounding and counting while training, steps under a budget."""

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged
from patchdeploy.errors import ConfigError, DataError, NegativeScaleError, UnknownLayerError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.compact import (
    Compact,
    compact_forward,
    make_compact,
    training_steps,
)
from patchdeploy.training.compact_code import (
    Steps,
    code_patch,
    coded_bytes,
    count_scale_steps,
    count_steps,
    decode_scales,
    decode_values,
    deflate,
    floor_log2,
    from_ordered,
    ordered,
    pack_planes,
    part_of,
    round_patch,
    uniform_steps,
)
from patchdeploy.training.compact_steps import choose_steps, measure_on

CONFIG = PatchConfig(("scale_bias", "depthwise", "head"))
CLASSES = ("a", "b", "c")
ROUNDED = TrainConfig(
    epochs=6, batch_size=16, learning_rate=0.05, device="cpu", rounding_step=0.125
)
KEPT = {"0.patch_scale", "0.patch_bias", "2.weight", "2.bias"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    """A convolution without normalisation, a normalised depthwise one, a head."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    norm = module[2]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.25, 4.0)
    return Base.from_module(module, Preprocessing((0.5,) * 3, (0.25,) * 3, 16), "small")


def make_patch(base: Base, *resolutions: int, seed: int = 0) -> Patch:
    """Every tensor moved from the base's, otherwise at each resolution."""
    state = base.module.state_dict()
    generator = np.random.default_rng(seed)

    def noise(shape: tuple[int, ...], spread: float) -> NDArray[np.float32]:
        return generator.normal(0, spread, shape).astype(np.float32)

    def variant() -> dict[str, NDArray[np.float32]]:
        gamma, beta, mean, var = (
            state[f"2.{name}"].numpy() for name in ("weight", "bias", "running_mean", "running_var")
        )
        return {
            "0.patch_scale": np.exp(noise((16,), 0.2)),
            "0.patch_bias": noise((16,), 0.2),
            "1.weight": state["1.weight"].numpy() + noise((16, 1, 3, 3), 0.05),
            "2.weight": gamma * np.exp(noise((16,), 0.2)),
            "2.bias": beta + noise((16,), 0.2),
            "2.running_mean": mean + noise((16,), 0.1),
            "2.running_var": var * np.exp(noise((16,), 0.1)),
            "6.weight": noise((3, 64), 0.05),
            "6.bias": noise((3,), 0.05),
        }

    variants = {px: variant() for px in resolutions or (16,)}
    return Patch("task", base.sha256, CONFIG, CLASSES, variants)


def tensors_of(patch: Patch, px: int = 16) -> dict[str, Tensor]:
    return {key: torch.tensor(value) for key, value in patch.tensors(px).items()}


def independent_decode(
    base: Base, name: str, number: NDArray[np.int64], exponent: int, px_reference: object = None
) -> NDArray[np.float32]:
    """The decoding rule again, in NumPy, as another reader would write it."""
    state = base.module.state_dict()
    if px_reference is not None:
        reference = np.asarray(px_reference, np.float32)
    elif name.startswith("6.") or name == "0.patch_bias":
        reference = np.zeros(number.shape, np.float32)
    elif name == "0.patch_scale":
        reference = np.ones(number.shape, np.float32)
    else:
        reference = state[name].numpy()
    if name in ("0.patch_scale", "2.weight", "2.running_var"):
        bits = reference.view(np.int32).astype(np.int64) + number * 2**exponent
        return bits.astype(np.int32).view(np.float32)
    return (reference.astype(np.float64) + number * 2.0**exponent).astype(np.float32)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
normal = st.floats(2.0**-100, 2.0**100, width=32)


@given(finite, finite)
def test_ordered_integers_stand_as_the_floats_do_and_come_back(one, other):
    pair = torch.tensor([one, other])
    numbers = ordered(pair)
    assert (int(numbers[0]) < int(numbers[1])) == (float(pair[0]) < float(pair[1]))
    assert torch.equal(from_ordered(numbers), pair)  # -0.0 equals the 0.0 that it becomes


@given(normal, normal, st.sampled_from((-1.0, 1.0)), st.integers(0, 30))
@example(2.0**-100, 1.0, 1.0, 30)  # one step down would be past zero
@example(2.0**-100, 1.0, -1.0, 30)
def test_a_scale_decodes_to_within_half_a_step_with_its_sign_and_again_to_itself(
    value, reference, sign, k
):
    pair = sign * torch.tensor([value, reference])
    exponent = torch.tensor(k)
    number = count_scale_steps(pair[:1], pair[1:], exponent)
    decoded = decode_scales(number, pair[1:], exponent)
    # The integers are exact: no tolerance. Both ends lie far inside the normal range for k <= 30
    # unless half a step, 2^29, reaches past it; then the bound of the range holds it.
    error = abs(int(ordered(decoded) - ordered(pair[:1])))
    assert error <= 2**k // 2 or abs(float(decoded)) in (2.0**-126, float(np.finfo("f").max))
    assert float(decoded) * sign > 0
    again = count_scale_steps(decoded, pair[1:], exponent)
    assert torch.equal(decode_scales(again, pair[1:], exponent), decoded)


@given(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32), st.integers(-16, 4))
def test_a_value_decodes_to_within_half_a_step_and_again_to_itself(value, reference, e):
    pair = torch.tensor([value, reference])
    step = torch.tensor(math.ldexp(1.0, e), dtype=torch.float64)
    decoded = decode_values(count_steps(pair[:1], pair[1:], step), pair[1:], step)
    # Half a step, the final rounding to float32 below 256 (2^-17), and float64's own, far smaller.
    assert abs(float(decoded) - float(pair[0])) <= 0.5 * float(step) + 2**-17 + 1e-12
    again = count_steps(decoded, pair[1:], step)
    # With steps of 2^-16 and more the rounding, at most 2^-18, never reaches another integer.
    assert torch.equal(decode_values(again, pair[1:], step), decoded)


def test_a_scale_of_the_base_that_is_zero_stays_codable():
    value, reference = torch.tensor([0.0, 0.25, -0.25]), torch.zeros(3)
    exponent = torch.tensor(20)
    decoded = decode_scales(count_scale_steps(value, reference, exponent), reference, exponent)
    # Half a step of 2^20 is 1/16 of an octave: 2^(1/16) - 1 < 0.045.
    np.testing.assert_allclose(decoded.numpy(), value.numpy(), rtol=0.045)


@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), max_size=50))
@settings(max_examples=60)
def test_planes_hold_the_integers_and_no_plane_of_zeros_above(numbers):
    array = np.array(numbers, np.int64)
    data = pack_planes(array)
    planes = len(data) // max(len(numbers), 1)
    raw = np.zeros((8, len(numbers)), np.uint8)
    raw[:planes] = np.frombuffer(data, np.uint8).reshape(planes, len(numbers))
    folded = np.ascontiguousarray(raw.T).view("<u8").reshape(-1).astype(np.int64)
    assert ((folded >> 1) ^ -(folded & 1)).tolist() == numbers
    assert planes == 0 or raw[planes - 1].any()


def test_small_integers_of_either_sign_take_one_plane():
    assert len(pack_planes(np.array([-128, -1, 0, 127]))) == 4
    assert len(pack_planes(np.array([-129, -1, 0, 127]))) == 8
    assert pack_planes(np.zeros(5, np.int64)) == b""


@pytest.mark.parametrize("repeated", [False, True])
def test_deflate_is_raw_rfc_1951_and_the_shortest_of_its_strategies(repeated):
    noise = np.random.default_rng(0).normal(0, 3, 400).astype(np.int8)
    data = (np.tile(noise, 10) if repeated else noise).tobytes()
    short = deflate(data)
    assert zlib.decompress(short, -15) == data
    plain = zlib.compressobj(9, zlib.DEFLATED, -15)
    assert len(short) <= len(plain.compress(data) + plain.flush())


@pytest.mark.parametrize("value", [0.125, 0.2, 1.0, 3.0, 2.0**-140, 2.0**130])
def test_the_power_of_two_below_a_number_is_found_exactly(value):
    assert floor_log2(value) == min(max(math.floor(math.log2(value)), -126), 127)


def test_another_reader_decodes_the_same_bits_from_the_integers(base):
    patch = make_patch(base, 16, 8)
    steps = uniform_steps(base, tensors_of(patch), 0.25, 0.125)
    coded = code_patch(base, patch, steps)
    for px in (16, 8):
        first = coded.patch.tensors(16)
        for name, number in coded.integers[px].items():
            decoded = independent_decode(
                base, name, number, steps.exponents[name], None if px == 16 else first[name]
            )
            np.testing.assert_array_equal(decoded, coded.patch.tensors(px)[name])
            assert not np.array_equal(decoded, patch.tensors(px)[name])
            assert number.any()


def test_a_rounded_patch_is_within_half_a_step_and_is_coded_to_itself(base):
    patch = make_patch(base)
    steps = uniform_steps(base, tensors_of(patch), 0.25, 0.125)
    rounded = round_patch(base, patch, steps)
    for name, value in rounded.tensors(16).items():
        before, exponent = patch.tensors(16)[name], steps.exponents[name]
        if name in ("0.patch_scale", "2.weight", "2.running_var"):
            # Half a step is 1/8 octave in bit patterns; within an octave they are linear, and the
            # value moves by at most half a step of the lower end: a share of 1/8.
            np.testing.assert_allclose(value, before, rtol=1 / 8)
        else:
            # and the rounding to float32 of values below 4.
            np.testing.assert_allclose(value, before, atol=2.0**exponent / 2 + 2**-23, rtol=0)
    again = code_patch(base, rounded, steps)
    for name, value in rounded.tensors(16).items():
        np.testing.assert_array_equal(again.patch.tensors(16)[name], value)
    assert rounded.classes == patch.classes
    assert rounded.config == patch.config


def test_tensors_without_a_step_are_coded_exactly(base):
    patch = make_patch(base, 16, 8)
    variant = {k: v.copy() for k, v in patch.variants[16].items()}
    variant["2.weight"][0] *= -1.0  # even with another sign than the base's
    patch = replace(patch, variants={**patch.variants, 16: variant})
    coded = code_patch(base, patch, Steps())
    for px in (16, 8):
        for name, value in patch.tensors(px).items():
            np.testing.assert_array_equal(coded.patch.tensors(px)[name], value)


def test_bytes_are_counted_by_part_and_fall_with_the_step(base):
    patch = make_patch(base)
    tensors = tensors_of(patch)
    sizes = [coded_bytes(base, patch, uniform_steps(base, tensors, s)) for s in (1 / 32, 1 / 4)]
    for counts in sizes:
        parts = [counts[k] for k in ("gamma", "beta", "depthwise", "statistics", "head", "steps")]
        assert sum(parts) == counts["total"]
        assert counts["steps"] == 9
    for part in ("gamma", "beta", "depthwise", "statistics"):
        assert sizes[0][part] > sizes[1][part]
    assert sizes[0]["head"] == sizes[1]["head"]  # exact in both


def test_a_resolution_like_the_first_costs_next_to_nothing(base):
    one = make_patch(base)
    both = replace(one, variants={16: one.variants[16], 8: one.variants[16]})
    steps = uniform_steps(base, tensors_of(one), 1 / 64, 1 / 64)
    alone, twice = (coded_bytes(base, patch, steps) for patch in (one, both))
    apart = coded_bytes(base, make_patch(base, 16, 8), steps)
    # The rounded values of the first are its reference: up to one step away, so few distinct
    # integers, where another variant takes as much as the first did.
    assert twice["total"] - alone["total"] < 0.5 * (apart["total"] - alone["total"])


def test_steps_are_relative_to_what_a_layer_puts_out(base):
    steps = uniform_steps(base, tensors_of(make_patch(base)), 0.125, 0.5).exponents
    state = base.module.state_dict()
    share = 0.125 * math.log(2)  # what an eighth of an octave is of a scale
    gamma = float(state["2.weight"].double().square().mean().sqrt())
    assert steps["2.weight"] == steps["0.patch_scale"] == steps["2.running_var"] == 20
    assert steps["2.bias"] == math.floor(math.log2(share * gamma))
    assert steps["0.patch_bias"] == math.floor(math.log2(share)) == -4
    spread = float(state["2.running_var"].double().mean().sqrt())
    assert steps["2.running_mean"] == math.floor(math.log2(share * spread))
    kernel = float(state["1.weight"].double().square().mean().sqrt())
    assert steps["1.weight"] == math.floor(math.log2(share * kernel))


def test_every_tensor_has_its_part(base):
    parts = {name: part_of(base, name) for name in make_patch(base).tensors(16)}
    assert parts == {
        "0.patch_scale": "gamma",
        "0.patch_bias": "beta",
        "1.weight": "depthwise",
        "2.weight": "gamma",
        "2.bias": "beta",
        "2.running_mean": "statistics",
        "2.running_var": "statistics",
        "6.weight": "head",
        "6.bias": "head",
    }


def refusal(kind: type[Exception], call: object) -> str:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def test_bad_input_is_refused_with_value_rule_and_remedy(base):
    patch = make_patch(base)
    flipped = {**patch.variants[16], "2.weight": -patch.variants[16]["2.weight"]}
    turned = replace(patch, variants={16: flipped})
    assert refusal(
        NegativeScaleError, lambda: code_patch(base, turned, Steps({"2.weight": 20}))
    ) == (
        "tensor '2.weight': 16 scales have another sign than the base's; a coded scale keeps its "
        "sign; train with the sign kept, or give this tensor no step"
    )
    assert refusal(ConfigError, lambda: code_patch(base, patch, Steps({"2.bias": -40}))) == (
        "tensor '2.bias': step 2^-40 makes integers of more than 31 bits; a reader holds 31; take "
        "a larger step, or none to code it exactly"
    )
    assert refusal(ConfigError, lambda: code_patch(base, patch, Steps({"2.weight": 31}))) == (
        "tensor '2.weight': step exponent 31; it must be in 0..30; take another step, or none to "
        "code it exactly"
    )
    strange = replace(patch, variants={16: {"9.weight": np.ones(3, np.float32)}})
    assert refusal(UnknownLayerError, lambda: code_patch(base, strange, Steps())) == (
        "tensor '9.weight' is not in base 'small'; a patch is coded against the base that it was "
        "trained on; use that base"
    )
    assert refusal(ConfigError, lambda: uniform_steps(base, {}, 0.0)) == (
        "coding step 0.0, head step 0.0; a step must be positive, the head's may be 0; an eighth "
        "is usual"
    )
    digits, _ = load_packaged("optical_digits")
    assert refusal(DataError, lambda: measure_on(base, digits.subset(range(0)))) == (
        f"{digits.name}: 0 images; accuracy needs at least 1; add some"
    )


def trained_tensors(base: Base) -> dict[str, Tensor]:
    tensors = tensors_of(make_patch(base))
    for name in KEPT:
        tensors[name].requires_grad_(True)
    return tensors


def compact(base: Base, tensors: dict[str, Tensor], **keys: float) -> Compact:
    found = make_compact(base, tensors, TrainConfig(**keys))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_forward_pass_has_the_bits_that_the_coder_decodes_and_the_gradient_passes(base):
    tensors = trained_tensors(base)
    own = compact(base, tensors, rounding_step=0.25)
    used = own.forward_tensors(tensors)
    coded = round_patch(
        base,
        Patch(
            "t",
            base.sha256,
            CONFIG,
            CLASSES,
            {16: {k: v.detach().numpy() for k, v in tensors.items()}},
        ),
        training_steps(base, {k: tensors[k] for k in KEPT}, TrainConfig(rounding_step=0.25)),
    ).tensors(16)
    for name, value in used.items():
        np.testing.assert_array_equal(value.detach().numpy(), coded[name])
        assert (value is tensors[name]) == (name not in KEPT)
    weights = {name: torch.randn(tensors[name].shape) for name in KEPT}
    sum((used[name] * weights[name]).sum() for name in KEPT).backward()  # type: ignore[union-attr]
    for name in KEPT:
        assert torch.equal(tensors[name].grad, weights[name])


def test_a_model_that_trains_through_rounding_runs_the_rounded_tensors(base):
    tensors = trained_tensors(base)
    own = compact(base, tensors, rounding_step=0.25)
    model = PatchedModel(base)
    model.add_task("t", CLASSES, CONFIG, 16, start=tensors)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scores = compact_forward(model, tensors, own)(images)
    own.finish(tensors)
    model.add_task("rounded", CLASSES, CONFIG, 16, start=tensors)
    rounded = model(images)
    # The same bits go through the same operations.
    assert torch.equal(scores, rounded)
    model.set_active_task("t")
    assert not torch.equal(model(images), rounded)


def test_a_further_resolution_counts_from_the_first(base):
    tensors = trained_tensors(base)
    first = {name: value.detach().clone() for name, value in tensors.items()}
    own = make_compact(base, tensors, TrainConfig(size_penalty=1.0), first)
    assert own is not None
    assert own.size_loss(tensors).item() == 0.0
    assert compact(base, tensors, size_penalty=1.0).size_loss(tensors).item() > 1.0


def test_the_count_is_its_formula_and_its_gradient_pulls_to_the_base(base):
    tensors = trained_tensors(base)
    own = compact(base, tensors, size_penalty=0.5)
    used = own.forward_tensors(tensors)
    assert all(used[name] is value for name, value in tensors.items())  # a penalty rounds nothing
    state, total, count = base.module.state_dict(), 0.0, 0
    references = {
        "0.patch_scale": np.ones(16),
        "0.patch_bias": np.zeros(16),
        "2.weight": state["2.weight"].numpy().astype(np.float64),
        "2.bias": state["2.bias"].numpy().astype(np.float64),
    }
    for name, reference in references.items():
        value = tensors[name].detach().numpy().astype(np.float64)
        if name in ("0.patch_scale", "2.weight"):
            away = np.abs(np.log2(value / reference)) / 0.125
        else:
            away = np.abs(value - reference) / 2.0 ** own.steps.exponents[name]
        total, count = total + np.log2(1 + away).sum(), count + value.size
    loss = own.size_loss(tensors)
    # Means of 64 float32 terms below 8 from logarithms of a few ulp: 1e-5 relative is 80 ulp.
    np.testing.assert_allclose(loss.item(), 0.5 * total / count, rtol=1e-5)
    loss.backward()
    for name, reference in references.items():
        gradient = tensors[name].grad
        assert gradient is not None
        towards = np.sign(tensors[name].detach().numpy() - reference)
        np.testing.assert_array_equal(np.sign(gradient.numpy()), towards)


def test_at_the_base_itself_the_penalty_is_zero_and_has_a_finite_gradient(base):
    tensors = {"2.weight": base.module.state_dict()["2.weight"].clone().requires_grad_(True)}
    loss = compact(base, tensors, size_penalty=1.0).size_loss(tensors)
    loss.backward()
    assert loss.item() == 0.0
    assert tensors["2.weight"].grad is not None
    assert tensors["2.weight"].grad.abs().max() == 0.0


def test_without_settings_or_anything_to_code_nothing_is_done(base):
    tensors = trained_tensors(base)
    assert make_compact(base, tensors, TrainConfig()) is None
    head = {"6.weight": tensors["6.weight"].requires_grad_(True)}
    assert make_compact(base, head, TrainConfig(rounding_step=0.5)) is None


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    """240 and 120 real scans of handwritten digits, three classes."""
    train, test = load_packaged("optical_digits")
    kept = [
        part.subset([k for k, label in enumerate(part.labels) if label < 3])
        for part in (train, test)
    ]
    names = train.classes[:3]
    train, test = (replace(part, classes=names) for part in kept)
    return train.subset(range(240)), test.subset(range(120))


@pytest.fixture(scope="module")
def trained(base: Base, digits: tuple[ImageDataset, ImageDataset]) -> Patch:
    return train_patch(
        base, digits[0], ROUNDED, validation=digits[1], resolutions=(12, 16), quiet=True
    )


def test_a_patch_trained_through_rounding_is_coded_without_any_loss(base, trained):
    steps = training_steps(base, tensors_of(trained), ROUNDED)
    coded = code_patch(base, trained, steps)
    moved = 0
    for px in (12, 16):
        for name, value in trained.tensors(px).items():
            np.testing.assert_array_equal(coded.patch.tensors(px)[name], value)
            moved += int(np.count_nonzero(coded.integers[px][name])) if name in KEPT else 0
    assert moved > 20


def test_a_penalty_makes_the_patch_smaller(base, digits, trained):
    config = replace(ROUNDED, size_penalty=1.0)
    small = train_patch(
        base, digits[0], config, validation=digits[1], resolutions=(12, 16), quiet=True
    )
    steps = training_steps(base, tensors_of(trained), config)
    sizes = [coded_bytes(base, patch, steps) for patch in (small, trained)]
    assert sizes[0]["gamma"] + sizes[0]["beta"] < sizes[1]["gamma"] + sizes[1]["beta"]


def test_steps_grow_where_it_does_no_harm_and_stop_where_it_does(base):
    """A measure made by hand: accuracy falls when one tensor is off by more than a bound."""
    patch = make_patch(base)
    exact = patch.tensors(16)["2.bias"]

    def measure(one: Patch) -> tuple[float, float]:
        error = float(np.abs(one.tensors(16)["2.bias"] - exact).max())
        return (0.9 if error < 0.05 else 0.6), error

    own = {key: value for key, value in tensors_of(patch).items() if not key.startswith("6.")}
    start = uniform_steps(base, own, 1 / 64)
    assert measure(round_patch(base, patch, start))[0] == 0.9
    steps = choose_steps(base, patch, measure, 0.8, start, rounds=4)
    assert measure(round_patch(base, patch, steps))[0] == 0.9
    assert measure(round_patch(base, patch, steps.coarser(["2.bias"])))[0] == 0.6
    assert start.exponents["2.bias"] < steps.exponents["2.bias"] < start.exponents["2.bias"] + 4
    for name in own.keys() - {"2.bias"}:
        assert steps.exponents[name] == start.exponents[name] + 4
    assert coded_bytes(base, patch, steps)["total"] < coded_bytes(base, patch, start)["total"]


def test_tensors_of_a_group_grow_together(base):
    patch = make_patch(base)
    start = uniform_steps(base, tensors_of(patch), 1 / 64, 1 / 64)
    groups = [["2.weight", "2.bias"], ["1.weight"]]
    steps = choose_steps(base, patch, lambda _: (1.0, 0.5), 1.0, start, groups=groups, rounds=2)
    grown = {name: steps.exponents[name] - start.exponents[name] for name in steps.exponents}
    assert {name for name, by in grown.items() if by} == {"2.weight", "2.bias", "1.weight"}
    assert set(grown.values()) == {0, 2}


def test_chosen_steps_keep_the_accuracy_that_was_asked_for_on_real_images(base, digits, trained):
    measure = measure_on(base, digits[1])
    start = uniform_steps(base, tensors_of(trained), 1 / 8)
    top1, nats = measure(round_patch(base, trained, start))
    assert 0.5 < top1 < 1.0  # of three classes: it has learned, and not all
    assert nats > 0
    steps = choose_steps(base, trained, measure, top1 - 0.02, start, rounds=3)
    assert measure(round_patch(base, trained, steps))[0] >= top1 - 0.02
    assert steps != start


def test_a_floor_above_the_accuracy_at_the_start_is_refused(base, digits, trained):
    start = uniform_steps(base, tensors_of(trained), 1 / 16)
    measure = lambda patch: (0.75, 1.0)  # noqa: E731
    assert refusal(ConfigError, lambda: choose_steps(base, trained, measure, 0.8, start)) == (
        "steps to begin with leave a validation accuracy of 0.7500; it must be at least 0.8000; "
        "begin with finer steps or allow a lower accuracy"
    )
