"""A lowered graph against its module: the same pictures through both, in float.

In: a base, its graph, a resolution, pictures, a patch or none. Out: nothing but scores where the
two agree, or what differs. The module is what training trains and validates, so it is the truth:
a rule, a pass or a fold that is wrong shows here, and a forward pass that does at this size
something else than at the size it was traced at.

Agreement is a difference of at most `TOLERANCE` of the spread of the scores over the pictures, and
the same for what the last layer reads. The rounding of float32 sums stays far below: at most 2^-14
in the 17 torchvision networks of tests/lower_cases.py, and rounding to int8 costs 2^-7 and more.
Where signals almost vanish or chaos amplifies, rounding may exceed it: there the graph runs in
float64 too, and up to `ROUNDING` times what rounding does to the graph itself is agreement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from patchdeploy.data import Preprocessing
from patchdeploy.data.pixels import normalize_batch
from patchdeploy.errors import BaseError, LoweringMismatchError
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import FoldedNetwork, border_error_bound, fold_patch
from patchdeploy.graph import Graph
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patch.forward import run_structure, share_structure

if TYPE_CHECKING:
    from patchdeploy.base import Base

TOLERANCE = 2.0**-10
ROUNDING = 16.0
"""The module's sums are in another order than the graph's, so its rounding is another sample of
the same size; 16 standard deviations of it never come by chance."""
PICTURES = 4
BLOCKS = 5
NEUTRAL = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
"""Folds to the kernels as they are, for input that is normalised already."""
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class FloatScores:
    """What a task's float network says to some pictures.

    Attributes:
        module: of the torch module with the patch, float32 [N, classes].
        graph: of the lowered and folded network, float32 [N, classes].
    """

    module: FloatArray
    graph: FloatArray


@dataclass(frozen=True)
class Disagreement:
    """How a graph differs from its module.

    Attributes:
        where: what differs.
        share: the largest difference, as a share of the spread over the pictures.
        first: path of the first layer that reads other values than in the module; "" unknown.
        cause: what the module itself does, where that is the reason; else "".
    """

    where: str
    share: float
    first: str
    cause: str

    def __str__(self) -> str:
        text = f"{self.where} differ by {100 * self.share:.2g} % of their spread over the pictures"
        if self.first:
            text += f", and {self.first!r} is the first layer that reads other values"
        return text + (f"; {self.cause}" if self.cause else "")


def make_pictures(px: int, count: int = PICTURES) -> NDArray[np.uint8]:
    """Coarse blocks of colour under noise, uint8 [count, px, px, 3]; always the same ones.

    Every part of a picture counts, corners and borders too, and scores differ between pictures
    (over plain noise, a global mean hardly does).
    """
    generator = np.random.default_rng(px)
    coarse = generator.integers(0, 256, (count, BLOCKS, BLOCKS, 3))
    at = np.arange(px) * BLOCKS // px
    noise = generator.integers(-20, 21, (count, px, px, 3))
    pictures: NDArray[np.uint8] = np.clip(coarse[:, at][:, :, at] + noise, 0, 255).astype(np.uint8)
    return pictures


def compare_graph(
    base: Base, graph: Graph, px: int, pixels: NDArray[np.uint8] | None = None
) -> Disagreement | None:
    """Compare the base itself with ``graph`` at ``px``; None where they agree.

    Raises:
        BaseError: the module fails at this size.
        UnknownResolutionError: the graph cannot run at this size.
    """
    subject = _Subject(base, graph, {}, PatchConfig(), None, px)
    return _compare(subject, make_pictures(px) if pixels is None else pixels)[1]


def compare_patch(
    base: Base, graph: Graph, patch: Patch, px: int, pixels: NDArray[np.uint8]
) -> FloatScores:
    """The float scores of ``patch`` at ``px`` on ``pixels``, once module and graph agree.

    Args:
        pixels: uint8 [N, px, px, 3], at least 1 image; `make_pictures` are run beside them.

    Raises:
        LoweringMismatchError: they do not agree.
        BaseError: the module fails at this size.
    """
    tensors = {key: torch.tensor(value) for key, value in patch.tensors(px).items()}
    subject = _Subject(base, graph, tensors, patch.config, len(patch.classes), px)
    scores, found = _compare(subject, np.concatenate([pixels, make_pictures(px)]))
    if found is not None:
        raise LoweringMismatchError(
            f"task {patch.task!r} at {px} px: the network to be exported is not the one that was "
            f"trained: {found}; a graph must compute what its module computes; export at the "
            "resolutions where it does, or rewrite the layer"
        )
    count = len(pixels)
    return FloatScores(scores.module[:count], scores.graph[:count])


@dataclass(frozen=True)
class _Run:
    """What module or graph says to some pictures: scores, and what the last layer reads."""

    scores: FloatArray
    head: FloatArray | None


@dataclass(frozen=True)
class _Subject:
    """A module with a patch's tensors in place, and the graph that should be it."""

    base: Base
    graph: Graph
    tensors: Mapping[str, torch.Tensor]
    config: PatchConfig
    classes: int | None
    px: int

    def run_module(self, pixels: NDArray[np.uint8]) -> _Run:
        """The module on ``pixels``, its tensors those of the patch.

        Raises:
            BaseError: it fails.
        """
        seen = self.read_inputs(pixels, [self.base.head_name])
        head = seen.get(self.base.head_name)
        return _Run(seen[""], None if head is None else head.reshape(len(head), -1))

    def run_alone(self, pixels: NDArray[np.uint8]) -> _Run | None:
        """One image with gradients on: a forward pass may look at both.

        None where the module cannot: training and `Base.from_module` say so by themselves.
        """
        try:
            found = self.run_module(pixels)
        except BaseError:
            return None
        return found if len(found.scores) == 1 else None

    def read_inputs(self, pixels: NDArray[np.uint8], paths: Iterable[str]) -> dict[str, FloatArray]:
        """By path, what a layer reads when it is first called; under "" the scores."""
        structure = share_structure(self.base.module)
        seen: dict[str, FloatArray] = {}
        for path in paths:
            structure.get_submodule(path).register_forward_pre_hook(_keeper(seen, path))
        inputs = torch.from_numpy(normalize_batch(pixels, self.base.preprocessing))
        try:
            scores = run_structure(structure, self.tensors, inputs, self.config, training=False)
            seen[""] = scores.detach().flatten(1).numpy()
        except Exception as error:  # whatever a caller's own module raises
            raise BaseError(
                f"base {self.base.name!r} fails on images of {self.px} px ({error}); it must run "
                "at every resolution that it is exported at; choose another one or correct it"
            ) from error
        return seen

    def network(self) -> tuple[FoldedNetwork, Preprocessing | None]:
        """The folded network, and how pictures become its input: None for pixels as they are.

        Where `fold.border_error_bound` is not 0 it is folded for normalised input, so that this
        error, which is known and documented, stays out of the comparison.
        """
        tensors = {key: value.detach().cpu().numpy() for key, value in self.tensors.items()}
        network = fold_patch(self.graph, tensors, self.classes)
        if border_error_bound(network).max(initial=0.0) == 0.0:
            return network, None
        neutral = replace(self.graph, preprocessing=NEUTRAL)
        return fold_patch(neutral, tensors, self.classes), self.graph.preprocessing


@dataclass(frozen=True)
class _GraphRunner:
    """A folded network in one precision, and how it takes pictures."""

    runner: FloatRunner
    preprocessing: Preprocessing | None

    @classmethod
    def of(cls, subject: _Subject, precision: Literal["float32", "float64"]) -> _GraphRunner:
        network, preprocessing = subject.network()
        return cls(FloatRunner(network, precision), preprocessing)

    def run(self, pixels: NDArray[np.uint8]) -> _Run:
        graph = self.runner.network.graph
        head = next(conv.input for conv in graph.convolutions() if conv.name == graph.head)
        seen = self.read_values(pixels, {head})
        # The graph's input holds pixels where the module's holds normalised values.
        return _Run(seen[""], None if head == graph.input else seen[head])

    def read_values(self, pixels: NDArray[np.uint8], names: Set[str]) -> dict[str, Any]:
        """Values of the graph by name, [N, C * H * W]; under "" the scores."""
        seen: dict[str, Any] = {}

        def observe(name: str, value: torch.Tensor) -> None:
            if name in names:
                seen[name] = value.flatten(1).numpy().copy()

        if self.preprocessing is None:
            seen[""] = self.runner(pixels, observe)
        else:
            values = torch.from_numpy(normalize_batch(pixels, self.preprocessing))
            seen[""] = self.runner.run_values(values, observe).numpy()
        return seen


def _keeper(seen: dict[str, FloatArray], path: str) -> Any:
    def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault(path, inputs[0].detach().numpy().copy())

    return hook


def _compare(
    subject: _Subject, pixels: NDArray[np.uint8]
) -> tuple[FloatScores, Disagreement | None]:
    with torch.no_grad():
        module = subject.run_module(pixels)
    alone = subject.run_alone(pixels[:1])
    graph = _GraphRunner.of(subject, "float32").run(pixels)
    shares = _shares(module, alone, graph)
    scores = FloatScores(module.scores, graph.scores)
    if max(shares.values()) <= TOLERANCE:
        return scores, None
    exact = _GraphRunner.of(subject, "float64").run(pixels)
    rounding = _shares(graph, graph, exact)
    left = {
        where: share
        for where, share in _shares(module, alone, exact).items()
        if share > TOLERANCE and share > ROUNDING * rounding[where]
    }
    if not left:
        return scores, None
    where = next(iter(left))
    first = _first_difference(subject, pixels)
    return scores, Disagreement(where, left[where], first, _cause(subject, pixels, module))


def _shares(module: _Run, alone: _Run | None, graph: _Run) -> dict[str, float]:
    """How far ``graph`` is from ``module``, as shares of the module's spread over the pictures."""
    found = {"scores": _share(module.scores, graph.scores, module.scores)}
    if alone is not None:
        share = _share(alone.scores[:1], graph.scores[:1], module.scores)
        found["scores of an image that comes alone"] = share
    if module.head is not None and graph.head is not None and module.head.shape == graph.head.shape:
        found["last layer's input"] = _share(module.head, graph.head, module.head)
    return found


def _share(truth: FloatArray, found: Any, over: FloatArray) -> float:
    if truth.shape != found.shape:
        return float("inf")
    furthest = float(np.abs(truth - found).max(initial=0.0))
    spread = float(np.ptp(over.astype(np.float64), axis=0).max(initial=0.0))
    if not np.isfinite(furthest):
        return float("inf")
    return furthest / spread if spread else (float("inf") if furthest else 0.0)


def _first_difference(subject: _Subject, pixels: NDArray[np.uint8]) -> str:
    """Path of the first layer, in the graph's order, that reads other values; "" if none does.

    Layers whose input has another form in the graph (padding before them is part of them there)
    and later calls of a layer are passed over.
    """
    layers = {
        conv.name: conv.input for conv in subject.graph.convolutions() if not conv.is_constant
    }
    known = dict(subject.base.module.named_modules())
    layers = {path: value for path, value in layers.items() if path in known}
    with torch.no_grad():
        wanted = subject.read_inputs(pixels, layers)
    found = _GraphRunner.of(subject, "float32").read_values(pixels, set(layers.values()))
    for path, value in layers.items():
        truth = wanted.get(path)
        if value == subject.graph.input or truth is None:
            continue
        flat = truth.reshape(len(truth), -1)
        if flat.shape == found[value].shape and _share(flat, found[value], flat) > TOLERANCE:
            return path
    return ""


def _cause(subject: _Subject, pixels: NDArray[np.uint8], module: _Run) -> str:
    """What the module does to itself, where that explains a disagreement."""
    with torch.no_grad():
        again = subject.run_module(pixels)
        alone = subject.run_alone(pixels[:1])
    graded = subject.run_alone(pixels[:1])
    if _share(again.scores, module.scores, module.scores) > TOLERANCE:
        return "the module itself gives other scores when it runs again"
    if alone is None or graded is None:
        return ""
    if _share(alone.scores, module.scores[:1], module.scores) > TOLERANCE:
        return "the module itself gives an image other scores alone than in a batch"
    if _share(graded.scores, alone.scores, module.scores) > TOLERANCE:
        return "the module itself gives other scores with gradients than without"
    return ""
