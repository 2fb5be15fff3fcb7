"""Row 18 of the fault table: patches that load and run, and say something else than was tested.

Each has the right hashes of what it does, a valid signature and the golden scores of the good
patch, as if a mistake had come in between testing and packing. The self-test must refuse it, the
patch before must stay, and a running Engine must not notice. Controls: the good patch is taken,
and so is each bad one that carries its own scores: what refuses it is the self-test alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from bundle_cases import KEY, make_bundle, make_patch
from graph_cases import CLASSES, random_images
from numpy.typing import NDArray
from tried import Told, Verdicts

from patchdeploy.bundle import Bundle
from patchdeploy.coding.layout import PatchLayout, masked_head_rows
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile.golden import Golden
from patchdeploy.patchfile.pack import (
    TOLERANCE_LSB,
    GoldenInputs,
    PackedPatch,
    Release,
    Signer,
    pack_patch,
)
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.slots import PatchValues

CASE = "residual"
"""The case of graph_cases whose scores depend most on the picture: through some of the others a
picture moves a score by 1 LSB, and so does a mistake in the first layers."""
TASK = "first"
IMAGES = random_images(2, 16)

Plant = Callable[[PatchValues, CodingTable], PatchValues]


def _rows(table: CodingTable, name: str) -> slice:
    """The rows of a convolution in the flat arrays."""
    start = 0
    for conv in table.convs:
        if conv.name == name:
            return slice(start, start + conv.rows)
        start += conv.rows
    raise KeyError(name)


def _set(array: NDArray, rows: object, value: object) -> NDArray:
    changed = array.copy()
    changed[rows] = value
    return changed


def _shuffle_scales(values: PatchValues, table: CodingTable) -> PatchValues:
    rows = _rows(table, "branch")
    own = values.weight_scale[rows][::-1]
    return replace(values, weight_scale=_set(values.weight_scale, rows, own))


def _shift_scales(values: PatchValues, table: CodingTable) -> PatchValues:
    rows = _rows(table, "stem")
    own = np.roll(values.weight_scale[rows], 1)
    return replace(values, weight_scale=_set(values.weight_scale, rows, own))


def _scale_by(name: str, factor: float) -> Plant:
    def plant(values: PatchValues, table: CodingTable) -> PatchValues:
        rows = _rows(table, name)
        own = values.weight_scale[rows] * np.float32(factor)
        return replace(values, weight_scale=_set(values.weight_scale, rows, own))

    return plant


def _move_biases(values: PatchValues, table: CodingTable) -> PatchValues:
    rows = _rows(table, "branch3")
    return replace(values, bias=_set(values.bias, rows, np.roll(values.bias[rows], 1)))


def _zero_biases(values: PatchValues, table: CodingTable) -> PatchValues:
    rows = _rows(table, "branch")
    return replace(values, bias=_set(values.bias, rows, 0))


def _negate_biases(values: PatchValues, table: CodingTable) -> PatchValues:
    rows = _rows(table, "stem")
    return replace(values, bias=_set(values.bias, rows, -values.bias[rows]))


def _flip_top_bit(values: PatchValues, table: CodingTable) -> PatchValues:
    """One bit of one bias: what a fault in memory does."""
    row = _rows(table, "branch3").start
    return replace(values, bias=_set(values.bias, row, values.bias[row] ^ (1 << 20)))


def _double_activation(index: Callable[[PatchLayout], int]) -> Plant:
    def plant(values: PatchValues, table: CodingTable) -> PatchValues:
        site = index(table.layout)
        doubled = values.activation_scale[site] * np.float32(2)
        scales = _set(values.activation_scale, site, doubled)
        return masked_head_rows(replace(values, activation_scale=scales), CLASSES, table.layout)

    return plant


def _move_scores(by: int) -> Plant:
    """The zero point of the scores moved: every score that does not saturate moves as far."""

    def plant(values: PatchValues, table: CodingTable) -> PatchValues:
        site = table.layout.head_output
        moved = values.activation_zero_point[site] - by
        points = _set(values.activation_zero_point, site, moved)
        return replace(values, activation_zero_point=points)

    return plant


def _head_rows(table: CodingTable) -> tuple[slice, slice]:
    layout = table.layout
    elements = CLASSES * layout.head_row_elements
    return (
        slice(layout.head_row, layout.head_row + CLASSES),
        slice(layout.head_element, layout.head_element + elements),
    )


def _swap_heads(values: PatchValues, table: CodingTable) -> PatchValues:
    """Two classes change places in kernel, scale and bias."""
    rows, elements = _head_rows(table)
    order = [1, 0, *range(2, CLASSES)]
    kernel = values.weights[elements].reshape(CLASSES, -1)[order].reshape(-1)
    return replace(
        values,
        weights=_set(values.weights, elements, kernel),
        weight_scale=_set(values.weight_scale, rows, values.weight_scale[rows][order]),
        bias=_set(values.bias, rows, values.bias[rows][order]),
    )


def _head_kernel(change: Callable[[NDArray[np.int8]], NDArray[np.int8]]) -> Plant:
    def plant(values: PatchValues, table: CodingTable) -> PatchValues:
        elements = _head_rows(table)[1]
        changed = change(values.weights[elements])
        return replace(values, weights=_set(values.weights, elements, changed))

    return plant


def _other_task(values: PatchValues, table: CodingTable) -> PatchValues:
    px = next(px for px, one in GOOD.values.items() if one is values)
    return make_patch(CASE, task=TASK, seed=77)[1].values[px]


def _other_resolution(values: PatchValues, table: CodingTable) -> PatchValues:
    return next(one for one in GOOD.values.values() if one is not values)


GOOD = make_patch(CASE, task=TASK, seed=21)[1]
PLANTED: dict[str, Plant] = {
    "the scales of a convolution in reverse": _shuffle_scales,
    "the scales of the first convolution one row on": _shift_scales,
    "a convolution's scales doubled": _scale_by("branch2", 2),
    "a convolution's scales a quarter": _scale_by("branch3", 0.25),
    "biases one row on": _move_biases,
    "biases lost": _zero_biases,
    "biases of the other sign": _negate_biases,
    "a high bit of one bias": _flip_top_bit,
    "the scale of the head's input doubled": _double_activation(lambda one: one.head_input),
    "the scale of the first convolution's output doubled": _double_activation(lambda one: 1),
    "every score moved by one LSB more than is allowed": _move_scores(TOLERANCE_LSB + 1),
    "two classes swapped in the head": _swap_heads,
    "the head's kernel negated": _head_kernel(np.negative),
    "the head's kernel lost": _head_kernel(np.zeros_like),
    "the head's kernel one element on": _head_kernel(lambda one: np.roll(one, 1)),
    "another task's values": _other_task,
    "the resolutions' values swapped": _other_resolution,
}


def plant(name: str, table: CodingTable) -> PatchFile:
    """The good patch with one mistake, at every resolution."""
    return _change(PLANTED[name], table)


def _change(change: Plant, table: CodingTable) -> PatchFile:
    changed = {px: change(values, table) for px, values in GOOD.values.items()}
    return replace(GOOD, values=changed)


def draw_thumbnails() -> NDArray[np.uint8]:
    """Eight pictures that differ as photographs do: in light, in colour and in shape."""
    ramp = np.linspace(0, 255, 8).astype(np.uint8)
    pictures = np.zeros((8, 8, 8, 3), np.uint8)
    pictures[1] = 255
    pictures[2, ..., 0] = 255
    pictures[3, ..., 1], pictures[3, ..., 2] = ramp[:, None], ramp
    pictures[4] = (np.add.outer(range(8), range(8)) % 2 * 255)[..., None]
    pictures[5, :4] = 255
    pictures[6, ..., 2], pictures[6, 2:5, 2:5, 0] = 200, 255
    pictures[7] = 128
    return pictures


def _pack(
    bundle: Bundle, patch: PatchFile, sequence: int, inputs: GoldenInputs | None
) -> PackedPatch:
    return pack_patch(
        patch,
        bundle.coding_table,
        bundle.base_files(),
        release=Release(sequence, signers=(Signer(KEY, 0),)),
        golden=inputs,
    )


def try_planted(folder: Path, runtime: str = "litert", names: Sequence[str] = ()) -> Told:
    """Row 18 on one runtime: each planted patch after the good one, in a store and an Engine.

    Args:
        names: of PLANTED; by default all.
    """
    names = names or tuple(PLANTED)
    bundle = make_bundle(folder / "bundle", CASE, tasks=(), signed=True)
    table = bundle.coding_table
    inputs = GoldenInputs(bundle.reference(), draw_thumbnails())
    store = open_store(folder / "store", bundle, runtime)
    good = _pack(bundle, GOOD, 1, inputs)
    assert good.patch.golden is not None
    first = store.install(good.data)
    seen, least = Verdicts(), 255
    with Engine.open(bundle, runtime, store=store, refresh_seconds=None) as engine:
        before = engine.logits(IMAGES, TASK, 16)
        for number, name in enumerate(names):
            lying = replace(plant(name, table), golden=good.patch.golden)
            bad = _pack(bundle, lying, 2 + number, None)
            files = sorted(path.name for path in store.folder.iterdir())
            code = _install(store, bad.data)
            seen.expect(code, "self_test", name)
            assert dict(store.active()) == {TASK: first.sha256}, name
            assert store.read(TASK).data == good.data, name
            assert sorted(path.name for path in store.folder.iterdir()) == files, name
            assert engine.refresh() == (), name
            assert np.array_equal(engine.logits(IMAGES, TASK, 16), before), name
            least = min(least, _distance(good.patch.golden, plant(name, table), inputs, bundle))
    taken = _try_controls(folder, bundle, inputs, runtime, names)
    allowed = replace(_change(_move_scores(TOLERANCE_LSB), table), golden=good.patch.golden)
    assert _install(store, _pack(bundle, allowed, 99, None).data) == "ok"  # the tolerance itself
    return Told(
        f"{len(names)} planted patches on {runtime}, the closest {least} LSB from the scores "
        f"that travel with it (allowed: {inputs.tolerance_lsb}); {taken} controls with scores of "
        "their own",
        f"{seen.listed()}; the patch before stayed and an Engine over it gave the same bits; every "
        f"control was taken, and one whose scores moved by just the {TOLERANCE_LSB} LSB allowed",
        seen.count + taken + 1,
    )


def see_limits(folder: Path) -> dict[str, str]:
    """What the self-test says where docs/faults.md says that it cannot see, or can; no tolerance.

    The labels in another order; and the scale of the image doubled, on both runtimes.
    """
    bundle = make_bundle(folder / "bundle", CASE, tasks=(), signed=True)
    inputs = GoldenInputs(bundle.reference(), draw_thumbnails(), tolerance_lsb=0)
    good = _pack(bundle, GOOD, 1, inputs).patch.golden
    image = _change(_double_activation(lambda layout: 0), bundle.coding_table)
    labels = replace(GOOD, classes=GOOD.classes[::-1], golden=good)
    scale = replace(image, golden=good)
    found = {}
    for what, patch, runtime in (
        ("labels", labels, "litert"),
        ("image on TFLite", scale, "litert"),
        ("image on ONNX", scale, "onnxruntime"),
    ):
        store = open_store(folder / what, bundle, runtime)
        found[what] = _install(store, _pack(bundle, patch, 1, None).data)
    return found


def _install(store: object, data: bytes) -> str:
    try:
        store.install(data)  # type: ignore[attr-defined]
    except PatchRefusedError as error:
        return error.code
    return "ok"


def _try_controls(
    folder: Path, bundle: Bundle, inputs: GoldenInputs, runtime: str, names: Sequence[str]
) -> int:
    """The good patch and each planted one, tested as they are: the store takes all of them."""
    store = open_store(folder / "controls", bundle, runtime)
    table = bundle.coding_table
    patches = {"good": GOOD, **{name: plant(name, table) for name in names}}
    for number, (name, patch) in enumerate(patches.items()):
        packed = _pack(bundle, patch, 1 + number, inputs)
        assert _install(store, packed.data) == "ok", name
        assert store.read(TASK).data == packed.data, name
    return len(patches)


def _distance(golden: Golden, patch: PatchFile, inputs: GoldenInputs, bundle: Bundle) -> int:
    """The largest difference of the integer executor's scores of ``patch`` to ``golden``, LSB."""
    scores = inputs.score(patch, tuple(bundle.base_files()))
    worst = 0
    for runtime, by_side in golden.scores.items():
        for px, expected in by_side.items():
            found = scores.scores[runtime][px].astype(int)
            worst = max(worst, int(np.abs(found - expected.astype(int)).max()))
    return worst
