"""Lowering: every rule on a small module, every network of the table, every refusal in full."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lower_cases import (
    EXACT,
    BaseUnderTest,
    lowered,
    network,
    noise_images,
    settle_statistics,
    unfolded_logits,
)
from torch import Tensor, nn

from patchdeploy.errors import BaseError, UnsupportedOperatorError
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import fold_patch
from patchdeploy.graph import Conv2d, Graph, infer_shapes
from patchdeploy.lower import lower_base

Body = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """A stem, a body under test, a head; the body uses the layers that the block owns."""

    def __init__(self, body: Body, channels: int = 8, stem: bool = True) -> None:
        super().__init__()
        self.body = body
        self.stem = nn.Conv2d(3, 8, 3, padding=1) if stem else nn.Identity()
        self.conv = nn.Conv2d(8, 8, 3)
        self.same = nn.Conv2d(8, 8, (2, 5), padding="same", dilation=(3, 1))
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, dilation=2, groups=4)
        self.depthwise = nn.Conv2d(8, 16, 3, stride=(2, 1), padding=(0, 2), groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.plain_norm = nn.BatchNorm2d(8, affine=False)
        self.norm1d = nn.BatchNorm1d(8)
        self.linear, self.gate = nn.Linear(8, 8), nn.Linear(8, 8)
        self.wide = nn.Linear(8 * 3 * 3, 8)
        self.norm_of_input = nn.BatchNorm2d(3)
        self.alpha = nn.Dropout2d(0.5)
        self.head = nn.Linear(channels, 5)
        self.register_buffer("tint", torch.tensor([0.5, 2.0, -1.0, 1, 2, 3, 4, 5]).view(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, self.stem(x))
        if y.dim() == 4:
            y = torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)
        return self.head(y)


def block(body: Body, channels: int = 8, stem: bool = True, px: int = 14) -> BaseUnderTest:
    torch.manual_seed(2)
    module = Block(body, channels, stem)
    if stem:
        settle_statistics(module, px)
    for norm in (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return BaseUnderTest(module.eval(), EXACT, "head")


def _relu_twice_read(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.relu(y) + y


def _squeeze_excite(m: Block, x: Tensor) -> Tensor:
    s = F.adaptive_avg_pool2d(x, 1)
    return x * F.hardsigmoid(m.point(F.relu(m.point(s))))


def _squeeze_excite_linear(m: Block, x: Tensor) -> Tensor:
    s = x.mean((2, 3))
    return torch.sigmoid(m.gate(m.linear(s).relu_())).view(-1, 8, 1, 1) * x


def _shuffle(m: Block, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return m.conv(x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))


def _permuted_shuffle(m: Block, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return m.conv(x.reshape(n, 2, 2, 2, h, w).permute(0, 3, 1, 2, 4, 5).reshape(n, c, h, w))


def _split_and_join(m: Block, x: Tensor) -> Tensor:
    a, b, c = x.split([3, 1, 4], 1)
    return torch.cat([c, F.relu(a), b], -3)


def _chunk_of_shuffle(m: Block, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    a, b = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, 1)
    return torch.cat([F.relu(a), F.hardswish(b)], 1)


def _in_place_sum(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x)
    y += m.conv(x)
    F.relu_(y)
    return y * 1.0 + y


def _in_place_on_one_half(m: Block, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a.relu_()
    return torch.cat([a, b], 1)


def _scalars(m: Block, x: Tensor) -> Tensor:
    return (1 - (x * 2 + 1) / 3) - 0.5


def _channel_constants(m: Block, x: Tensor) -> Tensor:
    return (x - m.tint) / m.tint


def _hard_swish_by_hand(m: Block, x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


def _dropped(m: Block, x: Tensor) -> Tensor:
    return m.alpha(F.dropout(x.clone().contiguous().detach(), 0.5, m.training))


def _uneven_padding(m: Block, x: Tensor) -> Tensor:
    return m.conv(F.pad(F.pad(x, (0, 1, 0, 2)), (1, 0)))


def _padded_max(m: Block, x: Tensor) -> Tensor:
    return F.max_pool2d(F.pad(F.relu(x), (0, 1, 0, 1)), 3, 2)


def _padded_max_of_signed(m: Block, x: Tensor) -> Tensor:
    return F.max_pool2d(F.pad(x - 3, (0, 1, 0, 1)), 3, 2)


def _own_window(m: Block, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, (3, 2), 2, divisor_override=5)


def _narrowed(m: Block, x: Tensor) -> Tensor:
    return torch.cat([x[:, 1::2], x[:, :4], x[:, 3].unsqueeze(1)], 1)


def _squeezed(m: Block, x: Tensor) -> Tensor:
    return F.relu(F.adaptive_avg_pool2d(x, 1).squeeze()).unsqueeze(-1).unsqueeze(-1)


# Each rule: the body, its operators between stem and head, and the channels it ends with.
RULES: dict[str, tuple[Body, str, int]] = {
    "same padding with an even kernel": (lambda m, x: m.same(x), "Conv2d", 8),
    "groups and dilation": (lambda m, x: m.grouped(x), "Conv2d", 8),
    "depthwise with a multiplier": (lambda m, x: m.depthwise(x), "Conv2d", 16),
    "uneven zero padding": (_uneven_padding, "Conv2d", 8),
    "zero padding before a sum": (
        lambda m, x: F.pad(x, (1, 1)) + F.pad(x, (1, 1)),
        "Constant Constant Add",
        8,
    ),
    "zero padding before a maximum": (_padded_max, "MaxPool", 8),
    "padding of a signed map": (_padded_max_of_signed, "Constant Constant MaxPool", 8),
    "norm behind its convolution": (lambda m, x: m.norm(m.conv(x)), "Conv2d", 8),
    "norm behind a rectifier": (lambda m, x: m.norm(m.conv(x).relu()), "Conv2d Constant", 8),
    "norm behind a norm": (lambda m, x: m.norm2(m.norm(m.conv(x))), "Conv2d Constant", 8),
    "norm without parameters": (lambda m, x: m.plain_norm(m.conv(x)), "Conv2d", 8),
    "norm of vectors": (lambda m, x: m.norm1d(m.linear(x.mean((2, 3)))), "GlobalAvgPool Conv2d", 8),
    "norm used twice": (lambda m, x: m.norm(m.conv(m.norm(x))), "Conv2d", 8),
    "relu of a value read twice": (_relu_twice_read, "Conv2d Constant Add", 8),
    "relu6 after a sum": (lambda m, x: F.relu6(m.point(x) + x), "Conv2d Add", 8),
    "hard sigmoid after a sum": (
        lambda m, x: F.hardsigmoid(m.point(x) + x),
        "Conv2d Add Constant",
        8,
    ),
    "hard sigmoid after a conv": (lambda m, x: F.hardsigmoid(m.conv(x)), "Conv2d", 8),
    "hardtanh as relu6": (lambda m, x: F.hardtanh(m.conv(x), 0, 6), "Conv2d", 8),
    "clamp as relu": (lambda m, x: m.conv(x).clamp(min=0), "Conv2d", 8),
    "relu after a maximum": (lambda m, x: F.relu(F.max_pool2d(x, 2)), "MaxPool Constant", 8),
    "hard swish": (lambda m, x: F.hardswish(m.conv(x)), "Conv2d Pointwise", 8),
    "hard swish by hand": (_hard_swish_by_hand, "Constant Mul Constant", 8),
    "silu": (lambda m, x: F.silu(m.conv(x)), "Conv2d Pointwise Mul", 8),
    "sigmoid of scores": (
        lambda m, x: m.linear(x.mean((2, 3))).sigmoid(),
        "GlobalAvgPool Conv2d Pointwise",
        8,
    ),
    "squeeze-excitation": (_squeeze_excite, "GlobalAvgPool Conv2d Conv2d Mul", 8),
    "squeeze-excitation by linear": (
        _squeeze_excite_linear,
        "GlobalAvgPool Conv2d Conv2d Pointwise Mul",
        8,
    ),
    "constants": (_scalars, "Constant", 8),
    "constants per channel": (_channel_constants, "Constant", 8),
    "sum in place": (_in_place_sum, "Conv2d Conv2d Add Constant Add", 8),
    "in place on one half": (
        _in_place_on_one_half,
        "ChannelSelect Constant ChannelSelect Concat",
        8,
    ),
    "concatenation of one": (lambda m, x: torch.cat([x], 1), "", 8),
    "shuffle": (_shuffle, "ChannelSelect Conv2d", 8),
    "shuffle by permute": (_permuted_shuffle, "ChannelSelect Conv2d", 8),
    "split and join": (
        _split_and_join,
        "ChannelSelect Constant ChannelSelect ChannelSelect Concat",
        8,
    ),
    "chunk of a shuffle": (
        _chunk_of_shuffle,
        "ChannelSelect Constant ChannelSelect Pointwise Concat",
        8,
    ),
    "slices with a step": (_narrowed, "ChannelSelect ChannelSelect ChannelSelect Concat", 9),
    "squeeze and unsqueeze": (_squeezed, "GlobalAvgPool Constant", 8),
    "maximum with a ceiling": (lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), "MaxPool", 8),
    "mean window with padding": (lambda m, x: F.avg_pool2d(x, 3, 1, 1), "Constant", 8),
    "mean window with a divisor": (_own_window, "Constant", 8),
    "what does nothing": (_dropped, "", 8),
    "convolution used twice": (lambda m, x: m.conv(m.conv(x)), "Conv2d Conv2d", 8),
    "convolution by function": (lambda m, x: F.conv2d(x, m.conv.weight), "Conv2d", 8),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_the_modules_meaning_at_another_resolution(rule):
    body, operators, channels = RULES[rule]
    base = block(body, channels)
    graph = lower_base(base, [14])
    images = noise_images(3, 17, 12)
    expected = unfolded_logits(base, {}, images)
    logits = FloatRunner(fold_patch(graph), "float64")(images)
    # Constants of the graph (1/9, 2/3 ...) are rounded to float32, 2^-24 each; at most 4 of
    # them in a row, in sums of 72 random terms (a condition of sqrt(72) < 9, twice).
    bound = 4 * 9 * 9 * 2.0**-24 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
    assert np.abs(expected[0] - expected[1]).max() > 10 * bound
    assert body_operators(graph) == operators


def body_operators(graph: Graph) -> str:
    """Operators between the stem and the head's pooling, "Constant" for constant convolutions."""
    names = []
    for operator in graph.operators:
        name = type(operator).__name__
        names.append("Constant" if isinstance(operator, Conv2d) and operator.is_constant else name)
    assert names[0] == "Conv2d"
    pooled = names[-2] == "GlobalAvgPool"
    return " ".join(names[1 : -2 if pooled else -1])


def kinds_of(graph: Graph) -> dict[str, int]:
    kinds = [type(o).__name__ for o in graph.operators]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


# By hand from the networks' papers: MobileNetV2 has 52 convolutions with normalisation and the
# head, 10 sums; ResNet-18 20 and the head, 8 sums; SqueezeNet 26, 8 fire modules; Inception V3
# 94 and the head, 9 mean windows; ShuffleNetV2 selects twice in each of its 16 blocks, but once
# where the shuffle meets a stage's first block (4 times, 3 of them read by two branches).
OPERATORS = {
    "mobilenet_v2_1.0": {"Add": 10, "Conv2d": 53, "GlobalAvgPool": 1},
    "resnet18": {"Add": 8, "Conv2d": 21, "GlobalAvgPool": 1, "MaxPool": 1},
    "squeezenet1_1": {"Concat": 8, "Conv2d": 26, "GlobalAvgPool": 1, "MaxPool": 3},
    "inception_v3": {"Concat": 15, "Conv2d": 104, "GlobalAvgPool": 1, "MaxPool": 4},
    "inception_v3_transform_input": {"Concat": 15, "Conv2d": 104, "GlobalAvgPool": 1, "MaxPool": 4},
    "shufflenet_v2_x1_0": {
        "ChannelSelect": 29,
        "Concat": 16,
        "Conv2d": 57,
        "GlobalAvgPool": 1,
        "MaxPool": 1,
    },
    "mobilenet_v3_small": {
        "Add": 6,
        "Conv2d": 54,
        "GlobalAvgPool": 10,
        "Mul": 9,
        "Pointwise": 19,
    },
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_network_becomes_the_operators_of_its_paper(name):
    assert kinds_of(lowered(name)) == OPERATORS[name]


NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("name", [*OPERATORS, "densenet121"])
def test_sites_are_module_paths_and_every_name_is_used_once(name):
    graph, modules = lowered(name), dict(network(name).module.named_modules())
    names = [o.name for o in graph.operators]
    assert len(set(names)) == len(names)
    for conv in graph.convolutions():
        if not conv.is_constant:
            assert isinstance(modules[conv.name], nn.Conv2d | nn.Linear)
            assert conv.weight == f"{conv.name}.weight"
        if conv.norm is not None:
            assert isinstance(modules[conv.norm.name], nn.BatchNorm2d)
    norms = {n for n, m in modules.items() if isinstance(m, nn.BatchNorm2d)}
    assert {c.norm.name for c in graph.convolutions() if c.norm} == norms
    assert list(graph.channels) == [graph.input, *names]
    assert graph.parameters.keys() >= {c.weight for c in graph.convolutions()}
    for norm in norms:
        assert graph.parameters.keys() >= {f"{norm}.{part}" for part in NORM_PARTS}
    assert all(array.dtype == np.float32 for array in graph.parameters.values())


def test_mobilenet_v2_has_the_papers_52_normalisations_of_17056_channels():
    convs = [c for c in lowered("mobilenet_v2_1.0").convolutions() if c.norm is not None]
    assert (len(convs), sum(c.out_channels for c in convs)) == (52, 17056)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_0"])
def test_the_size_of_the_example_does_not_change_the_graph(name):
    # At 32 px the last maps are 1x1, where a factor and a map look alike.
    other = lower_base(network(name), [32])
    assert other.operators == lowered(name).operators
    assert other.channels == lowered(name).channels


def test_lowering_leaves_the_base_as_it_was():
    base = block(lambda m, x: m.norm(m.conv(x)))
    before = {name: value.clone() for name, value in base.module.state_dict().items()}
    graph = lower_base(base, [14])
    for array in graph.parameters.values():
        array += 1
    assert not base.module.training
    for name, value in base.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_flattened_map_becomes_a_convolution_for_that_resolution_alone():
    def body(m: Block, x: Tensor) -> Tensor:
        return F.relu(m.wide(torch.flatten(F.adaptive_avg_pool2d(m.conv(x), 3), 1)))

    base = block(body)
    graph = lower_base(base, [14])
    wide = next(c for c in graph.convolutions() if c.name == "wide")
    assert (wide.kernel, wide.in_channels, wide.padding) == ((3, 3), 8, (0, 0, 0, 0))
    images = noise_images(2, 14, 14)
    logits = FloatRunner(fold_patch(graph), "float64")(images)
    expected = unfolded_logits(base, {}, images)
    # The constant 1/16 of the 4x4 mean is exact: sums of 72 products, four in a row.
    bound = 4 * 72 * 9 * 2.0**-53 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
    with pytest.raises(ValueError, match=r"it pools adaptively .* which was lowered for 12x12"):
        infer_shapes(graph, 18, 18)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.head(F.adaptive_avg_pool2d(m.norm_of_input(x), 1).flatten(1)),
        lambda m, x: m.head((F.relu(x) + x).mean((2, 3))),
        lambda m, x: m.head(torch.cat([x, x], 1).mean((2, 3))[:, 1:4]),
    ],
    ids=["normalised", "read twice", "concatenated"],
)
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_input_feeds_exactly_one_convolution_that_takes_the_preprocessing(body, order):
    base = block(lambda m, x: x, channels=3, stem=False)
    module = base.module
    module.forward = lambda x: body(module, x)
    preprocessing = replace(EXACT, channel_order=order, std=(0.25, 0.5, 1.0))
    base = replace(base, preprocessing=preprocessing)
    graph = lower_base(base, [14])
    assert [type(o) for o in graph.consumers(graph.input)] == [Conv2d]
    images = noise_images(2, 9, 11)
    expected = unfolded_logits(base, {}, images)
    logits = FloatRunner(fold_patch(graph), "float64")(images)
    # 1 / (255 std) is rounded to float32; weights and values are of order one.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=64 * 2.0**-24)
    swapped = unfolded_logits(base, {}, images[..., ::-1].copy())
    assert np.abs(swapped - expected).max() > 1e-3


def test_torchvisions_transform_input_becomes_part_of_the_preprocessing():
    graph = lowered("inception_v3_transform_input")
    # x * std / 0.5 + (mean - 0.5) / 0.5 of (p - 128/255) / (128/255), per channel.
    std = np.array([0.229, 0.224, 0.225])
    offset = (np.array([0.485, 0.456, 0.406]) - 0.5) / 0.5
    new_std = 128 / 255 / (std / 0.5)
    np.testing.assert_allclose(graph.preprocessing.std, new_std, rtol=1e-15)
    np.testing.assert_allclose(graph.preprocessing.mean, 128 / 255 - offset * new_std, rtol=1e-14)
    assert kinds_of(graph) == kinds_of(lowered("inception_v3"))


def message_of(base: BaseUnderTest, error: type[Exception], px: int = 14) -> str:
    with pytest.raises(error) as caught:
        lower_base(base, [px])
    return str(caught.value)


REMEDY = "; rewrite the module and make the base again"
SUPPORTED = (
    "one of convolution, linear, batch norm, relu, relu6, hardswish, hardsigmoid, sigmoid, silu, "
    "add, mul, cat, pooling, and reshapes of channels"
)


def _write_into_slice(m: Block, x: Tensor) -> Tensor:
    x[:, :4].relu_()
    return x


def _write_after_alias(m: Block, x: Tensor) -> Tensor:
    y = x.view(x.shape)
    y.relu_()
    return x + y


REFUSED: dict[str, tuple[Body, str]] = {
    "gelu": (
        lambda m, x: F.gelu(x),
        "aten.gelu.default at the root Block: no lowering rule for this operator; the nearest "
        "supported form is hardswish",
    ),
    "softmax": (
        lambda m, x: m.alpha(F.softmax(x, 1)),
        "aten.softmax.int at the root Block: no lowering rule for this operator; the nearest "
        "supported form is a network that ends with its logits (the runtime applies softmax)",
    ),
    "unknown": (
        lambda m, x: torch.cumsum(x, 1),
        "aten.cumsum.default at the root Block: no lowering rule for this operator; the nearest "
        f"supported form is {SUPPORTED}",
    ),
    "batch statistics": (
        lambda m, x: m.norm.train()(x),
        "aten.batch_norm.default at module 'norm' (BatchNorm2d): it normalises with the batch; "
        "the nearest supported form is one with running statistics, in eval()",
    ),
    "mean of padding": (
        lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        "aten.avg_pool2d.default at the root Block: ceil_mode=False, padding=[1, 1], "
        "count_include_pad=False; the nearest supported form is avg_pool2d with ceil_mode=False "
        "and count_include_pad=True (or no padding)",
    ),
    "uneven adaptive pooling": (
        lambda m, x: F.adaptive_avg_pool2d(x, 4),
        "aten.adaptive_avg_pool2d.default at the root Block: it pools 14x14 to 4x4 with uneven "
        "windows; the nearest supported form is adaptive_avg_pool2d(1), or a size that divides "
        "its input",
    ),
    "reflection": (
        lambda m, x: F.pad(x, (1, 1, 1, 1), "reflect"),
        "aten.pad.default at the root Block: pad=[1, 1, 1, 1], mode='reflect', value=None; the "
        "nearest supported form is zeros around height and width",
    ),
    "spatial slice": (
        lambda m, x: x[:, :, 1:],
        "aten.slice.Tensor at the root Block: it cuts a map from 14 to 13 pixels; the nearest "
        "supported form is a size at which nothing is cut, or images that are cut before the "
        "network",
    ),
    "mean of everything": (
        lambda m, x: x * x.mean(),
        "aten.mean.default at the root Block: dim=None; the nearest supported form is mean over "
        "dim=[2, 3]",
    ),
    "broadcast sum": (
        lambda m, x: x + F.adaptive_avg_pool2d(x, 1),
        "aten.add.Tensor at the root Block: it broadcasts one map over another; the nearest "
        "supported form is a sum of equal shapes",
    ),
    "writing into a view": (
        _write_into_slice,
        "aten.relu_.default at the root Block: it writes into 'slice_1', whose memory is read "
        "later as 'conv2d'; the nearest supported form is relu that is not in place",
    ),
    "writing into an alias": (
        _write_after_alias,
        "aten.relu_.default at the root Block: it writes into 'view', whose memory is read "
        "later as 'conv2d'; the nearest supported form is relu that is not in place",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_named_with_its_module_and_the_nearest_form(case):
    body, message = REFUSED[case]
    assert message_of(block(body), UnsupportedOperatorError) == message + REMEDY


def test_a_network_that_torch_cannot_trace_is_refused_with_the_reason():
    def body(m: Block, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    message = message_of(block(body), UnsupportedOperatorError)
    assert message.startswith("base 'base' cannot be traced at 14 px (")
    assert message.endswith(
        "); lowering needs a module that torch.export takes, without control flow on tensor "
        "values; rewrite its forward"
    )


def test_a_base_must_return_one_tensor_of_scores_and_name_its_head():
    base = block(lambda m, x: x)
    module = base.module
    module.forward = lambda x: (module.stem(x), x)
    assert message_of(base, BaseError) == (
        "base 'base' returns 2 tensors; a base returns one tensor of class scores [N, classes]; "
        "wrap it in a module that does"
    )
    module.forward = lambda x: module.stem(x)
    assert message_of(base, BaseError) == (
        "base 'base' returns a map of 14x14 with 8 channels; a base returns one tensor of class "
        "scores [N, classes]; wrap it in a module that does"
    )
    named = replace(block(lambda m, x: x), head_name="fc")
    assert message_of(named, BaseError) == (
        "base 'base' names 'fc' as its last layer, which is no convolution or linear layer of the "
        "lowered network; correct head_name"
    )
