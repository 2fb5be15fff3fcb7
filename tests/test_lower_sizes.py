"""Forward passes that look at their input's size: right at each resolution, or refused by name."""

import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lower_cases import EXACT, BaseUnderTest, noise_images, settle_statistics, unfolded_logits
from torch import Tensor, nn

import patchdeploy.fold as fold_module
import patchdeploy.lower.passes as passes
from patchdeploy.errors import (
    LoweringMismatchError,
    UnknownResolutionError,
    UnsupportedOperatorError,
)
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import fold_patch
from patchdeploy.graph import Graph, same_padding
from patchdeploy.lower import compare_patch, lower_base
from patchdeploy.lower.compare import compare_graph, make_pictures
from patchdeploy.lower.rules import RULES
from patchdeploy.lower.sizes import probe_sides
from patchdeploy.patch import Patch, PatchConfig

Body = Callable[["Net", Tensor], Tensor]
CALLS = itertools.count()


class Net(nn.Module):
    """A stem of stride 4, a body under test, a head; maps are a quarter of the image."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.conv = nn.Conv2d(8, 8, 3, 2)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, F.relu(self.down(F.relu(self.norm(self.stem(x))))))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1) if y.dim() == 4 else y)


def net(body: Body, px: int = 32) -> BaseUnderTest:
    torch.manual_seed(3)
    module = Net(body)
    settle_statistics(module, px)
    return BaseUnderTest(module.requires_grad_(False), EXACT, "head")


def _same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's SAME padding, as in timm's tf_* networks."""
    amounts = []
    for size, stride, kernel in zip(x.shape[2:], layer.stride, layer.kernel_size, strict=True):
        need = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        amounts += [need - need // 2, need // 2]
    return layer(F.pad(x, amounts[::-1]))


def _to_multiple(m: Net, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return m.conv(F.pad(x, (0, -width % 4, 0, -height % 4)))


def _cut(m: Net, x: Tensor) -> Tensor:
    side = x.shape[-1] // 4 * 4
    return m.conv(x[:, :, :side, :side])


def _resized(m: Net, x: Tensor) -> Tensor:
    return m.conv(x if x.shape[-1] == 8 else F.interpolate(x, size=(8, 8)))


RIGHT: dict[str, tuple[Body, tuple[int, ...]]] = {
    "mean over the whole map": (lambda m, x: F.avg_pool2d(x, x.shape[-1]).flatten(1), (32, 48, 20)),
    "mean over both sides": (lambda m, x: F.avg_pool2d(x, x.shape[2:]).flatten(1), (64, 32)),
    "a mean window of 8 that is the whole map at 32 px alone": (
        lambda m, x: F.avg_pool2d(x, 8).flatten(1), (32, 40, 60)),
    "mean with the side as divisor": (
        lambda m, x: F.avg_pool2d(x, x.shape[-1], divisor_override=x.shape[-1] ** 2), (32, 44)),
    "SAME padding": (lambda m, x: _same(m.conv, x), (32, 48, 36, 28)),
    "SAME padding twice": (lambda m, x: _same(m.conv, _same(m.conv, x)), (32, 64, 40)),
    "SAME padding before a maximum": (
        lambda m, x: F.max_pool2d(F.pad(F.relu(m.conv(x)), (0, x.shape[-1] % 2) * 2), 2, 2),
        (32, 48)),
    "a cut that cuts nothing": (_cut, (32, 48, 64)),
    "padding to a multiple, all multiples": (_to_multiple, (32, 48, 64)),
    "padding to a multiple at one size that is none": (_to_multiple, (36,)),
    "a resize at the size that it makes": (_resized, (32,)),
    "a factor at one size": (lambda m, x: m.conv(x * (8 / x.shape[-1])), (48,)),
    "a branch that both sizes take": (
        lambda m, x: m.conv(x) if x.shape[-1] > 6 else x, (32, 48)),
}  # fmt: skip


def module_and_graph(base: BaseUnderTest, graph: Graph, px: int) -> tuple[np.ndarray, np.ndarray]:
    """Float64 scores of both on noise."""
    images = noise_images(3, px, px)
    return unfolded_logits(base, {}, images), FloatRunner(fold_patch(graph), "float64")(images)


def assert_equal_at(base: BaseUnderTest, graph: Graph, px: int) -> None:
    expected, found = module_and_graph(base, graph, px)
    # Constants (1/64, 1/121 ...) are rounded to float32, 2^-24 each, in sums of 121 terms.
    bound = 121 * 2.0**-24 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    assert np.ptp(expected, axis=0).max() > 10 * bound


@pytest.mark.parametrize("form", RIGHT)
def test_a_graph_is_the_module_at_every_resolution_that_it_is_lowered_for(form):
    body, sides = RIGHT[form]
    base = net(body)
    graph = lower_base(base, sides)
    for px in sides:
        assert_equal_at(base, graph, px)


@pytest.mark.parametrize("form", RIGHT)
def test_at_any_other_size_a_graph_is_the_module_or_says_that_it_is_not(form):
    body, sides = RIGHT[form]
    base = net(body)
    graph = lower_base(base, sides)
    for px in {*range(29, 70, 8), 37} - set(sides):
        if graph.limit is not None:
            with pytest.raises(UnknownResolutionError, match=re.escape(graph.limit.reason)):
                FloatRunner(fold_patch(graph))(noise_images(1, px, px))
            continue
        try:
            expected, found = module_and_graph(base, graph, px)
        except RuntimeError:
            continue  # the module itself does not run there
        assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected, axis=0).max(), px


REFUSED: dict[str, tuple[Body, tuple[int, ...], str]] = {
    "a factor": (
        lambda m, x: m.conv(x * (8 / x.shape[-1])), (32, 48),
        "operator 'affine': other constants at 32 px than at 48 px"),
    "a term": (
        lambda m, x: m.conv(x + x.shape[-1] / 16), (32, 36),
        "operator 'affine': other constants at 32 px than at 36 px"),
    "a branch": (
        lambda m, x: m.conv(x) if x.shape[-1] > 8 else x, (32, 48),
        "operator 'global_average': GlobalAvgPool at 32 px, Conv2d 'conv' in its place at 48 px"),
    "a maximum over the whole map": (
        lambda m, x: F.max_pool2d(x, x.shape[-1]), (32, 48),
        r"operator 'max_pool': kernel (8, 8), stride (8, 8) at 32 px, kernel (12, 12)"),
    "a window of half the map": (
        lambda m, x: F.avg_pool2d(9 * x, x.shape[-1] // 2).sigmoid(), (32, 48),
        "operator 'average': kernel (4, 4), stride (4, 4) at 32 px, kernel (6, 6)"),
    "a stride": (
        lambda m, x: F.conv2d(x, m.conv.weight, stride=x.shape[-1] // 8), (32, 64),
        "operator 'conv': stride (1, 1) at 32 px, stride (2, 2) at 64 px"),
    "a dilation": (
        lambda m, x: F.conv2d(x, m.conv.weight, dilation=x.shape[-1] // 8), (32, 64),
        "operator 'conv': dilation (1, 1) at 32 px, dilation (2, 2) at 64 px"),
    "padding to a multiple": (
        _to_multiple, (32, 36),
        "operator 'conv': zeros at (top, bottom, left, right): (0, 0, 0, 0) at 32 px, "
        "(0, 3, 0, 3) at 36 px"),
    "a cut": (_cut, (32, 44), "at 44 px, aten.slice.Tensor at the root Net: it cuts a map"),
    "a resize": (_resized, (32, 48), "at 48 px, aten.upsample_nearest2d.vec at the root Net"),
    "a resize in the middle of three": (_resized, (48, 32, 24), "aten.upsample_nearest2d.vec"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_no_one_graph_does_is_refused_with_the_operator_and_the_resolutions(form):
    body, sides, message = REFUSED[form]
    with pytest.raises(UnsupportedOperatorError, match=re.escape(message)) as caught:
        lower_base(net(body), sides)
    if isinstance(caught.value, LoweringMismatchError):
        assert str(caught.value).endswith(
            "one graph of shared kernels serves every resolution of a bundle; export each "
            "resolution as a bundle of its own, or rewrite the layer so that it does the same at "
            "every size"
        )


UNSEEN: dict[str, tuple[Body, str]] = {
    "a random factor": (
        lambda m, x: m.conv(x * float(np.random.default_rng().uniform(0.5, 2))),
        "the module itself gives other scores when it runs again"),
    "a counter of calls": (
        lambda m, x: m.conv(x * (1 + next(CALLS) % 7)),
        "the module itself gives other scores when it runs again"),
    "batch size": (
        lambda m, x: m.conv(x) if len(x) > 1 else m.conv(2 * x),
        "the module itself gives an image other scores alone than in a batch"),
    "gradients": (
        lambda m, x: m.conv(2 * x if torch.is_grad_enabled() else x),
        "the module itself gives other scores with gradients than without"),
    "a branch for exporting": (
        lambda m, x: m.conv(x) if torch.compiler.is_exporting() else m.conv(x * 1.01),
        "scores differ by"),
}  # fmt: skip


@pytest.mark.parametrize("form", UNSEEN)
def test_what_a_trace_does_not_see_is_refused_with_its_cause(form):
    body, message = UNSEEN[form]
    with pytest.raises(LoweringMismatchError, match=message) as caught:
        lower_base(net(body), [32])
    assert "base 'base' at 32 px: the graph is not the module" in str(caught.value)


def test_a_last_layer_that_reads_the_image_itself_is_compared_by_its_scores():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()).requires_grad_(False).eval()
    base = BaseUnderTest(module, EXACT, "0")
    assert_equal_at(base, lower_base(base, [16]), 16)


def test_a_branch_on_values_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="without control flow on tensor values"):
        lower_base(net(lambda m, x: m.conv(x) if x.mean() > 0 else x), [32])


def _relu_as_relu6(monkeypatch):
    monkeypatch.setitem(RULES, "relu", RULES["relu6"])


def _padding_mirrored(monkeypatch):
    def mirrored(reader, pad, honest=passes._pad_more):
        top, bottom, left, right = pad.padding
        turned = type(pad)(pad.name, pad.input, pad.output, (bottom, top, right, left))
        return honest(reader, turned)

    monkeypatch.setattr(passes, "_pad_more", mirrored)


def _mean_forgotten(monkeypatch):
    def forgotten(conv, source, rows, honest=fold_module._effective_affine):
        scale, bias = honest(conv, source, rows)
        return (scale, bias if conv.norm is None else source[f"{conv.norm.name}.bias"] * 1.0)

    monkeypatch.setattr(fold_module, "_effective_affine", forgotten)


@pytest.mark.parametrize("plant", [_relu_as_relu6, _padding_mirrored, _mean_forgotten])
def test_a_planted_bug_in_lowering_or_folding_is_caught(plant, monkeypatch):
    base = net(lambda m, x: _same(m.conv, x))
    base.module.norm.weight.mul_(10)  # beyond 6
    lower_base(base, [32])
    plant(monkeypatch)
    with pytest.raises(LoweringMismatchError, match="first layer that reads other values"):
        lower_base(base, [32])


def test_a_patch_that_folds_to_something_else_than_its_module_is_refused(monkeypatch):
    base = net(lambda m, x: m.conv(x))
    graph = lower_base(base, [32])
    shapes = {k: v.shape for k, v in base.module.state_dict().items() if k.startswith("norm.")}
    draw = np.random.default_rng(0)
    tensors = {
        k: draw.uniform(0.5, 2, s).astype(np.float32) for k, s in shapes.items() if len(s) == 1
    }
    head = {"head.weight": (3, 8), "head.bias": (3,)}
    tensors |= {k: draw.normal(size=s).astype(np.float32) for k, s in head.items()}
    patch = Patch("task", base.sha256, PatchConfig(), ("a", "b", "c"), {32: tensors})
    scores = compare_patch(base, graph, patch, 32, make_pictures(32, 2))
    assert scores.module.shape == scores.graph.shape == (2, 3)
    assert np.abs(scores.module - scores.graph).max() < 1e-4 * np.ptp(scores.module)

    honest = fold_module._effective_affine

    def ignores_the_patch(conv, source, rows):
        return honest(conv, source if conv.norm is None else graph.parameters, rows)

    monkeypatch.setattr(fold_module, "_effective_affine", ignores_the_patch)
    assert compare_graph(base, graph, 32) is None  # the base alone does not show it
    with pytest.raises(LoweringMismatchError, match="task 'task' at 32 px: the network to be"):
        compare_patch(base, graph, patch, 32, make_pictures(32, 2))


def test_signals_that_almost_vanish_are_compared_all_the_same():
    base = net(lambda m, x: m.conv(x))
    with torch.no_grad():
        base.module.norm.weight.mul_(1e-12)
        base.module.norm.bias.mul_(1e-12)
        base.module.down.bias.mul_(1e-12)
        base.module.conv.bias.mul_(1e-12)
    lower_base(base, [32])
    base.module.body = lambda m, x: m.conv(x if torch.compiler.is_exporting() else x * 1.01)
    with pytest.raises(LoweringMismatchError, match="last layer's input differ by"):
        lower_base(base, [32])


@pytest.mark.parametrize("px", [8, 12, 32, 48, 64, 75, 96, 224, 380])
def test_the_sizes_that_are_tried_lie_around_and_are_odd_at_five_depths_or_more(px):
    below, above, *even = probe_sides([px])
    assert 1 < below < px < above <= px + px // 2 + 1
    assert even or px % 2 == 0
    for side in (below, above):
        depths = [side]
        while depths[-1] % 2 and depths[-1] > 1:
            depths.append(-(-depths[-1] // 2))
        assert len(depths) > min(5, math.log2(px) - 2)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 1, 2), (1, 2, 1)])
def test_same_padding_makes_as_many_windows_as_strides_fit(size, kernel, stride, dilation):
    before, after = same_padding(size, kernel, stride, dilation)
    span = dilation * (kernel - 1) + 1
    assert (size + before + after - span) // stride + 1 == -(-size // stride)
    assert 0 <= after - before <= 1
