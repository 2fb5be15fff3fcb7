"""The moving average: its formula, its swap, its bounds, and going on from its state."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patchdeploy.training.ema import WARM_UP, Ema


def tensors_and_steps(
    steps: int, seed: int = 0
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Two tensors, and what training makes of them at each step."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gamma": (7,), "head": (3, 5)}
    values = [
        {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        for _ in range(steps + 1)
    ]
    return {key: value.clone() for key, value in values[0].items()}, values[1:]


def step(ema: Ema, values: dict[str, Tensor]) -> None:
    for key, value in values.items():
        ema.tensors[key].copy_(value)
    ema.update()


def test_the_average_follows_its_formula_with_the_warm_up_of_the_decay():
    tensors, later = tensors_and_steps(30)
    expected = {key: value.numpy().astype(np.float64) for key, value in tensors.items()}
    ema = Ema(tensors, 0.7)
    for t, values in enumerate(later):
        step(ema, values)
        decay = min(0.7, (1 + t) / (WARM_UP + t))
        for key, value in values.items():
            expected[key] = decay * expected[key] + (1 - decay) * value.numpy()
    assert (1 + 29) / (WARM_UP + 29) > 0.7  # the last steps run at the full decay
    for key, value in ema.average().items():
        # Values are below 4. A lerp rounds three times: 3 * 2^-24 * 8 < 2e-6 a step; at d = 0.7
        # a step's error lives on as a sum of 1 / (1 - 0.7) < 4 steps.
        np.testing.assert_allclose(value.numpy(), expected[key], atol=8e-6, rtol=0)


def test_inside_the_swap_the_tensors_are_the_average_and_outside_their_own_bits():
    tensors, later = tensors_and_steps(5)
    ema = Ema(tensors, 0.9)
    for values in later:
        step(ema, values)
    same = tensors["gamma"]
    with ema.averaged():
        assert same is tensors["gamma"]
        for key, value in ema.average().items():
            assert torch.equal(tensors[key], value)
            assert not torch.equal(value, later[-1][key])
    for key, value in later[-1].items():
        assert torch.equal(tensors[key], value)


def test_an_error_inside_the_swap_leaves_the_tensors_their_own_bits():
    tensors, later = tensors_and_steps(2)
    ema = Ema(tensors, 0.9)
    for values in later:
        step(ema, values)
    with pytest.raises(ZeroDivisionError), ema.averaged():
        raise ZeroDivisionError
    for key, value in later[-1].items():
        assert torch.equal(tensors[key], value)


def test_a_tensor_that_needs_gradients_is_averaged_and_keeps_needing_them():
    tensor = torch.ones(3, requires_grad=True)
    ema = Ema({"gamma": tensor}, 0.9)
    with torch.no_grad():
        tensor.mul_(2.0)
    ema.update()
    with ema.averaged():
        assert tensor.requires_grad
        # d = min(0.9, 1 / 10): 0.1 * 1 + 0.9 * 2, and lerp rounds to half an ulp three times.
        np.testing.assert_allclose(tensor.detach().numpy(), 1.9, rtol=4 * 2**-24)
    assert tensor.requires_grad
    assert tensor.tolist() == [2.0] * 3


def test_going_on_from_a_state_gives_the_same_bits_as_not_stopping():
    tensors, later = tensors_and_steps(12)
    whole = Ema(tensors, 0.95)
    for values in later[:6]:
        step(whole, values)
    kept = whole.state_dict()
    other, _ = tensors_and_steps(0, seed=9)
    resumed = Ema(other, 0.95)
    resumed.load_state_dict(kept)
    for values in later[6:]:
        step(whole, values)
        step(resumed, values)
    for key, value in whole.average().items():
        assert torch.equal(resumed.average()[key], value)
        assert not torch.equal(value, kept["average"][key])  # a state is a copy


def test_a_state_of_another_form_is_refused():
    ema = Ema({"gamma": torch.ones(2)}, 0.5)
    with pytest.raises(
        TypeError, match=r"^an average's state holds a number of steps and tensors by name$"
    ):
        ema.load_state_dict({"steps": {}, "average": {}})


@given(
    st.floats(2**-10, 2.0, width=32),
    st.lists(st.floats(0.0, 2.0, width=32), min_size=1, max_size=20),
    st.floats(0.01, 0.999),
    st.sampled_from((-1.0, 1.0)),
)
def test_an_average_of_scales_within_their_bound_is_within_it_to_the_last_bit(
    bound, excess, decay, sign
):
    """The signs of the base's int8 rows depend on it: no tolerance."""
    scale = torch.tensor([bound]) + torch.tensor([excess[0]])
    tensors = {"gamma": sign * scale}
    ema = Ema(tensors, decay)
    for more in excess:
        step(ema, {"gamma": sign * (torch.tensor([bound]) + torch.tensor([more]))})
        assert float((sign * ema.average()["gamma"])[0]) >= float(torch.tensor(bound))
