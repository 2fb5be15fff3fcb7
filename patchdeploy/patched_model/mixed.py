"""Batches whose images belong to different tasks: the convolutions run once for all of them.

In: a `Base`, patches with the same sites, images and the number of each image's task. Out: class
scores. Scales and biases are gathered for each image after every shared convolution, statistics
belong to each task's images, every task has a head of its own. The same pass serves inference and
training; gradients reach the rows of the tasks in the batch and nothing else. After Punica and
S-LoRA (arXiv 2310.18547, 2311.03285), which batch language-model adapters so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.errors import (
    AlreadyAttachedError,
    PatchError,
    UnknownTaskError,
)
from patchdeploy.patch import Patch, PatchConfig, check_reach, recognise_patch
from patchdeploy.patch.joined import batch_share
from patchdeploy.patch.tensors import initial_tensors, trained_names
from patchdeploy.patched_model.agreement import check_agreement
from patchdeploy.patched_model.layers import Current, Pass, build_structure, mask_scores, pick
from patchdeploy.patched_model.rows import HEAD, RowLayout, Rows, plan_rows


class MixedTaskModel(nn.Module):
    """Tasks over one base, run together at one resolution.

    The base stays in evaluation mode and is never written. As in `PatchedModel`, ``train()``
    matters to tasks whose statistics are "batch" alone: with gradients enabled, each task's images
    in the batch are normalised by their own mean and variance, and its running ones learn. One
    model belongs to one thread at a time. Fastest with images that are channels last in memory
    and the same number of images for each task in the batch.

    Args:
        base: shared, never written.
        resolution: side of the images in pixels; by default the base's own.
        device: where it runs; elsewhere than on the CPU the base is copied there once.
    """

    def __init__(
        self, base: Base, resolution: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self._device = torch.device(device)
        if self._device.type != "cpu":
            base = replace(base, module=copy.deepcopy(base.module).to(self._device))
        self._base = [base]  # in lists, so that they are no submodules
        self._structure: list[nn.Module] = []
        self._layout: list[RowLayout] = []
        self._resolution = resolution or base.preprocessing.input_size
        self._rows: dict[str, Rows] = {}
        self._configs: dict[str, PatchConfig] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        self._current = Current()

    @property
    def base(self) -> Base:
        """The shared base."""
        return self._base[0]

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self._resolution

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._device

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names; a task's number is its place among them."""
        return tuple(self._rows)

    def add_task(
        self, task: str, classes: tuple[str, ...], config: PatchConfig | None = None
    ) -> None:
        """Attach a new task at the base's values, with a random head.

        Raises:
            AlreadyAttachedError: the name is taken.
            PatchError: other sites or statistics than those of the tasks attached before, or
                settings that would do nothing (`check_reach`).
            UnknownLayerError: a pattern of ``config`` selects nothing.
        """
        config = config or next(iter(self._configs.values()), PatchConfig())
        check_reach(self.base, config, len(classes))
        self._attach(task, classes, config, initial_tensors(self.base, config, len(classes)))

    def load_patch(self, patch: Patch) -> None:
        """Attach the variant of ``patch`` at this model's resolution.

        Raises:
            WrongBaseError: it was trained on another base.
            UnknownResolutionError: it has no such variant.
            AlreadyAttachedError: the name is taken.
            PatchError: other sites or statistics than those of the tasks attached before, or a
                tensor that is missing or of another shape.
        """
        patch = recognise_patch(self.base, patch, "attach it to the base that it was trained on")
        variant = patch.tensors(self.resolution)
        tensors = {key: torch.tensor(value) for key, value in variant.items()}
        needed = initial_tensors(self.base, patch.config, len(patch.classes))
        for key in sorted(needed.keys() | tensors.keys()):
            found, rule = (
                list(one[key].shape) if key in one else "missing" for one in (tensors, needed)
            )
            if found != rule:
                raise PatchError(
                    f"patch {patch.task!r} at {self.resolution} px: tensor {key!r} is {found}; its "
                    f"settings on base {self.base.name!r} make it {rule}; save the patch again"
                )
        self._attach(patch.task, patch.classes, patch.config, tensors)

    def detach_task(self, task: str) -> None:
        """Take a task off; those after it move up by one number.

        Raises:
            UnknownTaskError: it is not attached.
        """
        self._known(task)
        del self._rows[task], self._configs[task], self._classes[task]

    def number(self, task: str) -> int:
        """A task's number, for `forward`.

        Raises:
            UnknownTaskError: it is not attached.
        """
        return self.tasks.index(self._known(task))

    def classes(self, task: str) -> tuple[str, ...]:
        """A task's labels."""
        return self._classes[self._known(task)]

    def rows(self, task: str) -> Rows:
        """A task's tensors as `RowLayout` lays them out; training's leaves, not copies."""
        return self._rows[self._known(task)]

    def tensors(self, task: str) -> dict[str, Tensor]:
        """A task's tensors by state-dict name: views of its rows, without gradients."""
        return self._layout[0].views(self._rows[self._known(task)])

    def pack(self, tensors: Mapping[str, Tensor]) -> Rows:
        """Values by state-dict name, such as bounds, laid out as the rows are."""
        return {key: row.to(self._device) for key, row in self._layout[0].pack(tensors).items()}

    def to_patch(self, task: str, metrics: Mapping[str, Any] | None = None) -> Patch:
        """A task as a `Patch` with one variant."""
        arrays = {key: value.cpu().numpy().copy() for key, value in self.tensors(task).items()}
        return Patch(
            task,
            self.base.sha256,
            self._configs[task],
            self._classes[task],
            {self.resolution: arrays},
            dict(metrics or {}),
        )

    def forward(self, images: Tensor, tasks: Tensor) -> Tensor:
        """Class scores of every image by its own task.

        Args:
            images: float32 [N, 3, H, W], normalised by ``base.preprocessing``.
            tasks: int64 [N], the number of each image's task; on the CPU, or the call waits for
                the device.

        Returns:
            [N, K], K the largest number of classes among the tasks in the batch; minus infinity
            beyond the classes of an image's task, so that argmax never chooses there.

        Raises:
            PatchError: ``tasks`` does not name a task for each image.
            UnknownTaskError: a number without a task.
        """
        order, counts = self._plan(images, tasks)
        if order is not None:
            images = pick(images, order)
        rows = list(self._rows.values())
        now = self._prepare([rows[k] for k in counts], list(counts.values()))
        scores = self._run(now, images)
        self._learn_statistics(now)
        scores = mask_scores(scores, now)
        return scores if order is None else pick(scores, torch.argsort(order))

    def _run(self, now: Pass, images: Tensor) -> Tensor:
        with self._current.set_to(now):
            scores: Tensor = self._structure[0](images)
        return scores

    def _run_tensors(self, tasks: Sequence[Mapping[str, Tensor]], images: Tensor) -> Tensor:
        """Scores of equally many images of each of ``tasks``, tensors by state-dict name."""
        rows = [self.pack(one) for one in tasks]
        return self._run(self._prepare(rows, [len(images) // len(rows)] * len(rows)), images)

    def _attach(
        self,
        task: str,
        classes: tuple[str, ...],
        config: PatchConfig,
        tensors: Mapping[str, Tensor],
    ) -> None:
        if task in self._rows:
            raise AlreadyAttachedError(
                f"task {task!r} is attached already; each name is attached once; detach it first "
                "or choose another name"
            )
        layout = plan_rows(self.base, config)
        self._check_same(task, layout, config)
        if not self._layout:
            structure = build_structure(self.base, layout, self._current)
            self._layout.append(replace(layout, epsilon=layout.epsilon.to(self._device)))
            self._structure.append(structure)
            try:
                check_agreement(self.base, config, len(classes), self.resolution, self._run_tensors)
            except Exception:
                self._layout.clear()
                self._structure.clear()
                raise
        rows = {key: row.to(self._device) for key, row in layout.pack(tensors).items()}
        trained = trained_row_names(self.base, config)
        for key, row in rows.items():
            row.requires_grad_(key in trained)
        self._rows[task], self._configs[task], self._classes[task] = rows, config, tuple(classes)

    def _check_same(self, task: str, layout: RowLayout, config: PatchConfig) -> None:
        for other, known in self._configs.items():
            for what, old, new in (
                ("statistics", known.statistics, config.statistics),
                ("sites", self._layout[0].pieces.keys(), layout.pieces.keys()),
            ):
                if old != new:
                    said = f"{new!r}, not {old!r}" if isinstance(new, str) else "of its own"
                    raise PatchError(
                        f"task {task!r} has {what} {said}, beside task {other!r}; tasks in one "
                        "batch share kinds, patterns and statistics; use a PatchedModel, or train "
                        "it with the same settings"
                    )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _plan(self, images: Tensor, tasks: Tensor) -> tuple[Tensor | None, dict[int, int]]:
        """The order that sorts the batch by task (None: it is sorted), and the number of images of
        each task in it. Not compiled: it depends on values, the layers on counts alone.
        """
        numbers = self._check(images, tasks)
        sorted_already = bool((numbers[1:] >= numbers[:-1]).all())
        order = None if sorted_already else torch.argsort(numbers, stable=True)
        present, counts = torch.unique(numbers, return_counts=True)
        return order, dict(zip(present.tolist(), counts.tolist(), strict=True))

    def _check(self, images: Tensor, tasks: Tensor) -> Tensor:
        if not self._rows:
            raise UnknownTaskError("no task is attached; attach one with add_task or load_patch")
        if tasks.dtype != torch.int64 or tasks.shape != images.shape[:1] or len(tasks) == 0:
            raise PatchError(
                f"tasks are {str(tasks.dtype).removeprefix('torch.')} {list(tasks.shape)} for "
                f"images {list(images.shape)}; they must be int64, one number for each of at least "
                "1 image; see MixedTaskModel.number"
            )
        numbers = tasks.cpu()
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= len(self._rows):
            wrong = low if low < 0 else high
            raise UnknownTaskError(
                f"task number {wrong}; {len(self._rows)} tasks are attached, from 0 to "
                f"{len(self._rows) - 1}; see MixedTaskModel.number"
            )
        return numbers

    @property
    def _learns(self) -> bool:
        """The tasks' statistics are the batch's, in training."""
        return any(one.statistics == "batch" for one in self._configs.values())

    def _known(self, task: str) -> str:
        if task not in self._rows:
            raise UnknownTaskError(
                f"task {task!r} is not attached; attached: {', '.join(self._rows) or 'none'}; add "
                "or load it first"
            )
        return task

    def _prepare(self, rows: Sequence[Rows], counts: list[int]) -> Pass:
        """What the layers read in this pass."""
        layout = self._layout[0]
        learns = self._learns and self.training and torch.is_grad_enabled()
        kernels = [layout.split_kernels(one) for one in rows]
        now = Pass(rows, counts, layout, learns, kernels)
        if not layout.widths:
            return now
        scale, bias = (torch.stack([one[key] for one in rows]) for key in ("scale", "bias"))
        if layout.normalised and not learns:
            mean, var = (torch.stack([one[key] for one in rows]) for key in ("mean", "var"))
            scale, bias = fold_statistics(scale, bias, mean, var, layout.epsilon)
        if not learns:
            scale, bias = now.gather(scale), now.gather(bias)
        widths = list(layout.widths)
        return replace(
            now, scales=torch.split(scale, widths, 1), biases=torch.split(bias, widths, 1)
        )

    @torch.no_grad()
    def _learn_statistics(self, now: Pass) -> None:
        """Running statistics move to the batch's by each normalisation's momentum."""
        if not now.moments:
            return
        mean, var = (torch.stack([row[key] for row in now.rows]) for key in ("mean", "var"))
        for path, batch_mean, batch_var in now.moments:
            piece = now.layout.pieces[f"{path}.running_mean"]
            place = slice(piece.start, piece.start + piece.values)
            momentum = batch_share(self.base.module.get_submodule(path))
            mean[:, place].lerp_(batch_mean, momentum)
            var[:, place].lerp_(batch_var, momentum)
        for row, new_mean, new_var in zip(now.rows, mean, var, strict=True):
            row["mean"].copy_(new_mean)
            row["var"].copy_(new_var)


def trained_row_names(base: Base, config: PatchConfig) -> frozenset[str]:
    """The rows that gradients reach; compare `patch.tensors.trained_names`."""
    pieces = plan_rows(base, config).pieces
    names = {
        pieces[key].row if key in pieces else HEAD + key.rpartition(".")[2]
        for key in trained_names(base, config)
    }
    return frozenset(names)


def fold_statistics(
    scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and bias [T, S] with the statistics [T, M] of the first M channels in them.

    y = gamma (x - mu) / sqrt(var + eps) + beta = s x + (beta - s mu), s = gamma / sqrt(var + eps).
    """
    count = len(epsilon)
    folded = scale[:, :count] * torch.rsqrt(var + epsilon)
    shift = bias[:, :count] - mean * folded
    if count == scale.shape[1]:
        return folded, shift
    return torch.cat([folded, scale[:, count:]], 1), torch.cat([shift, bias[:, count:]], 1)
