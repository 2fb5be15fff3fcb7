"""The patch file: bit-exact round trips, and a typed error for everything else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bundle_cases import LABELS, make_patch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from patchdeploy.errors import (
    ConfigError,
    HeadCapacityError,
    PatchdeployError,
    PatchFileError,
    UnknownResolutionError,
    WrongBaseError,
)
from patchdeploy.patchfile import (
    PatchFile,
    PatchLayout,
    decode_patch,
    encode_patch,
    masked_head_rows,
    patch_layout,
)
from patchdeploy.slots import PatchValues

ARRAYS = ("weight_scale", "bias", "activation_scale", "activation_zero_point", "weights")
BASE, PATCH = make_patch()
LAYOUT = patch_layout(BASE)
DATA = encode_patch(PATCH, LAYOUT)


def assert_same_values(found: PatchFile, expected: PatchFile) -> None:
    assert list(found.values) == sorted(expected.values)
    for px, values in expected.values.items():
        for name in ARRAYS:
            one, other = getattr(found.values[px], name), getattr(values, name)
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes(), (px, name)


def forge(arrays=None, metadata=None) -> bytes:
    """DATA with some arrays or metadata replaced, past every check of encoding."""
    length = int.from_bytes(DATA[:8], "little")
    text = json.loads(json.loads(DATA[8 : 8 + length])["__metadata__"]["patchdeploy"])
    stored = {**load(DATA), **(arrays or {})}
    stored = {name: array for name, array in stored.items() if array is not None}
    return save(stored, {"patchdeploy": json.dumps({**text, **(metadata or {})})})


def decode(data: bytes, resolution: int | None = None) -> PatchFile:
    return decode_patch(data, PATCH.base_sha256, LAYOUT, resolution)


@pytest.mark.parametrize("share_head", [True, False], ids=["one head", "a head a resolution"])
@pytest.mark.parametrize("owned", [(), ("dw1", "dw2")], ids=["head only", "depthwise too"])
@pytest.mark.parametrize("name", ["conv_stack"])
def test_decoding_gives_back_every_bit(name, owned, share_head):
    base, patch = make_patch(name, share_head=share_head, patch_owned=owned)
    layout = patch_layout(base)
    found = decode_patch(encode_patch(patch, layout), patch.base_sha256, layout)
    assert_same_values(found, patch)
    assert (found.task, found.classes) == (patch.task, patch.classes)
    assert found.metrics == {"top1": 0.5}


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(2, LAYOUT.head_capacity), seed=st.integers(0, 1000))
def test_any_number_of_classes_up_to_the_capacity_round_trips(classes, seed):
    _, patch = make_patch(seed=seed)
    values = {px: masked_head_rows(one, classes, LAYOUT) for px, one in patch.values.items()}
    if classes > len(LABELS):  # rows that make_case masked are a task's own here
        values = {px: with_live_row(one, classes - 1) for px, one in values.items()}
    labels = tuple(map(str, range(classes)))
    patch = replace(patch, classes=labels, values=values)
    assert_same_values(decode(encode_patch(patch, LAYOUT)), patch)


def with_live_row(values: PatchValues, row: int) -> PatchValues:
    bias = values.bias.copy()
    bias[LAYOUT.head_row + row] = 77
    return replace(values, bias=bias)


def test_one_resolution_decodes_alone_to_the_same_values():
    found = decode(DATA, 24)
    assert_same_values(found, replace(PATCH, values={24: PATCH.values[24]}))


def test_the_same_patch_gives_the_same_bytes():
    again = replace(PATCH, values=dict(reversed(PATCH.values.items())))
    assert encode_patch(again, LAYOUT) == DATA


def test_a_head_that_all_resolutions_share_is_stored_once():
    arrays = load(DATA)
    assert arrays["head"].size == len(LABELS) * LAYOUT.head_row_elements
    assert "16/head" not in arrays
    other = encode_patch(make_patch(share_head=False)[1], LAYOUT)
    assert load(other)["16/head"].size == load(other)["24/head"].size == arrays["head"].size


def test_mobilenet_v2_stores_at_most_140_kB_per_resolution_without_its_head():
    rng = np.random.default_rng(0)
    rows, classes, sites = 17_056, 1000, 65
    layout = PatchLayout(rows + classes, 1280 * classes, sites, rows, classes, 0, 1280, 63, 64)
    weights = rng.integers(-127, 128, layout.elements, np.int8)
    values = {
        px: PatchValues(
            rng.uniform(0.01, 1, layout.rows).astype(np.float32),
            rng.integers(-9999, 9999, layout.rows, np.int32),
            rng.uniform(0.01, 1, sites).astype(np.float32),
            rng.integers(-128, 128, sites, np.int8),
            weights,
        )
        for px in (96, 128, 224)
    }
    labels = tuple(map(str, range(classes)))
    data = encode_patch(PatchFile("task", labels, "0" * 64, values), layout)
    head_bytes = classes * (1280 + 8 * len(values))
    assert (len(data) - head_bytes) / len(values) <= 140_000


def test_a_file_cut_at_any_length_is_refused():
    for length in range(len(DATA)):
        with pytest.raises(PatchFileError):
            decode(DATA[:length])


def test_bytes_after_the_end_are_refused():
    for extra in (b"\0", b"\0" * 4096, DATA):
        with pytest.raises(PatchFileError):
            decode(DATA + extra)


def test_a_changed_byte_gives_a_typed_error_or_a_patch_within_the_rules():
    rng = np.random.default_rng(0)
    for position in range(len(DATA)):
        changed = bytearray(DATA)
        changed[position] ^= 1 << int(rng.integers(8))
        try:
            found = decode(bytes(changed))
        except PatchdeployError:
            continue
        encode_patch(found, LAYOUT)  # every value is one that a slot may take


@pytest.mark.parametrize("where", [0, 40, -1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -0.5, 1e-40])
def test_a_scale_that_is_not_finite_positive_and_normal_is_refused(value, where):
    scales = load(DATA)["16/weight_scale"].copy()
    scales[where] = value
    row = where % len(scales)
    with pytest.raises(PatchFileError) as caught:
        decode(forge({"16/weight_scale": scales}))
    assert str(caught.value) == (
        f"patch 'first' at 16 px: weight_scale[{row}] is {scales[where]!s}; "
        "a scale must be finite, positive and normal; export the task again"
    )


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
def test_an_activation_scale_outside_the_rule_is_refused(value):
    scales = load(DATA)["16/activation_scale"].copy()
    scales[LAYOUT.head_output] = value
    with pytest.raises(PatchFileError, match="activation_scale"):
        decode(forge({"16/activation_scale": scales}))


def test_an_int8_weight_of_minus_128_is_refused():
    head = load(DATA)["head"].copy()
    head[3] = -128
    with pytest.raises(PatchFileError) as caught:
        decode(forge({"head": head}))
    assert str(caught.value) == (
        f"patch 'first' at 16 px: weights[{LAYOUT.head_element + 3}] is -128; an int8 weight must "
        "lie in [-127, 127]; export the task again"
    )


@pytest.mark.parametrize(
    "arrays",
    [
        {"head": None},
        {"16/bias": None},
        {"stranger": np.zeros(3, np.int8)},
        {"16/head": np.zeros(3, np.int8)},
        {"32/bias": np.zeros(3, np.int32)},
        {"16/bias": np.zeros(3, np.int32)},
        {"16/bias": np.zeros(75, np.int64)},
        {"16/activation_zero_point": np.zeros((2, 5), np.int8)},
    ],
    ids=str,
)
def test_missing_unknown_and_misshapen_arrays_are_refused(arrays):
    with pytest.raises(PatchFileError):
        decode(forge(arrays))


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": 2},
        {"extra": 1},
        {"resolutions": []},
        {"resolutions": ["16"]},
        {"resolutions": None},
        {"classes": 7},
        {"metrics": [1, 2]},
    ],
    ids=str,
)
def test_metadata_outside_the_format_is_refused(metadata):
    with pytest.raises(PatchFileError):
        decode(forge(metadata=metadata))


def test_a_patch_of_another_base_is_refused_with_both_hashes():
    with pytest.raises(WrongBaseError) as caught:
        decode_patch(DATA, "ab" * 32, LAYOUT)
    assert str(caught.value) == (
        f"patch 'first' was made for base {PATCH.base_sha256}; this base is {'ab' * 32}; export "
        "the task over this base"
    )


def test_more_classes_than_the_head_has_rows_are_refused():
    labels = [str(k) for k in range(11)]
    expected = (
        "task 'first' has 11 classes; the exported head has 10 rows; export the base with a "
        "larger head capacity"
    )
    with pytest.raises(HeadCapacityError) as caught:
        decode(forge(metadata={"classes": labels}))
    assert str(caught.value) == expected
    with pytest.raises(HeadCapacityError) as caught:
        encode_patch(replace(PATCH, classes=tuple(labels)), LAYOUT)
    assert str(caught.value) == expected


def test_a_resolution_that_is_not_in_the_file_is_named():
    with pytest.raises(UnknownResolutionError) as caught:
        decode(DATA, 32)
    assert str(caught.value) == (
        "patch 'first' holds no 32 px; it has 16, 24; choose one of them or export the task again"
    )


@pytest.mark.parametrize("task", ["", "Digits", "a/b", "..", "x" * 65, "a b", "é"])
def test_a_task_name_outside_the_rule_is_refused(task):
    with pytest.raises(ConfigError, match="1 to 64 of a-z"):
        encode_patch(replace(PATCH, task=task), LAYOUT)


@pytest.mark.parametrize("labels", [(), ("one",), ("one", "one")])
def test_fewer_than_two_labels_or_one_twice_are_refused(labels):
    with pytest.raises(ConfigError, match="at least 2, each once"):
        encode_patch(replace(PATCH, classes=labels), LAYOUT)


def test_a_padding_row_that_is_not_masked_is_refused():
    values = {px: with_live_row(one, LAYOUT.head_capacity - 1) for px, one in PATCH.values.items()}
    with pytest.raises(PatchFileError, match="bias of a head row beyond its 7 classes"):
        encode_patch(replace(PATCH, values=values), LAYOUT)


def test_metrics_that_are_not_json_are_refused():
    for metrics in ({"top1": float("nan")}, {"array": np.zeros(2)}):
        with pytest.raises(ConfigError, match="are not JSON"):
            encode_patch(replace(PATCH, metrics=metrics), LAYOUT)


def test_masking_changes_copies_and_leaves_its_argument():
    values = PATCH.values[16]
    before = values.bias.copy()
    masked = masked_head_rows(values, 2, LAYOUT)
    assert np.array_equal(values.bias, before)
    run = slice(LAYOUT.head_row + 2, LAYOUT.head_row + LAYOUT.head_capacity)
    assert (masked.bias[run] == -131072).all()
    assert (values.bias[run] != -131072).any()
