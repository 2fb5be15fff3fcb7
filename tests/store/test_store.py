import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from operations import damage_state, install_all, write_raw
from simulated_disk import FOLDER, FaultyFiles, SimulatedDisk
from store_cases import (
    HOOKS,
    KEY,
    OTHER_KEY,
    POLICY,
    TASK,
    decode_values,
    hash_of,
    make_patch,
    open_store,
    running,
)

from patchdeploy.errors import (
    ConfigError,
    IntegrityError,
    PatchError,
    PatchRefusedError,
    RuntimeBackendError,
    StorageError,
    UnknownTaskError,
)
from patchdeploy.patchfile import CheckedPatch
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Entry, Installed, Shipped, Store, read_clock
from patchdeploy.store.files import DiskFiles
from patchdeploy.store.folder import STATE, patch_name
from patchdeploy.store.state import Floor, StoreState


def simulated(*sequences: int) -> tuple[SimulatedDisk, Store]:
    """A disk and a store on it with these versions installed."""
    disk = SimulatedDisk()
    store = open_store(FOLDER, disk)
    install_all(*sequences)(store)
    return disk, store


def test_an_installed_patch_is_read_back_whole(tmp_path):
    store = open_store(tmp_path / "store")
    installed = store.install(make_patch(3))
    assert installed == Installed(hash_of(3), TASK, 3, changed=True)
    data, checked, patch = store.read(TASK)
    assert data == make_patch(3)
    assert checked == HOOKS.check(make_patch(3), POLICY)
    expected = decode_values(checked).values[32].weight_scale
    assert patch.values[32].weight_scale.tolist() == expected.tolist() == [1, 3, 0, 4]
    assert store.active() == {TASK: hash_of(3)}
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"lock", "STATE", "STATE.copy", f"{hash_of(3)}.pdp"}


def test_the_store_takes_a_folder_as_text_too(tmp_path):
    store = replace(open_store(tmp_path), folder=str(tmp_path / "store"))
    store.install(make_patch(1))
    assert running(open_store(tmp_path / "store")) == 1


def test_the_clock_is_the_machine_s():
    assert read_clock() > 1_700_000_000


def test_tasks_do_not_touch_each_other():
    _, store = simulated(1, 2)
    store.install(make_patch(1, task="cars"))
    store.revert(TASK)
    assert (running(store), running(store, "cars")) == (1, 1)
    assert store.install(make_patch(3)).changed
    assert store.active() == {TASK: hash_of(3), "cars": hash_of(1, task="cars")}


def test_a_patch_can_be_kept_and_activated_later():
    disk, store = simulated(1)
    assert store.install(make_patch(2), activate=False).changed
    assert running(store) == 1
    assert store.install(make_patch(2), activate=False).changed, "it is written again: not in use"
    assert store.activate(hash_of(2)) == Installed(hash_of(2), TASK, 2, changed=True)
    assert store.activate(hash_of(2)) == Installed(hash_of(2), TASK, 2, changed=False)
    assert running(store) == 2
    before = disk.image()
    assert not store.install(make_patch(1), activate=False).changed
    assert disk.image() == before


def test_the_caller_may_change_its_buffer_while_the_patch_is_tested():
    buffer = bytearray(make_patch(1))

    def self_test(checked: CheckedPatch, patch: PatchFile) -> None:
        buffer[-1] ^= 0xFF

    store = open_store(FOLDER, SimulatedDisk(), hooks=replace(HOOKS, self_test=self_test))
    store.install(buffer)  # type: ignore[arg-type]
    assert store.read(TASK).data == make_patch(1) != bytes(buffer)


def test_the_list_says_what_each_file_is_and_what_is_wrong_with_it():
    disk, store = simulated(1, 2)
    store.install(make_patch(4, expires=2_000_000_000), activate=False)
    store.install(make_patch(1, task="cars"))
    foreign = make_patch(9, key=OTHER_KEY)
    write_raw(store, patch_name(sha256_hex(foreign)), foreign)
    write_raw(store, patch_name("0" * 64), b"damaged")
    disk.unlink(FOLDER / patch_name(hash_of(1, task="cars")))
    kept = make_patch(4, expires=2_000_000_000)
    damaged = f"patch file {FOLDER}/{'0' * 64}.pdp has SHA-256 {sha256_hex(b'damaged')}; its name "
    damaged += "is the hash that it must have; install the patch again"
    unsigned = "patch refused (signature): signature of key 0 is not valid; it must be valid; do "
    unsigned += "not use the file; fetch it again, or ask who made it to sign it"
    listed = store.list()
    assert listed[:4] == (
        Entry(hash_of(1), "previous", TASK, 1, 0, len(make_patch(1)), None),
        Entry(hash_of(2), "active", TASK, 2, 0, len(make_patch(2)), None),
        Entry(sha256_hex(kept), "installed", TASK, 4, 2_000_000_000, len(kept), None),
        Entry(hash_of(1, task="cars"), "active", "cars", None, None, None, "the file is gone"),
    )
    assert set(listed[4:]) == {
        Entry("0" * 64, "installed", None, None, None, None, damaged),
        Entry(sha256_hex(foreign), "installed", None, None, None, len(foreign), unsigned),
    }


def test_a_list_beside_a_writer_shows_no_file_as_gone(tmp_path):
    """What it has seen named, or in the folder, is removed before it is read."""
    writer = open_store(tmp_path / "store")
    install_all(1, 2)(writer)
    assert writer.is_there
    writer.install(make_patch(3), activate=False)

    class Racing(DiskFiles):
        def names(self, folder):
            found = super().names(folder)
            if writers:
                writers.pop()()
            return found

    reader = open_store(tmp_path / "store", Racing())
    writers = [writer.clean_up]  # the one that was kept is in the folder, and named by nothing
    assert [(one.sequence, one.problem) for one in reader.list()] == [(1, None), (2, None)]

    def replace_all():
        install_all(4, 5)(writer)
        writer.clean_up()

    writers = [replace_all]
    assert [(one.sequence, one.problem) for one in reader.list()] == [(4, None), (5, None)]
    assert not writers
    (tmp_path / "store" / patch_name(hash_of(4))).unlink()
    assert [one.problem for one in reader.list()].count("the file is gone") == 1


def test_a_store_that_is_not_there_has_nothing_active_and_is_not_made_by_reading(tmp_path):
    store = open_store(tmp_path / "store")
    assert store.active() == {}
    assert not store.is_there
    with pytest.raises(UnknownTaskError) as caught:
        store.read(TASK)
    assert str(caught.value) == (
        f"no active patch for task 'birds' in store {tmp_path / 'store'}; it has none; choose one "
        "of them or install one"
    )
    assert not (tmp_path / "store").exists()


def test_the_refusals_of_the_store_say_value_rule_and_remedy():
    _, store = simulated(1)
    for act, error, message in (
        (
            lambda: store.install(make_patch(1, variant=1)),
            PatchRefusedError,
            "patch refused (sequence): sequence is 1; it must be above 1, the highest that task "
            "'birds' ever had active; fetch a newer patch; the one before the active one comes "
            "back with revert",
        ),
        (
            lambda: store.revert("cars"),
            UnknownTaskError,
            f"no active patch for task 'cars' in store {FOLDER}; it has birds; choose one of them "
            "or install one",
        ),
        (
            lambda: store.revert(TASK),
            PatchError,
            "task 'birds' has no previous patch; a revert goes one step back and never further; "
            "install a newer patch instead",
        ),
        (
            lambda: store.activate("0" * 64),
            PatchError,
            f"store {FOLDER} holds no patch {'0' * 64}; a patch must be installed before it is "
            "activated; install it, or list the store and choose one",
        ),
        (
            lambda: store.activate("../STATE"),
            ConfigError,
            "patch '../STATE'; it must be 64 lower-case hexadecimal digits; list the store and "
            "choose one",
        ),
        (
            lambda: store.read("x" * 100),
            ConfigError,
            f"task '{'x' * 80}'; it must be 1 to 64 of a-z, 0-9, underscore and hyphen; list the "
            "store and choose one",
        ),
    ):
        with pytest.raises(error) as caught:
            act()
        assert str(caught.value) == message
        assert type(caught.value) is error


def test_a_refusal_survives_a_process_boundary():
    _, store = simulated(2)
    with pytest.raises(PatchRefusedError) as caught:
        store.install(make_patch(1))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.code, str(again)) == ("sequence", str(caught.value))


def test_a_lost_patch_file_is_an_error_that_installing_it_again_repairs():
    disk, store = simulated(1, 2)
    for sequence, act in ((2, lambda: store.read(TASK)), (1, lambda: store.revert(TASK))):
        disk.unlink(FOLDER / patch_name(hash_of(sequence)))
        with pytest.raises(IntegrityError) as caught:
            act()
        assert str(caught.value) == (
            f"patch file {hash_of(sequence)}.pdp of task 'birds' is gone from store {FOLDER}; "
            "STATE names it; install the patch again"
        )
        activate = sequence == 2
        assert store.install(make_patch(sequence), activate).changed
    assert running(store) == 2
    assert store.revert(TASK).sequence == 1


def test_a_damaged_patch_file_is_not_used_and_installing_it_again_repairs_it():
    disk, store = simulated(1)
    disk.unlink(FOLDER / patch_name(hash_of(1)))
    write_raw(store, patch_name(hash_of(1)), make_patch(1)[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="its name is the hash that it must have"):
        store.read(TASK)
    assert store.install(make_patch(1)) == Installed(hash_of(1), TASK, 1, changed=True)
    assert store.install(make_patch(1)) == Installed(hash_of(1), TASK, 1, changed=False)


def test_a_patch_whose_key_was_revoked_is_not_read_and_not_reverted_to():
    disk, store = simulated(1)
    keys = TrustedKeys((None, OTHER_KEY.public), 1)
    revoked = open_store(FOLDER, disk, policy=replace(POLICY, trusted=keys))
    with pytest.raises(PatchRefusedError) as caught:
        revoked.read(TASK)
    assert caught.value.code == "key_unknown"
    store.install(make_patch(2))
    with pytest.raises(PatchRefusedError) as caught:
        revoked.revert(TASK)
    assert caught.value.code == "key_unknown"
    assert KEY.public not in keys.keys
    with pytest.raises(PatchRefusedError, match="key_unknown"):  # the store has seen the new list
        store.read(TASK)


def test_a_patch_that_state_names_for_another_task_is_not_used():
    _, store = simulated(1)
    state = StoreState({"cars": hash_of(1)}, {}, {"cars": (Floor(1, hash_of(1), (0,)),)})
    damage_state(store, state.to_bytes())
    with pytest.raises(IntegrityError) as caught:
        store.read("cars")
    assert str(caught.value) == (
        f"STATE names patch {hash_of(1)} for task 'cars'; it is one of task 'birds'; install the "
        "patch of 'cars' again"
    )
    (entry,) = store.list()
    assert entry.problem == str(caught.value)


def test_a_previous_patch_that_no_longer_passes_its_test_is_not_reverted_to():
    disk, store = simulated(1, 2)

    def self_test(checked: CheckedPatch, patch: PatchFile) -> None:
        raise PatchRefusedError("self_test", "score", "1", "-1", "pack it again")

    strict = open_store(FOLDER, disk, hooks=replace(HOOKS, self_test=self_test))
    with pytest.raises(PatchRefusedError):
        strict.revert(TASK)
    assert running(store) == 2


def test_a_runtime_that_fails_refuses_nothing_and_changes_nothing():
    disk, store = simulated(1)

    def self_test(checked: CheckedPatch, patch: PatchFile) -> None:
        raise RuntimeBackendError("no runtime here; one is needed; install it")

    broken = open_store(FOLDER, disk, hooks=replace(HOOKS, self_test=self_test))
    before = disk.image()
    with pytest.raises(RuntimeBackendError):
        broken.install(make_patch(2))
    assert disk.image() == before
    damage_state(store)
    assert broken.recover() is not None, "no runtime is needed to find what was active"
    assert running(store) == 1


def test_a_reader_looks_again_when_its_patch_was_replaced_and_cleaned_up():
    disk, store = simulated(1)

    class LateFiles(FaultyFiles):
        def read(self, path: Path, limit_bytes: int) -> bytes:
            if path.suffix == ".pdp" and path.name in self.files.names(FOLDER) and not late:
                late.append(path)
                install_all(2, 3)(store)
                store.clean_up()
            return super().read(path, limit_bytes)

    late: list[Path] = []
    assert running(open_store(FOLDER, LateFiles(disk))) == 3
    assert late == [FOLDER / patch_name(hash_of(1))]


def test_a_reader_that_meets_the_first_install_does_not_take_it_for_a_recovery(caplog):
    disk, store = simulated()

    class LateFiles(FaultyFiles):
        def names(self, folder: Path) -> list[str]:
            install_all(1, 2, 3)(store)
            names = super().names(folder)
            store.clean_up()  # and a file goes between its name and its bytes
            return names

    assert running(open_store(FOLDER, LateFiles(disk))) == 3
    assert caplog.records == []


def test_a_recovery_is_logged_and_returned_by_every_write(caplog):
    disk, store = simulated(1, 2)
    disk.unlink(FOLDER / STATE)
    installed = store.install(make_patch(3))
    assert installed.recovery is not None
    assert installed.recovery.reason == "missing"
    assert installed.recovery.active == {TASK: hash_of(2)}
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("patchdeploy.store", logging.WARNING)
    start = re.escape(f"STATE of store {FOLDER} is lost or damaged: Recovery(reason='missing'")
    assert re.match(start, record.getMessage())
    assert store.install(make_patch(3)).recovery is None


def test_a_clean_up_leaves_folders_that_have_the_names_of_files_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = open_store(tmp_path / "store")
    for number in (1, 2, 3):
        store.install(make_patch(number))
    for name in ("0123456789abcdef.tmp", patch_name("f" * 64)):
        (tmp_path / "store" / name).mkdir()
    assert store.clean_up() == (patch_name(hash_of(1)),)
    for name in ("0123456789abcdef.tmp", patch_name("f" * 64)):
        assert (tmp_path / "store" / name).is_dir()
        assert f"{tmp_path / 'store' / name} stays: it is a folder" in caplog.text


@pytest.mark.parametrize("files", [None, (), ("lock", "photo.png", "1.pdp", "notes.tmp")])
def test_only_an_install_makes_a_store(tmp_path: Path, files: tuple[str, ...] | None):
    store = open_store(tmp_path / "store")
    if files is not None:
        (tmp_path / "store").mkdir()
    for name in files or ():
        (tmp_path / "store" / name).write_bytes(b"of somebody else")
    before = sorted(tmp_path.rglob("*"))
    acts: dict[str, Callable[[], object]] = {
        "activate a patch": lambda: store.activate(hash_of(1)),
        "revert a task": lambda: store.revert(TASK),
        "clean up": store.clean_up,
        "list the patches": store.list,
    }
    for action, act in acts.items():
        with pytest.raises(PatchError) as caught:
            act()
        assert str(caught.value) == (
            f"cannot {action} in {tmp_path / 'store'}: no patch store is there; installing a "
            "patch makes one; correct the path"
        )
        assert sorted(tmp_path.rglob("*")) == before
    store.install(make_patch(1))
    assert [one.status for one in store.list()] == ["active"]


def test_a_glance_tells_a_changed_or_damaged_store_and_no_other(tmp_path: Path):
    store = open_store(tmp_path / "store")
    seen = [store.glance()]
    for act in (
        lambda: store.install(make_patch(1)),
        lambda: store.install(make_patch(2)),
        lambda: store.revert(TASK),
        lambda: store.install(make_patch(3), activate=False),
        store.clean_up,
        lambda: damage_state(store),
        lambda: damage_state(store, b"?"),
        store.recover,
    ):
        act()
        assert store.glance() == store.glance()
        assert store.glance() != seen[-1]
        seen.append(store.glance())
    with pytest.raises(StorageError, match="cannot look at the store in store"):
        open_store(make_file(tmp_path / "file")).glance()


def make_file(path: Path) -> Path:
    """A file where a store's folder should be."""
    path.write_bytes(b"")
    return path


def test_a_patch_older_than_the_shipped_one_is_refused_and_an_equal_one_is_not():
    store = replace(open_store(FOLDER, simulated()[0]), shipped=shipping(2))
    with pytest.raises(PatchRefusedError) as caught:
        store.install(make_patch(1))
    assert caught.value.code == "sequence"
    assert store.install(make_patch(2)).changed


def shipping(sequence: int, **about) -> dict[str, Shipped]:
    return {TASK: Shipped(sequence, lambda: make_patch(sequence, **about))}


def test_the_first_patch_of_a_task_is_reverted_to_the_one_that_ships():
    disk = SimulatedDisk()
    store = replace(open_store(FOLDER, disk), shipped=shipping(2))
    assert store.install(make_patch(3)).changed
    assert [(one.sequence, one.status) for one in store.list()] == [(2, "previous"), (3, "active")]
    assert store.revert(TASK).sequence == 2
    assert running(store) == 2
    assert store.install(make_patch(3)).changed  # the highest that was active
    store.install(make_patch(4))
    assert store.revert(TASK).sequence == 3  # one step
    damage_state(store)
    assert running(store) == 3  # the revert is not forgotten
    assert store.clean_up() == ()


def test_what_ships_is_put_into_the_store_by_an_activation_and_not_by_an_install_that_keeps():
    store = replace(open_store(FOLDER, SimulatedDisk()), shipped=shipping(1))
    store.install(make_patch(3), activate=False)
    assert [one.sequence for one in store.list()] == [3]
    store.activate(hash_of(3))
    assert store.revert(TASK).sequence == 1


def test_installing_what_ships_puts_it_there_once_and_the_next_goes_back_to_it():
    store = replace(open_store(FOLDER, SimulatedDisk()), shipped=shipping(2))
    store.install(make_patch(2))
    assert [one.status for one in store.list()] == ["active"]
    store.install(make_patch(3))
    assert store.revert(TASK).sequence == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda: make_patch(2)[:-1],
        lambda: make_patch(2, task="cars"),
    ],
    ids=["damaged", "of another task"],
)
def test_what_ships_and_may_not_be_used_keeps_no_good_patch_out(read, caplog):
    store = replace(open_store(FOLDER, SimulatedDisk()), shipped={TASK: Shipped(2, read)})
    assert store.install(make_patch(3)).changed
    assert running(store) == 3
    assert "a revert cannot go back to what ships" in caplog.text
    with pytest.raises(PatchError, match="has no previous patch"):
        store.revert(TASK)


def test_a_clean_up_that_had_to_recover_removes_no_patch():
    _, store = simulated(1, 2, 3)
    write_raw(store, "0123456789abcdef.tmp", b"half")
    damage_state(store)
    assert store.clean_up() == ("0123456789abcdef.tmp",)
    assert store.clean_up() == (patch_name(hash_of(1)),)
    assert running(store) == 3


def test_a_disk_that_cannot_be_read_is_a_typed_error_for_readers_too():
    disk, store = simulated(1, 2)
    for act in (lambda s: s.read(TASK), lambda s: s.list(), lambda s: s.active()):
        counting = FaultyFiles(disk)
        act(open_store(FOLDER, counting))
        for at in range(1, counting.count + 1):
            with pytest.raises(StorageError, match="Input/output error"):
                act(open_store(FOLDER, FaultyFiles(disk, at)))
    damage_state(store)
    with pytest.raises(StorageError, match="Input/output error"):  # not: a patch that is refused
        open_store(FOLDER, FaultyFiles(disk, 4)).active()


def test_a_place_that_cannot_be_written_is_a_storage_error_with_a_remedy(tmp_path):
    store = open_store(tmp_path / "no" / "store")
    with pytest.raises(StorageError) as caught:
        store.install(make_patch(1))
    assert str(caught.value) == (
        f"cannot install a patch in store {tmp_path / 'no' / 'store'}: No such file or directory; "
        "free space, correct the folder's rights or choose another; the state before this stays"
    )
