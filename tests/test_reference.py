"""The neutral quantised base: the same graph, kernels and answers after a round trip."""

import json
from dataclasses import replace

import numpy as np
import pytest
from graph_cases import GRAPH_CASES, make_case, random_images
from safetensors.numpy import load, save

from patchdeploy.errors import FileFormatError
from patchdeploy.quantize.executor import run_integer
from patchdeploy.reference import load_reference, reference_sha256, save_reference


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_a_loaded_reference_is_the_saved_one(name):
    base, variants = make_case(name)
    found = load_reference(save_reference(base))
    assert found.graph == replace(base.graph, parameters={})
    assert list(found.graph.channels) == list(base.graph.channels)  # their order is the sites'
    assert found.layout() == base.layout()
    assert list(found.weights) == list(base.weights)
    for conv in base.weights:
        assert np.array_equal(found.weights[conv], base.weights[conv])
        assert found.weight_scales[conv].tobytes() == base.weight_scales[conv].tobytes()
    images = random_images(2, 16)
    expected = run_integer(base, variants[16], images).codes
    assert len(np.unique(expected)) > 2
    assert np.array_equal(run_integer(found, variants[16], images).codes, expected)


def test_depthwise_kernels_that_patches_own_are_not_stored():
    base, _ = make_case("conv_stack", patch_owned=("dw1",))
    names = set(load(save_reference(base)))
    assert {"weight/stem", "weight_scale/dw1"} <= names
    assert not {"weight/dw1", "weight/head"} & names
    assert load_reference(save_reference(base)).patch_owned == {"dw1", "head"}


def test_the_hash_is_of_the_integers_and_not_of_the_float_parameters():
    base, _ = make_case("conv_stack")
    bare = replace(base, graph=replace(base.graph, parameters={}))
    assert save_reference(bare) == save_reference(base)
    weights = {**base.weights, "stem": base.weights["stem"].copy()}
    weights["stem"][0, 0, 0, 0] ^= 1
    assert reference_sha256(replace(base, weights=weights)) != reference_sha256(base)


def test_a_file_cut_at_any_length_is_refused():
    data = save_reference(make_case("conv_stack")[0])
    for length in range(0, len(data), 7):
        with pytest.raises(FileFormatError):
            load_reference(data[:length])


def forge(change) -> bytes:
    data = save_reference(make_case("conv_stack")[0])
    length = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["patchdeploy"])
    change(document)
    return save(load(data), {"patchdeploy": json.dumps(document)})


def test_an_unknown_operator_is_named():
    with pytest.raises(FileFormatError) as caught:
        load_reference(forge(lambda d: d["operators"][0].update(operator="Einsum")))
    assert str(caught.value) == (
        "reference file.operators[0]: reference file holds an operator 'Einsum'; this version "
        "knows Add, ChannelSelect, Concat, Conv2d, GlobalAvgPool, MaxPool, Mul, Pointwise; upgrade "
        "patchdeploy"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=3),
        lambda d: d.update(format=2),
        lambda d: d.update(format=2, limit=None),
        lambda d: d.update(format=2, limit={"resolutions": [48, 32], "reason": ""}),
        lambda d: d.update(format=2, limit={"resolutions": ["32"], "reason": ""}),
        lambda d: d["operators"][0].update(padding="same"),
        lambda d: d.pop("head"),
        lambda d: d["operators"][0].update(surprise=1),
        lambda d: d["preprocessing"].update(surprise=1),
        lambda d: d.update(operators=None),
    ],
)
def test_a_document_outside_the_format_is_refused(change):
    with pytest.raises(FileFormatError):
        load_reference(forge(change))
