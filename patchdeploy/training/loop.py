"""The one loop under every method: steps, ranks, validation, best epoch, checkpoint, resume.

In: a `Trainee`: where batches come from, what gradients reach, the loss. Out: its tensors at their
best epoch. A batch is a function of the seed and the step's number, and a checkpoint holds the
rest, so on CPUs a run that was killed or stopped ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from patchdeploy.base import OldHashWarning
from patchdeploy.errors import CheckpointError, NonFiniteLossError
from patchdeploy.patch.joined import Partners, joined_with
from patchdeploy.training.accuracy import LOSS_LIMIT, measure
from patchdeploy.training.checkpoint import (
    Position,
    RunState,
    load_checkpoint,
    put_back,
    save_checkpoint,
    snapshot,
)
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.ema import Ema
from patchdeploy.training.interrupt import watch_interrupt
from patchdeploy.training.objective import Forward, autocast
from patchdeploy.training.optimizer import make_optimizer, set_rates
from patchdeploy.training.samples import draw_batch, name_memory
from patchdeploy.training.trainee import (
    Trainee,
    check_sources,
    describe_memory,
    fingerprint,
    keep_signs,
)
from patchdeploy.training.workers import SINGLE, Workers

CHECK_EVERY = {"cpu": 1, "cuda": 50}
"""Steps between looks at the loss: on a GPU each look waits for all work to end."""


@dataclass(frozen=True)
class EpochRecord:
    """One line of ``metrics.jsonl``."""

    run: str
    epoch: int
    loss: float
    validation_top1: float
    learning_rate: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class FitResult:
    """Validation top-1 in [0, 1] of the tensors that were kept, by source."""

    validation_top1: tuple[float, ...]

    @property
    def mean_top1(self) -> float:
        """The mean over sources."""
        return sum(self.validation_top1) / len(self.validation_top1)


def fit(
    trainee: Trainee,
    config: TrainConfig,
    *,
    workers: Workers = SINGLE,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_step: Callable[[float, int], None] = lambda share, images: None,
) -> FitResult:
    """Train in place; ``trainee.state`` ends at the best epoch.

    Args:
        on_epoch: takes a record for each source and epoch, on the first rank.
        on_step: takes after each step the share of the epoch that is done, times the number of
            sources, and how many images the step took.

    Raises:
        DataError: no image to train on, or none to validate on.
        NonFiniteLossError: a loss that is not finite, or one of validation images over `LOSS_LIMIT`
            after every epoch that could be kept; the last checkpoint stays.
        TrainingError: a rank that stopped, or memory that ran out; the last checkpoint stays.
        CheckpointError: ``resume`` finds a checkpoint of other settings.
        StorageError: the checkpoint cannot be written.
        KeyboardInterrupt: Ctrl-C; with ``checkpoint`` the run is saved first.
    """
    check_sources(trainee, workers)
    with name_memory(describe_memory(trainee)):
        return _fit(trainee, config, workers, checkpoint, resume, on_epoch, on_step)


def _fit(
    trainee: Trainee,
    config: TrainConfig,
    workers: Workers,
    checkpoint: Path | None,
    resume: bool,
    on_epoch: Callable[[EpochRecord], None],
    on_step: Callable[[float, int], None],
) -> FitResult:
    run = _Run(trainee, config, workers, checkpoint)
    if checkpoint is not None and resume and checkpoint.exists():
        run.restore(checkpoint)
    with watch_interrupt(checkpoint is not None, workers.world) as interrupted:
        run.check_agreement()
        while run.position.epoch < config.epochs:
            start, begun = time.perf_counter(), run.position.step
            run.train_epoch(interrupted, on_step)
            seconds = time.perf_counter() - start
            run.finish_epoch(on_epoch, seconds, trainee.steps - begun)
        if interrupted():  # in the last validation, which ended and was saved
            raise KeyboardInterrupt
    put_back(trainee.state, run.best)
    run.optimizer.zero_grad(set_to_none=True)  # as large as all that was trained
    return FitResult(tuple(run.position.best_top1))


def make_step(trainee: Trainee, config: TrainConfig) -> Callable[[], None]:
    """A call is one step as `fit` takes it, without looking at the loss: for measuring."""
    run = _Run(trainee, config, SINGLE, None)

    def step() -> None:
        run._find_gradients(False)
        run._apply_gradients()
        run.position.step = (run.position.step + 1) % trainee.steps

    return step


class _Run:
    """A run as it goes on."""

    def __init__(
        self, trainee: Trainee, config: TrainConfig, workers: Workers, checkpoint: Path | None
    ) -> None:
        count = len(trainee.sources)
        self.trainee, self.config, self.workers = trainee, config, workers
        self.checkpoint = checkpoint
        self.shares = workers.shares([one.name for one in trainee.sources], trainee.coupled)
        self.device = next(iter(trainee.trained.values())).device
        self.optimizer = make_optimizer(trainee.groups, config)
        self.average = Ema(trainee.trained, config.ema_decay) if config.ema_decay else None
        self.best = snapshot(trainee.state)
        self.position = Position(best_top1=[-1.0] * count)
        self.partners: Partners | None = None
        self.statistics = {
            key: value for key, value in trainee.state.items() if key not in trainee.trained
        }
        self._open_epoch()

    def _open_epoch(self) -> None:
        count = len(self.trainee.sources)
        self.position.losses, self.position.images = [0.0] * count, [0.0] * count

    def restore(self, path: Path) -> None:
        """Go on from ``path``.

        Raises:
            CheckpointError: it cannot be read, or does not hold what this run trains.
        """
        saved = self._load(path)
        try:
            self._check_saved(saved)
            put_back(self.trainee.state, saved.state)
            self.optimizer.load_state_dict(dict(saved.optimizer))
            if self.average is not None:
                self.average.load_state_dict(saved.average)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path} does not hold what this run trains ({type(error).__name__}); "
                "it must be the file that this run wrote; remove it to start again"
            ) from error
        self.best = {key: value.to(self.device) for key, value in saved.best.items()}
        self.position = saved.position

    def _check_saved(self, saved: RunState) -> None:
        position, count = saved.position, len(self.trainee.sources)
        for tensors in (saved.state, saved.best):
            shapes = {key: value.shape for key, value in tensors.items()}
            if shapes != {key: value.shape for key, value in self.trainee.state.items()}:
                raise ValueError("other tensors")
        if {len(position.losses), len(position.images), len(position.best_top1)} != {count} or (
            position.epoch > self.config.epochs or position.step > self.trainee.steps
        ):
            raise ValueError("another position")

    def _load(self, path: Path) -> RunState:
        try:
            return load_checkpoint(path, fingerprint(self.trainee, self.config))
        except CheckpointError:
            try:
                saved = load_checkpoint(path, fingerprint(self.trainee, self.config, former=True))
            except CheckpointError:
                saved = None
            if saved is None:
                raise
        warnings.warn(
            f"checkpoint {path} names its base by the hash of the tensors alone, as earlier "
            "versions did; what is computed with them was not compared; it is written anew with "
            "today's hash",
            OldHashWarning,
            stacklevel=2,
        )
        return saved

    def check_agreement(self) -> None:
        """All ranks train the same run from the same step."""
        if self.workers.world > 1:
            settings = fingerprint(self.trainee, self.config)
            facts = {"settings": settings, "checkpoint": repr(vars(self.position))}
            self.workers.check_agreement(facts, self.device)
            names = [one.name for one in self.trainee.sources]
            self.partners = self.workers.partners(names, self.trainee.coupled)

    def save(self) -> None:
        """Write the checkpoint (rank 0); the tensors that ranks do not sum are brought together."""
        self._join_statistics()
        if self.checkpoint is None or self.workers.rank != 0:
            return
        average = self.average.state_dict() if self.average is not None else {}
        state = snapshot(self.trainee.state)
        run = RunState(self.position, state, self.optimizer.state_dict(), self.best, average)
        save_checkpoint(self.checkpoint, fingerprint(self.trainee, self.config), run)

    def train_epoch(
        self, interrupted: Callable[[], bool], on_step: Callable[[float, int], None]
    ) -> None:
        """The rest of the epoch's steps."""
        steps, every = self.trainee.steps, CHECK_EVERY.get(self.device.type, 1)
        sources = self.trainee.sources
        images = sum(min(one.batch_size, len(one.train)) for one in sources)
        if self.position.step == 0:
            self.trainee.prepare(self.position.epoch)
        waiting: list[Tensor] = []
        while self.position.step < steps:
            waiting.append(self._find_gradients(interrupted()))
            last = self.position.step + 1 == steps
            stop = False
            if last or len(waiting) == every:
                stop = self._check(waiting)
                waiting.clear()
            self._apply_gradients()
            self.position.step += 1
            on_step(len(sources) * self.position.step / steps, images)
            often = self.config.save_every_steps
            if stop or (often and not last and not waiting and self.position.step % often == 0):
                self._check_state()
                self.save()
            if stop:
                raise KeyboardInterrupt

    def _find_gradients(self, stop: bool) -> Tensor:
        """Of one step of all tasks, summed over ranks. Returns float32 [1 + sources]: ranks that
        ask to stop, then each source's mean loss.
        """
        trainee, config = self.trainee, self.config
        step = self.position.epoch * trainee.steps + self.position.step
        progress = step / (config.epochs * trainee.steps)
        set_rates(self.optimizer, config, progress)
        batches = [
            draw_batch(trainee.sources[share.source], share, step, config, self.device)
            for share in self.shares
        ]
        shares = {batch.source: batch.share for batch in batches}
        told = torch.zeros(1 + len(trainee.sources), device=self.device)
        told[0] = float(stop)
        self.optimizer.zero_grad(set_to_none=True)
        divided = any(batch.parts > 1 for batch in batches)
        with joined_with(self.partners if divided else None):
            for losses in trainee.losses(batches):
                total = torch.zeros((), device=self.device)
                for source, loss in losses.items():
                    total = total + trainee.sources[source].weight * shares[source] * loss
                    told[1 + source] += shares[source] * loss.detach()
                total.backward()  # type: ignore[no-untyped-call]
        self._sum_gradients(told)
        return told

    def _apply_gradients(self) -> None:
        self.optimizer.step()
        keep_signs(self.trainee.state, self.trainee.floors)
        if self.average is not None:
            self.average.update()

    def _sum_gradients(self, told: Tensor) -> None:
        if self.workers.world == 1:
            return
        tensors = list(self.trainee.trained.values())
        for one in tensors:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        self.workers.sum_in_place([told, *(one.grad for one in tensors if one.grad is not None)])

    def _check(self, waiting: Sequence[Tensor]) -> bool:
        """Count the losses of the last steps; returns whether a rank asks to stop."""
        rows = torch.stack(list(waiting)).double().cpu()
        first = self.position.step + 1 - len(rows)
        for k, row in enumerate(rows.tolist()):
            for source, loss in enumerate(row[1:]):
                if not math.isfinite(loss):
                    self._refuse(source, first + k, loss)
                images = len(self._indices(source, first + k))
                self.position.losses[source] += loss * images
                self.position.images[source] += images
        return bool(rows[:, 0].any())

    def _indices(self, source: int, step: int) -> Tensor:
        whole = self.position.epoch * self.trainee.steps + step
        return self.trainee.sources[source].indices(whole, self.config.seed)

    def _refuse(self, source: int, step: int, loss: float) -> None:
        train = self.trainee.sources[source].train
        images = ", ".join(train.name(one) for one in self._indices(source, step)[:5].tolist())
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        raise NonFiniteLossError(
            f"{self.trainee.sources[source].name}: the loss is {loss} at epoch "
            f"{self.position.epoch + 1}, step {step + 1} (images {images}, ...), with learning "
            f"rate {rate:.3g}; it must stay finite; try a tenth of the learning rate"
        )

    def finish_epoch(
        self, on_epoch: Callable[[EpochRecord], None], seconds: float, steps: int
    ) -> None:
        """Validate, keep what is best, record, save.

        Raises:
            NonFiniteLossError: the last step made a tensor that is not finite, or one that makes
                scores that are not; or this was the last epoch and there is nothing to keep.
        """
        self._join_statistics()
        self._check_state()
        current = snapshot(self.trainee.state)
        if self.average is not None:
            put_back(self.trainee.trained, self.average.average())
        self.trainee.prepare(self.position.epoch)
        top1, losses = self._validate()
        self._keep_best(top1, losses)
        put_back(self.trainee.state, current)
        position, done = self.position, self.position.epoch + 1
        share = steps / self.trainee.steps  # of the epoch that ``seconds`` measured
        for source, images, loss, found in zip(
            self.trainee.sources, position.images, position.losses, top1, strict=True
        ):
            rate = self.optimizer.param_groups[0]["lr"]
            speed = share * images / seconds if seconds > 0 else 0.0
            mean = loss / images if images else 0.0
            if self.workers.rank == 0:
                on_epoch(EpochRecord(source.name, done, mean, found, rate, seconds, speed))
        if done == self.config.epochs:
            self._check_kept(losses)
        position.epoch, position.step = done, 0
        self._open_epoch()
        self.save()

    def _check_state(self) -> None:
        """The last step's loss was finite; what the step made of it may not be, and is not kept."""
        for name, value in self.trainee.state.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise NonFiniteLossError(
                    f"{self.trainee.name}: {name} is not finite after epoch "
                    f"{self.position.epoch + 1}, step {self.position.step}; what is trained must "
                    "stay finite; try a tenth of the learning rate"
                )

    def _validate(self) -> tuple[list[float], list[float]]:
        """Top-1 and loss by source."""
        count, world = len(self.trainee.sources), self.workers.world
        found = torch.zeros(2, count, dtype=torch.float64, device=self.device)
        for source, one in enumerate(self.trainee.sources):
            if source % world == self.workers.rank:
                forward = _bound(self.trainee.predict, source)
                with autocast(self.config, self.device):
                    measured = measure(forward, one.validation, self.device)
                found[:, source] = found.new_tensor(measured)
        self.workers.sum_in_place([found])
        top1, losses = found.tolist()
        for one, loss in zip(self.trainee.sources, losses, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"{one.name}: scores of validation images are not finite after epoch "
                    f"{self.position.epoch + 1}; they must be, to choose an answer by; try a "
                    "tenth of the learning rate"
                )
        return top1, losses

    def _keep_best(self, top1: Sequence[float], losses: Sequence[float]) -> None:
        """An epoch whose loss is over `LOSS_LIMIT` counts as none: a later one may be sound."""
        position, owners = self.position, self.trainee.owners
        always = not self.config.early_best
        state = self.trainee.state
        found = [
            value if loss < LOSS_LIMIT else -1.0 for value, loss in zip(top1, losses, strict=True)
        ]
        if all(key in owners for key in state):
            for source, value in enumerate(found):
                if always or value > position.best_top1[source]:
                    mine = {key: state[key] for key in state if owners[key] == source}
                    self.best |= snapshot(mine)
                    position.best_top1[source] = value
            return
        mean = sum(found) / len(found) if min(found) >= 0 else -1.0
        if always or mean > position.best_mean:
            self.best = snapshot(state)
            position.best_top1, position.best_mean = found, mean

    def _check_kept(self, losses: Sequence[float]) -> None:
        lost = [source for source, top1 in enumerate(self.position.best_top1) if top1 < 0]
        if lost:
            worst = max(lost, key=lambda source: losses[source])
            raise NonFiniteLossError(
                f"{self.trainee.sources[worst].name}: the loss of validation images is "
                f"{losses[worst]:.3g} after epoch {self.config.epochs}, and no epoch can be kept; "
                f"it must stay below {LOSS_LIMIT:.3g}, where float32 still tells scores apart; try "
                "a tenth of the learning rate"
            )

    @torch.no_grad()
    def _join_statistics(self) -> None:
        """Statistics of batches are each rank's own: all take the mean of those that made them."""
        if self.workers.world == 1 or not self.statistics:
            return
        names = [one.name for one in self.trainee.sources]
        counts = self.workers.owners(names, self.trainee.coupled)
        mine = {share.source for share in self.shares}
        # In float64, so that the mean of values that are equal has their very bits.
        joined = {key: value.double() for key, value in self.statistics.items()}
        for key, value in joined.items():
            source = self.trainee.owners.get(key)
            if source is None:
                value.div_(self.workers.world)
            elif source in mine:
                value.div_(counts[source])
            else:
                value.zero_()
        self.workers.sum_in_place(list(joined.values()))
        put_back(self.statistics, joined)


def _bound(predict: Callable[[int, Tensor], Tensor], source: int) -> Forward:
    return lambda inputs: predict(source, inputs)
