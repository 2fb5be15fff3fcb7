"""A run's state on disk: the same bits back, never half of them, and only for its own run."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_cases import Killed, assert_equal, digits, metric_lines, patch_arrays, small_base
from torch import Tensor

from patchdeploy.base import OldHashWarning
from patchdeploy.errors import CheckpointError, StorageError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training import loop as training_loop
from patchdeploy.training.checkpoint import (
    Position,
    RunState,
    load_checkpoint,
    put_back,
    save_checkpoint,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


def make_state(seed: int = 0, values: int = 7) -> RunState:
    """Random tensors, one of them with what is not finite, and an optimiser that has stepped."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(values, generator=generator).requires_grad_()
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.1, "peak": 0.3}])
    weight.sum().backward()
    optimizer.step()
    odd = torch.tensor([float("inf"), -0.0, 1e-45, float("nan")])
    position = Position(2, 5, [0.1 + 0.2, 3.0], [16.0, 8.0], [0.5, -1.0], 0.25)
    state = {"w": weight.detach(), "odd": odd}
    average = {"steps": 3, "average": {"w": 2 * weight.detach()}}
    return RunState(position, state, optimizer.state_dict(), snapshot(state), average)


def assert_same_bits(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert one.numpy().tobytes() == other.numpy().tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same_bits(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same_bits(mine, theirs)
    else:
        assert one == other


def test_everything_comes_back_with_its_bits(tmp_path: Path) -> None:
    run = make_state()
    save_checkpoint(tmp_path / "deep" / "run.pt", "f", run)
    loaded = load_checkpoint(tmp_path / "deep" / "run.pt", "f")
    assert loaded.position == run.position
    for name in ("state", "optimizer", "best", "average"):
        assert_same_bits(dict(getattr(run, name)), getattr(loaded, name))
    assert [one.name for one in (tmp_path / "deep").iterdir()] == ["run.pt"]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "run.pt"
    save_checkpoint(path, "f", make_state())
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, "f")
    assert str(caught.value).startswith(f"checkpoint {path} cannot be read (")
    assert str(caught.value).endswith(
        "); it must be the whole file that training wrote; remove it to start again"
    )


def test_a_checkpoint_of_another_run_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, "f", make_state())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, "g")
    assert str(caught.value) == (
        f"checkpoint {path} was made with other settings, images or task; resume needs the same; "
        "use them, or another run folder"
    )
    torch.save({"fingerprint": "f"}, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, "f")
    assert str(caught.value) == (
        f"checkpoint {path} cannot be read (KeyError); it must be the whole file that training "
        "wrote; remove it to start again"
    )


def test_a_bit_that_changed_anywhere_is_noticed(tmp_path: Path) -> None:
    """Every bit of 100 bytes spread over the file, and all of its last 120, the hash among them."""
    path = tmp_path / "run.pt"
    save_checkpoint(path, "f", make_state())
    whole = path.read_bytes()
    places = [*range(0, len(whole), len(whole) // 100), *range(len(whole) - 120, len(whole))]
    for place in places:
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(CheckpointError, match="cannot be read"):
                load_checkpoint(path, "f")


def test_a_checkpoint_that_has_no_hash_yet_is_read_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, "f", make_state())
    torch.save(torch.load(path, weights_only=True), path)  # as older versions wrote it
    assert load_checkpoint(path, "f").position == make_state().position
    assert caplog.messages == [
        f"{path} is of a version that wrote no hash: whether it is damaged cannot be seen"
    ]


@pytest.mark.parametrize("key", ["epoch", "losses", "best_mean", "best_top1", "step"])
def test_a_position_of_other_types_is_refused(tmp_path: Path, key: str) -> None:
    run = make_state()
    setattr(run.position, key, "7")
    save_checkpoint(tmp_path / "run.pt", "f", run)
    with pytest.raises(CheckpointError, match=r"cannot be read \(ValueError\)"):
        load_checkpoint(tmp_path / "run.pt", "f")


def test_a_disk_that_fills_while_saving_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """The limit on a file's size stands for a full disk: the write fails in the middle."""
    path, old = tmp_path / "run.pt", make_state()
    save_checkpoint(path, "f", old)
    larger = make_state(1, values=100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        with pytest.raises(StorageError) as caught:
            save_checkpoint(path, "f", larger)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"cannot write {path} (")
    assert str(caught.value).endswith(
        " bytes): File too large; free space or choose another place; what was there is unchanged"
    )
    assert_same_bits(dict(load_checkpoint(path, "f").state), dict(old.state))
    assert [one.name for one in tmp_path.iterdir()] == ["run.pt"]


def test_copies_are_copies_and_go_back_in_place() -> None:
    tensors = {"w": torch.ones(3, requires_grad=True)}
    kept = snapshot(tensors)
    assert not kept["w"].requires_grad
    with torch.no_grad():
        tensors["w"].mul_(2.0)
    assert torch.equal(kept["w"], torch.ones(3))
    place = tensors["w"].data_ptr()
    put_back(tensors, kept)
    assert torch.equal(tensors["w"].detach(), torch.ones(3))
    assert tensors["w"].data_ptr() == place
    assert tensors["w"].requires_grad


@pytest.mark.parametrize("recipe", ["modern", "paper"])
@pytest.mark.parametrize("step", [1, 3, 8, 11, 17, 24])
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_bits_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Any, step: int
) -> None:
    """Two resolutions of two epochs of six steps, saved after every second step."""
    base, (train, held) = small_base(), digits()
    config = TrainConfig(
        epochs=2,
        batch_size=16,
        recipe=recipe,
        save_every_steps=2,
        augment="shift_flip",
        mixup=0.2,
        ema_decay=0.9,
        device="cpu",
    )

    def run(folder: str, resume: bool = False) -> Patch:
        return train_patch(
            base,
            train,
            config,
            PatchConfig(statistics="batch"),
            resolutions=(12, 16),
            validation=held,
            run_dir=tmp_path / folder,
            resume=resume,
            quiet=True,
        )

    whole = run("whole")
    apply, calls = training_loop._Run._apply_gradients, [0]

    def deadly(self: Any) -> None:
        calls[0] += 1
        if calls[0] == step:
            raise Killed
        apply(self)

    with monkeypatch.context() as patched:
        patched.setattr(training_loop._Run, "_apply_gradients", deadly)
        with pytest.raises(Killed):
            run("killed")
        calls[0] = -1_000  # from now on steps are counted alone
        resumed = run("killed", resume=True)
    assert_equal(patch_arrays(resumed), patch_arrays(whole))
    assert resumed.metrics == whole.metrics
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "whole")
    assert len(metric_lines(tmp_path / "whole")) == 4
    # It went on from the last even step before the kill, not from the epoch's or run's start.
    saved = (step - 1) // 2 * 2
    assert calls[0] + 1_000 == 24 - saved


def test_a_run_that_is_not_resumed_begins_anew(tmp_path: Path) -> None:
    base, (train, held) = small_base(), digits()
    config = TrainConfig(epochs=1, batch_size=16, device="cpu")
    keywords: dict[str, Any] = {"validation": held, "run_dir": tmp_path, "quiet": True}
    first = train_patch(base, train, replace(config, seed=1), **keywords)
    second = train_patch(base, train, config, **keywords)
    plain = train_patch(base, train, config, validation=held, quiet=True)
    assert_equal(patch_arrays(second), patch_arrays(plain))
    assert first.metrics["settings"]["seed"] == 1
    assert load_checkpoint(tmp_path / "16.pt", _fingerprint(tmp_path)).position.epoch == 1


def _fingerprint(folder: Path) -> str:
    return str(torch.load(folder / "16.pt", weights_only=True)["fingerprint"])


def test_a_run_that_names_its_base_by_its_tensors_alone_is_resumed_and_says_so(
    tmp_path: Path,
) -> None:
    base, images, config = small_base(), digits()[0], TrainConfig(epochs=1, device="cpu")
    former = replace(base, sha256=base.tensors_sha256)  # as earlier versions hashed

    def run(which: Any, resume: bool) -> Patch:
        return train_patch(
            which, images, config, resolutions=[32], run_dir=tmp_path, resume=resume, quiet=True
        )

    first = run(former, False)
    with pytest.warns(OldHashWarning, match="names its base by the hash of the tensors alone"):
        again = run(base, True)
    assert_equal(patch_arrays(first), patch_arrays(again))
    other = replace(base, sha256="0" * 64, tensors_sha256="1" * 64)
    with pytest.raises(CheckpointError, match="was made with other settings, images or task"):
        run(other, True)
