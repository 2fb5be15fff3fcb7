"""Ctrl-C: the first is noted, the second stops at once, and a run that was saved goes on."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from joint_cases import assert_equal, digits, metric_lines, patch_arrays, small_base

from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training import loop as training_loop
from patchdeploy.training.interrupt import watch_interrupt

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_ctrl_c_after_it_interrupts_at_once(number: int) -> None:
    before = signal.getsignal(number)
    with watch_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()
        signal.raise_signal(signal.SIGTERM)  # as torchrun passes it on
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(number) is before


def test_a_rank_that_ends_with_an_error_is_not_cut_off_by_torchruns_sigterm() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with watch_interrupt(ranks=2):
            pass
        signal.raise_signal(signal.SIGTERM)
        assert calls == [signal.SIGTERM]  # a run that has ended well leaves nothing
        for ranks, heard in ((1, 2), (2, 2)):
            with pytest.raises(ValueError, match="a rank has died"), watch_interrupt(ranks=ranks):
                raise ValueError("a rank has died")
            signal.raise_signal(signal.SIGTERM)
            assert len(calls) == heard
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_handler_from_before_is_there_again(error: type[BaseException] | None) -> None:
    calls: list[int] = []

    def mine(number: int, frame: Any) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGINT, mine)
    try:
        try:
            with watch_interrupt():
                assert signal.getsignal(signal.SIGINT) is not mine
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt) as caught:
            assert type(caught) is error  # noqa: PT017  # both kinds, and none
        assert signal.getsignal(signal.SIGINT) is mine
        signal.raise_signal(signal.SIGINT)
        assert calls == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_a_checkpoint_or_in_another_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    with watch_interrupt(enabled=False) as interrupted:
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not interrupted()
    found: list[Any] = []

    def work() -> None:
        with watch_interrupt() as asked:
            found.extend([signal.getsignal(signal.SIGINT), asked()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, False]


@pytest.mark.parametrize("step", [1, 5, 6, 7, 12])
def test_a_run_stopped_by_ctrl_c_is_saved_after_its_step_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Two epochs of six steps. The signal comes while a step computes; that step ends."""
    base, (train, held) = small_base(), digits()
    config = TrainConfig(epochs=2, batch_size=16, augment="shift", ema_decay=0.9, device="cpu")

    def run(folder: str, resume: bool = False) -> Patch:
        return train_patch(
            base,
            train,
            config,
            PatchConfig(statistics="batch"),
            validation=held,
            run_dir=tmp_path / folder,
            resume=resume,
            quiet=True,
        )

    whole = run("whole")
    apply, calls = training_loop._Run._apply_gradients, [0]

    def signalled(self: Any) -> None:
        calls[0] += 1
        if calls[0] == step:
            signal.raise_signal(signal.SIGINT)
        apply(self)

    with monkeypatch.context() as patched:
        patched.setattr(training_loop._Run, "_apply_gradients", signalled)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    done = min(step + 1, 12)  # after the last step it is heard once the run is saved
    assert calls[0] == done
    position = torch.load(tmp_path / "stopped" / "16.pt", weights_only=True)["position"]
    assert 6 * position["epoch"] + position["step"] == done
    resumed = run("stopped", resume=True)
    assert_equal(patch_arrays(resumed), patch_arrays(whole))
    assert resumed.metrics == whole.metrics
    assert metric_lines(tmp_path / "stopped") == metric_lines(tmp_path / "whole")


def test_without_a_run_folder_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, (train, held) = small_base(), digits()
    calls = [0]

    def signalled(self: Any) -> None:
        calls[0] += 1
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training_loop._Run, "_apply_gradients", signalled)
    with pytest.raises(KeyboardInterrupt):
        train_patch(base, train, TrainConfig(epochs=1), validation=held, quiet=True)
    assert calls == [1]
