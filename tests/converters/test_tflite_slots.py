"""The slots and views of a .tflite file: overlay is the stand-alone export, byte for byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from graph_cases import (
    GRAPH_CASES,
    make_base,
    make_case,
    make_variant,
    random_images,
)
from hypothesis import given
from hypothesis import strategies as st
from patchdeploy_tflite import TFLiteConverter

from patchdeploy.convert import WrittenModel
from patchdeploy.errors import QuantizationError
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import (
    QuantizedBase,
    flatten_variant,
    neutral_variant,
)
from patchdeploy.quantize.runtimes import arithmetic_of
from patchdeploy.slots import SlotTable, check_table, overlay, select_view

LITERT = arithmetic_of("tflite")

RESOLUTIONS = (16, 17, 24)


def parse(data: bytes | bytearray) -> Any:
    """The whole file as objects: every table and vector is read."""
    return schema.ModelT.InitFromPackedBuf(bytes(data))


def write_neutral(
    base: QuantizedBase, resolutions: tuple[int, ...], **options: bool
) -> WrittenModel:
    variants = {px: neutral_variant(base, px) for px in resolutions}
    return TFLiteConverter(**options).write(base, variants)


@pytest.mark.parametrize("case", GRAPH_CASES)
@pytest.mark.parametrize("owned", [(), ("dw1", "multiplied", "dw")])
def test_overlay_is_byte_identical_to_exporting_the_task_alone(
    case: str, owned: tuple[str, ...]
) -> None:
    names = {conv.name for conv in GRAPH_CASES[case]().convolutions()}
    base, variants = make_case(case, RESOLUTIONS, seed=5, patch_owned=sorted(names & {*owned}))
    alone = TFLiteConverter().write(base, variants)
    neutral = write_neutral(base, RESOLUTIONS)
    values = {px: flatten_variant(base, variant) for px, variant in variants.items()}
    patched = overlay(neutral.data, neutral.table, values)
    assert patched == alone.data
    assert neutral.data != alone.data
    runner = Interpreter(model_content=bytes(patched)).get_signature_runner("classify_17")
    images = random_images(1, 17)
    expected = run_integer(base, variants[17], images, LITERT).logits
    np.testing.assert_array_equal(runner(image=images)["scores"], expected)
    assert neutral.table.slots == alone.table.slots
    check_table(neutral.table)
    assert SlotTable.from_json(neutral.table.to_json()) == neutral.table


BASE = make_base(GRAPH_CASES["squeeze_excitation"](), patch_owned=("stem",))
NEUTRAL = write_neutral(BASE, (8, 16))


@given(seeds=st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)))
def test_overlay_is_byte_identical_for_any_task(seeds: tuple[int, int]) -> None:
    variants = {px: make_variant(BASE, px, seed) for px, seed in zip((8, 16), seeds, strict=True)}
    for name in ("head",):
        variants[16].weights[name][...] = variants[8].weights[name]  # type: ignore[index]
    values = {px: flatten_variant(BASE, variant) for px, variant in variants.items()}
    written = TFLiteConverter().write(BASE, variants).data
    assert overlay(NEUTRAL.data, NEUTRAL.table, values) == written


def test_one_resolution_can_be_set_and_the_others_stay_as_they_are() -> None:
    base, variants = make_case("conv_stack", RESOLUTIONS)
    neutral = write_neutral(base, RESOLUTIONS)
    patched = overlay(neutral.data, neutral.table, {17: flatten_variant(base, variants[17])})
    changed = np.flatnonzero(
        np.frombuffer(neutral.data, np.uint8) != np.frombuffer(bytes(patched), np.uint8)
    )
    allowed = np.zeros(len(patched), bool)
    for slot in neutral.table.slots:
        if slot.resolution in (17, None):
            allowed[slot.offset_bytes : slot.offset_bytes + slot.length_bytes] = True
    assert len(changed) > 100
    assert allowed[changed].all()
    runner = Interpreter(model_content=bytes(patched)).get_signature_runner("classify_17")
    images = random_images(1, 17)
    expected = run_integer(base, variants[17], images, LITERT).logits
    np.testing.assert_array_equal(runner(image=images)["scores"], expected)


def test_the_slots_of_a_resolution_lie_together() -> None:
    """So that setting them touches few pages of a mapped file."""
    slots = write_neutral(make_base(GRAPH_CASES["branches"]()), RESOLUTIONS).table.slots
    order = [slot.resolution for slot in slots]
    runs = [px for k, px in enumerate(order) if k == 0 or order[k - 1] != px]
    assert len(runs) == len(set(runs)) == 4
    for before, slot in pairwise(slots):
        if before.resolution == slot.resolution:
            gap_bytes = slot.offset_bytes - before.offset_bytes - before.length_bytes
            # The length of the vector (4) and at most 15 to align its first element.
            assert gap_bytes <= 4 + 15


def test_tied_values_have_one_slot_and_fixed_values_none() -> None:
    base = make_base(GRAPH_CASES["squeeze_excitation"]())
    table = write_neutral(base, (16,)).table
    found = Counter(slot.site for slot in table.slots if slot.kind == "activation_scale")
    sites = set(base.activation_sites()) - {"image", "sigmoid:out"}
    assert found == dict.fromkeys(sites, 1)
    branches = make_base(GRAPH_CASES["branches"]())
    table = write_neutral(branches, (16,)).table
    found = Counter(slot.site for slot in table.slots if slot.kind == "activation_zero_point")
    assert found == dict.fromkeys(set(branches.activation_sites()) - {"image"}, 1)


def test_patch_owned_depthwise_kernels_belong_to_a_resolution_and_the_head_to_all() -> None:
    base = make_base(GRAPH_CASES["conv_stack"](), patch_owned=("dw1", "dw2"))
    slots = [s for s in write_neutral(base, (16, 24)).table.slots if s.kind == "weight"]
    assert {(slot.site, slot.resolution, slot.layout) for slot in slots} == {
        ("dw1", 16, "1hwo"),
        ("dw2", 16, "1hwo"),
        ("dw1", 24, "1hwo"),
        ("dw2", 24, "1hwo"),
        ("head", None, "ohwi"),
    }
    apart = write_neutral(base, (16, 24), head_per_resolution=True).table.slots
    assert {s.resolution for s in apart if (s.site, s.kind) == ("head", "weight")} == {16, 24}


@pytest.mark.parametrize("px", RESOLUTIONS)
def test_a_view_leaves_one_signature_with_unchanged_results(px: int) -> None:
    base, variants = make_case("residual", RESOLUTIONS)
    written = TFLiteConverter().write(base, variants)
    view = bytes(select_view(bytearray(written.data), written.table, px))
    model = parse(view)
    assert [graph.name for graph in model.subgraphs] == [f"classify_{px}".encode()]
    assert [one.signatureKey for one in model.signatureDefs] == [f"classify_{px}".encode()]
    assert model.signatureDefs[0].subgraphIndex == 0
    interpreter = Interpreter(model_content=view)
    assert list(interpreter.get_signature_list()) == [f"classify_{px}"]
    images = random_images(1, px)
    whole = Interpreter(model_content=written.data).get_signature_runner(f"classify_{px}")
    found = interpreter.get_signature_runner(f"classify_{px}")(image=images)["scores"]
    np.testing.assert_array_equal(found, whole(image=images)["scores"])
    np.testing.assert_array_equal(found, run_integer(base, variants[px], images, LITERT).logits)


def test_views_and_slots_touch_different_bytes() -> None:
    base, variants = make_case("residual", RESOLUTIONS)
    table = TFLiteConverter().write(base, variants).table
    covered = np.zeros(table.base_bytes, bool)
    for slot in table.slots:
        covered[slot.offset_bytes : slot.offset_bytes + slot.length_bytes] = True
    for edits in table.views.values():
        for edit in edits:
            assert not covered[edit.offset_bytes : edit.offset_bytes + 4].any()


def test_different_heads_are_refused_or_stored_apart() -> None:
    base, variants = make_case("conv_stack", (16, 24), share_head=False)
    with pytest.raises(QuantizationError) as caught:
        TFLiteConverter().write(base, variants)
    assert str(caught.value) == (
        "the int8 kernel of 'head' at 24 px differs from the one at 16 px; a file keeps one head "
        "for all resolutions of a task; quantise the head once, or export with "
        "TFLiteConverter(head_per_resolution=True)"
    )
    written = TFLiteConverter(head_per_resolution=True).write(base, variants)
    interpreter = Interpreter(model_content=written.data)
    for px, variant in variants.items():
        images = random_images(1, px)
        found = interpreter.get_signature_runner(f"classify_{px}")(image=images)["scores"]
        expected = run_integer(base, variant, images, LITERT).logits
        np.testing.assert_array_equal(found, expected)


def test_a_variant_may_not_move_what_the_base_fixes() -> None:
    base, variants = make_case("conv_stack", (16,))
    activations = dict(variants[16].activations)
    activations["image"] = replace(activations["image"], zero_point=7)
    with pytest.raises(QuantizationError) as caught:
        TFLiteConverter().write(base, {16: replace(variants[16], activations=activations)})
    assert str(caught.value) == (
        "task 'task0' at 16 px sets 'image' to scale 1.0, zero point 7; the base fixes scale 1.0, "
        "zero point -5 there; quantise the task with this base"
    )
