"""A scale and a bias for each group of images: formula, gradients, blocks, limits; moments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from patchdeploy.patched_model.affine import BLOCK_BYTES, scale_groups, segment_moments

pytestmark = pytest.mark.usefixtures("one_thread")


@given(
    groups=st.integers(1, 4),
    per_group=st.integers(1, 3),
    channels=st.integers(1, 5),
    side=st.integers(1, 4),
    last=st.booleans(),
    limits=st.sampled_from([None, (0.0, 6.0), (0.0, math.inf), (-0.3, 0.7)]),
)
@settings(max_examples=60, deadline=None)
def test_the_scaling_and_its_gradients_follow_their_formula(
    groups: int,
    per_group: int,
    channels: int,
    side: int,
    last: bool,
    limits: tuple[float, float] | None,
) -> None:
    generator = torch.Generator().manual_seed(groups + 10 * per_group + 100 * channels)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    x = draw(groups * per_group, channels, side, side)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    scale, shift = draw(groups, channels).requires_grad_(), draw(groups, channels).requires_grad_()
    found = scale_groups(x, scale, shift, limits)
    assert found.stride() == x.stride()
    each = torch.arange(groups).repeat_interleave(per_group)
    expected = x * scale[each][:, :, None, None] + shift[each][:, :, None, None]
    if limits is not None:
        expected = nn.Hardtanh(*limits)(expected)
    upstream = draw(*x.shape)
    # float64: at most 48 terms of magnitude below 20, so two orders differ by less than
    # 2 * 48 * 2**-53 * 48 * 20 = 1e-11.
    assert torch.allclose(found, expected, rtol=0, atol=1e-11)
    inputs = (x, scale, shift)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rows", [2, 4, 8])
@pytest.mark.parametrize("last", [True, False])
def test_activations_larger_than_a_block_give_the_same_gradients(rows: int, last: bool) -> None:
    """8 images of 1 MB: groups of 4 are split into images, groups of 2 and 1 go block by block."""
    shape = (8, 4, 256, 256)
    assert 4 * 4 * 256 * 256 * 2 <= BLOCK_BYTES < 4 * 4 * 256 * 256 * 4
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(shape, generator=generator)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    scale = torch.randn(rows, 4, generator=generator).requires_grad_()
    shift = torch.randn(rows, 4, generator=generator).requires_grad_()
    upstream = torch.randn(shape, generator=generator)
    found = torch.autograd.grad(scale_groups(x, scale, shift), (x, scale, shift), upstream)
    wide = scale.detach().repeat_interleave(8 // rows, 0)[:, :, None, None]
    sums = [one.double().sum((2, 3)) for one in (upstream * x.detach(), upstream)]
    expected = [one.reshape(rows, 8 // rows, 4).sum(1) for one in sums]
    assert torch.equal(found[0], upstream * wide)
    for one, other in zip(found[1:], expected, strict=True):
        # Sums of n <= 262,144 terms of mean magnitude below 1; PyTorch adds in blocks and a
        # cascade, so the error is at most about log2(n) u n = 18 * 2**-24 * 262,144 = 0.28, and
        # a block too many or too few is off by about sqrt(65,536) = 256 / 8.
        assert float((one - other).abs().max()) < 0.28


@pytest.mark.parametrize("rows", [2, 4, 8])
@pytest.mark.parametrize("side", [16, 256])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.7)])
def test_limits_give_the_bits_of_the_activation_function_after_the_scaling(
    rows: int, side: int, activation: nn.Module
) -> None:
    """In one block and in several; a channel of zeros lies on a limit, where the gradient is 0."""
    generator = torch.Generator().manual_seed(rows)
    drawn = torch.randn(8, 4, side, side, generator=generator)
    x = (4 * drawn).contiguous(memory_format=torch.channels_last).requires_grad_()
    scale = torch.randn(rows, 4, generator=generator)
    shift = torch.randn(rows, 4, generator=generator)
    scale[:, 1], shift[:, 1] = 0.0, 0.0
    scale, shift = scale.requires_grad_(), shift.requires_grad_()
    limits = (0.0, math.inf)
    if isinstance(activation, nn.Hardtanh):
        limits = activation.min_val, activation.max_val
    found, expected = (
        scale_groups(x, scale, shift, limits),
        activation(scale_groups(x, scale, shift)),
    )
    assert torch.equal(found, expected)
    upstream = torch.randn(x.shape, generator=generator)
    for one, other in zip(
        torch.autograd.grad(found, (x, scale, shift), upstream),
        torch.autograd.grad(expected, (x, scale, shift), upstream),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_first_layer_activations_ask_for_no_gradient() -> None:
    scale, shift = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    x = torch.randn(4, 3, 5, 5)
    scale_groups(x, scale, shift).sum().backward()
    expected = x.reshape(2, 2, 3, 25).sum((1, 3))
    # 50 terms below 5 in magnitude: 2 * 50 * u * 250 = 1.5e-3 at the very most.
    assert scale.grad is not None
    assert torch.allclose(scale.grad, expected, rtol=0, atol=1.5e-3)


def test_half_precision_is_scaled_in_float32() -> None:
    x = torch.randn(4, 3, 5, 5).to(torch.bfloat16)
    scale, shift = torch.randn(2, 3), torch.randn(2, 3)
    found = scale_groups(x, scale, shift)
    assert found.dtype == torch.bfloat16
    wide = scale_groups(x.float(), scale, shift)
    assert torch.equal(found, wide.to(torch.bfloat16))
    limited = scale_groups(x, scale, shift, (0.0, 0.7))
    assert torch.equal(limited, scale_groups(x.float(), scale, shift, (0.0, 0.7)).bfloat16())


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_moments_are_those_of_each_segment(counts: list[int], seed: int) -> None:
    x = torch.randn(sum(counts), 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    mean, var = segment_moments(x, counts)
    for k, part in enumerate(x.split(counts)):
        wide = part.double().transpose(0, 1).reshape(3, -1)
        # At most 16 values below 6: the mean within 2 * 16 u * 6 = 1.2e-5, the variance within
        # 36 times 2 * 18 u = 7.8e-5.
        assert torch.allclose(mean[k].double(), wide.mean(1), rtol=0, atol=1.2e-5)
        assert torch.allclose(var[k].double(), wide.var(1, correction=0), rtol=0, atol=7.8e-5)
