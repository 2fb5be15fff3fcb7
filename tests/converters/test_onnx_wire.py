"""The protobuf walker: offsets are where onnx finds the data, and bad bytes get a typed error."""

import contextlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graph_cases import GRAPH_CASES, make_case, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from patchdeploy_onnx import (
    OnnxConverter,
    find_initializers,
    per_run_model,
    unsigned_kernels,
)

from patchdeploy.convert import WrittenModel
from patchdeploy.errors import FileFormatError
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.runtimes import arithmetic_of

ONNXRUNTIME = arithmetic_of("onnx")


@pytest.fixture(scope="module")
def written() -> WrittenModel:
    base, variants = make_case("branches")
    return OnnxConverter().write(base, variants)


def test_every_initializer_is_found_where_onnx_reads_it(written: WrittenModel) -> None:
    model = onnx.load_model_from_string(written.data)
    expected = {tensor.name: tensor.raw_data for tensor in model.graph.initializer}
    spans = find_initializers(written.data)
    found = {name: written.data[span.start : span.end] for name, span in spans.items()}
    assert found == expected


@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=200), unique=True, max_size=5), data=st.data())
def test_offsets_are_right_whatever_the_names_and_lengths(
    names: list[str], data: st.DataObject
) -> None:
    tensors = []
    for name in names:
        # Around 2^7 and 2^14 the length of a varint changes.
        length = data.draw(st.sampled_from([0, 1, 126, 127, 128, 16383, 16384, 40000]))
        values = np.random.default_rng(length).integers(-128, 128, length, np.int8)
        tensors.append(onnx.numpy_helper.from_array(values, name))
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    blob = model.SerializeToString()
    spans = find_initializers(blob)
    for tensor in tensors:
        # protobuf leaves out a field that is empty.
        span = spans.get(tensor.name)
        assert (blob[span.start : span.end] if span else b"") == tensor.raw_data


def test_a_cut_file_is_an_error_or_misses_initializers(written: WrittenModel) -> None:
    whole = find_initializers(written.data)
    raised = 0
    for cut in range(0, len(written.data), 97):
        try:
            found = find_initializers(written.data[:cut])
        except FileFormatError:
            raised += 1
        else:
            assert len(found) < len(whole)
            assert found.items() <= whole.items()
    assert raised > 0


def test_the_error_names_position_rule_and_remedy() -> None:
    with pytest.raises(FileFormatError) as caught:
        find_initializers(b"\x3a\x05\x0a")
    assert str(caught.value) == (
        "the .onnx bytes hold the end of a message inside a field at byte 3; a model is a whole "
        "protobuf ModelProto; copy the file again or export it again"
    )


@settings(max_examples=300, deadline=None)
@given(blob=st.binary(max_size=60))
def test_arbitrary_bytes_never_raise_anything_else(blob: bytes) -> None:
    for data in (blob, b"\x3a" + bytes([len(blob)]) + blob):
        with contextlib.suppress(FileFormatError):
            find_initializers(data)


def test_per_run_inputs_have_the_types_and_shapes_of_their_initializers(
    written: WrittenModel,
) -> None:
    data = per_run_model(written.data, written.table)
    assert data[: len(written.data)] == written.data
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    image, *inputs = model.graph.input
    assert image.name == "image"
    assert [value.name for value in inputs] == [slot.name for slot in written.table.slots]
    for value in inputs:
        declared = value.type.tensor_type
        tensor = tensors[value.name]
        assert declared.elem_type == tensor.data_type
        assert [dim.dim_value for dim in declared.shape.dim] == list(tensor.dims)


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_unsigned_kernels_compute_the_same_on_any_cpu(name: str) -> None:
    base, variants = make_case(name)
    data = OnnxConverter().write(base, variants).data
    unsigned = unsigned_kernels(data)
    assert len(unsigned) == len(data)
    model = onnx.load_model_from_string(unsigned)
    onnx.checker.check_model(model, full_check=True)
    assert onnx.TensorProto.INT8 not in {tensor.data_type for tensor in model.graph.initializer}
    images = random_images(3, 19)
    scores = ort.InferenceSession(unsigned).run(None, {"image": images})[0]
    expected = run_integer(base, variants[16], images, ONNXRUNTIME).logits
    np.testing.assert_array_equal(scores, expected)
