"""The neutral graph: sizes agree with torch's, tied values, multiply-accumulates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lower_cases import EXACT, NETWORKS, BaseUnderTest, lowered, network, noise_images

from patchdeploy.data import Preprocessing
from patchdeploy.errors import UnknownResolutionError
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import fold_patch
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    Graph,
    MaxPool,
    Operator,
    count_macs,
    infer_shapes,
    tied_values,
    window_output,
)
from patchdeploy.lower import lower_base


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 64), (75, 91)], ids=["traced", "odd"])
def test_shapes_agree_with_the_torch_modules_own_at_every_convolution(name, size):
    height, width = (96, 96) if name.startswith("inception") and size == (64, 64) else size
    graph, module = lowered(name), network(name).module
    shapes = infer_shapes(graph, height, width)
    sites = {c.name: c.output for c in graph.convolutions() if not c.is_constant}
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _x, y, path=path: seen.update({path: y.shape}))
        for path, layer in module.named_modules()
        if path in sites
    ]
    try:
        # Meta tensors carry shapes alone: no arithmetic is done.
        state = {key: value.to("meta") for key, value in module.state_dict().items()}
        image = torch.empty(1, 3, height, width, device="meta")
        logits = torch.func.functional_call(module, state, (image,))
    finally:
        for hook in hooks:
            hook.remove()
    assert seen.keys() == sites.keys()
    for path, shape in seen.items():
        rows, columns, channels = shapes[sites[path]]
        assert (channels, rows, columns) == (*shape[1:], 1, 1)[:3]
    assert shapes[graph.output] == (1, 1, logits.shape[1])


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "squeezenet1_1", "mobilenet_v3_small"])
def test_shapes_agree_with_the_tensors_of_a_run_at_every_value(name):
    graph = lowered(name)
    seen = {}

    def observe(value, tensor):
        channels, rows, columns = tensor.shape[1:]
        seen[value] = (rows, columns, channels)

    FloatRunner(fold_patch(graph))(noise_images(1, 67, 90), observe)
    assert seen == infer_shapes(graph, 67, 90)


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 5),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    ceil_mode=st.booleans(),
)
def test_a_windows_output_length_is_torchs(size, kernel, stride, padding, dilation, ceil_mode):
    padding = min(padding, kernel // 2)
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return
    expected = torch.nn.functional.max_pool1d(
        torch.zeros(1, 1, size), kernel, stride, padding, dilation, ceil_mode
    ).shape[-1]
    found = window_output(size, kernel, stride, padding, padding, dilation, ceil_mode)
    assert found == expected


def graph_of(operators: tuple[Operator, ...], channels: dict[str, int]) -> Graph:
    return Graph(
        name="hand-made",
        base_sha256="0" * 64,
        preprocessing=EXACT,
        input="image",
        output=operators[-1].output,
        head=operators[-1].name,
        operators=operators,
        channels=channels,
        parameters={},
    )


def conv(name: str, source: str, inputs: int, outputs: int, size: int = 1) -> Conv2d:
    return Conv2d(name, source, name, f"{name}.weight", inputs, outputs, (size, size))


def branching_graph() -> Graph:
    """stem -> (a, b); cat(a, b) -> select -> pool -> c; c + d -> head."""
    operators = (
        conv("stem", "image", 3, 4),
        conv("a", "stem", 4, 2),
        conv("b", "stem", 4, 2),
        Concat("cat", ("a", "b"), "cat"),
        ChannelSelect("pick", "cat", "pick", (2, 0)),
        MaxPool("pool", "pick", "pool", (2, 2), (2, 2)),
        conv("c", "pool", 2, 2),
        conv("d", "pool", 2, 2),
        Add("sum", ("c", "d"), "sum"),
        conv("head", "sum", 2, 5, size=4),
    )
    channels = {"image": 3} | {o.output: 2 for o in operators}
    return graph_of(operators, channels | {"stem": 4, "cat": 4, "head": 5})


def test_concatenation_selection_and_maximum_tie_their_values_and_nothing_else_does():
    ties = tied_values(branching_graph())
    shared = ("a", "b", "cat", "pick", "pool")
    assert {value for value in ties if ties[value] == "a"} == set(shared)
    assert {value for value in ties if ties[value] == value} == set(ties) - set(shared[1:])


def test_ties_reach_through_a_value_that_two_concatenations_share():
    operators = (
        conv("a", "image", 3, 1),
        conv("b", "image", 3, 1),
        conv("c", "image", 3, 1),
        Concat("late", ("b", "c"), "late"),
        Concat("early", ("a", "b"), "early"),
        Add("sum", ("late", "early"), "sum"),
    )
    channels = {"image": 3, "a": 1, "b": 1, "c": 1, "late": 2, "early": 2, "sum": 2}
    ties = tied_values(graph_of(operators, channels))
    assert {ties[value] for value in ("a", "b", "c", "late", "early")} == {"a"}
    assert (ties["sum"], ties["image"]) == ("sum", "image")


def test_a_networks_ties_are_consistent_representatives_in_graph_order():
    for name in ("shufflenet_v2_x1_0", "squeezenet1_1", "densenet121"):
        graph = lowered(name)
        ties, order = tied_values(graph), list(graph.channels)
        assert ties.keys() == graph.channels.keys()
        for value, representative in ties.items():
            assert ties[representative] == representative
            assert order.index(representative) <= order.index(value)


def test_mobilenet_v2_at_224_costs_300_774_272_multiply_accumulates():
    # 300 M in the MobileNetV2 paper's table 4; by hand from its table 2, head of 1000 included.
    torch.manual_seed(0)
    import torchvision

    module = torchvision.models.mobilenet_v2(weights=None).eval()
    graph = lower_base(BaseUnderTest(module, Preprocessing(), "classifier.1"), [64])
    assert count_macs(graph, 224, 224) == 300_774_272
    assert count_macs(graph, 96, 96) < 300_774_272 * 96 * 96 / 224 / 224 * 1.05


def test_multiply_accumulates_of_a_hand_made_graph():
    # stem 8*8*4*3, a and b 8*8*2*4 each, c and d 4*4*2*2 each, head 5*2*16.
    assert count_macs(branching_graph(), 8, 8) == 768 + 2 * 512 + 2 * 64 + 160


def test_a_resolution_that_does_not_fit_is_refused():
    with pytest.raises(UnknownResolutionError) as caught:
        infer_shapes(branching_graph(), 10, 8)
    assert str(caught.value) == (
        "10x8 px would make 'head' 2x1; every map has at least one pixel and the scores are 1x1; "
        "choose another resolution, or lower the base for this one"
    )
    with pytest.raises(UnknownResolutionError, match="would make 'head' 1x0"):
        infer_shapes(branching_graph(), 8, 6)


def test_producer_and_consumers_name_the_neighbours():
    graph = branching_graph()
    assert graph.producer("image") is None
    assert graph.producer("sum").name == "sum"
    assert [o.name for o in graph.consumers("pool")] == ["c", "d"]
    assert [c.name for c in graph.convolutions()] == ["stem", "a", "b", "c", "d", "head"]


def test_contiguity_and_depthwise_are_told():
    assert ChannelSelect("s", "x", "y", (3, 4, 5)).is_contiguous
    assert not ChannelSelect("s", "x", "y", (3, 5)).is_contiguous
    assert not ChannelSelect("s", "x", "y", (1, 0)).is_contiguous
    assert Conv2d("c", "x", "y", "w", 4, 8, (3, 3), groups=4).is_depthwise
    assert not Conv2d("c", "x", "y", "w", 4, 8, (3, 3), groups=2).is_depthwise
    assert not np.any([conv("c", "x", 1, 1).is_depthwise])
