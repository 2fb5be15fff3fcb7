"""Bundles: what is written, what is refused, and that a fault leaves the old or the new one."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_cases import KILLED, LABELS, RESOLUTIONS, make_bundle, make_patch, snapshot

from patchdeploy.bundle import (
    add_task,
    create_bundle,
    next_sequence,
    open_bundle,
    patched,
    remove_task,
    size_report,
    standalone,
)
from patchdeploy.bundle.manifest import FileEntry, Manifest
from patchdeploy.errors import (
    AlreadyAttachedError,
    ConfigError,
    FileFormatError,
    HeadCapacityError,
    IntegrityError,
    PatchdeployError,
    PatchFileError,
    SlotTableError,
    StorageError,
    UnknownResolutionError,
    UnknownTaskError,
    WrongBaseError,
)
from patchdeploy.patchfile.pack import Release
from patchdeploy.storage import open_atomic, sha256_hex
from patchdeploy.storage_temporary import remove_leftovers, staged_folder

FILES = (
    "base.coding",
    "base.onnx",
    "base.onnx.slots.json",
    "base.tflite",
    "base.tflite.slots.json",
    "manifest.json",
    "patches/first.pdp",
    "patches/second.pdp",
    "reference/base.safetensors",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "original"
    make_bundle(path)
    return path


@pytest.fixture
def bundle(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def rewrite(path: Path, change, files=()) -> None:
    """Change the manifest's document, with hashes of ``files`` and its own made right again."""
    document = json.loads((path / "manifest.json").read_text())
    for name in files:
        data = (path / name).read_bytes()
        document["files"][name].update(sha256=sha256_hex(data), bytes=len(data))
    change(document)
    document.pop("manifest_sha256")

    def canonical() -> bytes:
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False)
        return text.encode() + b"\n"

    document["manifest_sha256"] = sha256_hex(canonical())
    (path / "manifest.json").write_bytes(canonical())


def test_a_bundle_holds_these_files_and_a_hash_of_each(original):
    files = snapshot(original)
    assert tuple(files) == FILES
    manifest = open_bundle(original).manifest
    assert {"manifest.json", *manifest.files} == set(FILES)
    for name, entry in manifest.files.items():
        ships = not name.startswith("reference/")
        assert entry == FileEntry(sha256_hex(files[name]), len(files[name]), ships)
    assert manifest.resolutions == RESOLUTIONS
    assert manifest.head_capacity == 10
    assert manifest.tasks["first"].classes == LABELS
    assert manifest.base_sha256 == sha256_hex(files["base.coding"])


def test_a_manifest_reads_back_as_it_was_written(original):
    data = (original / "manifest.json").read_bytes()
    assert Manifest.from_json(data).to_json() == data


def test_adding_and_removing_a_task_leaves_the_bytes_of_the_base(bundle):
    before = snapshot(bundle)
    add_task(bundle, make_patch(task="third", seed=9)[1])
    after = snapshot(bundle)
    assert set(after) - set(before) == {"patches/third.pdp"}
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert open_bundle(bundle).tasks == ("first", "second", "third")
    remove_task(bundle, "third")
    assert snapshot(bundle) == before


@pytest.mark.parametrize("resolution", [None, *RESOLUTIONS])
@pytest.mark.parametrize("format_name", ["tflite", "onnx"])
def test_overlay_is_byte_identical_to_exporting_the_task_alone(original, format_name, resolution):
    opened = open_bundle(original)
    models = {task: patched(opened, task, format_name, resolution) for task in opened.tasks}
    for task, model in models.items():
        assert model == standalone(opened, task, format_name, resolution)
    assert len({*models.values(), opened.base_file(format_name)}) == 3  # a patch changes the file


def test_a_task_with_fewer_resolutions_overlays_and_exports_alike(bundle):
    add_task(bundle, make_patch(task="small", seed=5, resolutions=(24,))[1])
    opened = open_bundle(bundle)
    for name in opened.formats:
        assert patched(opened, "small", name) == standalone(opened, "small", name)
    with pytest.raises(UnknownResolutionError) as caught:
        patched(opened, "small", "onnx", 16)
    assert str(caught.value) == (
        "task 'small' was not exported at 16 px; it has 24; choose one of them or export it again"
    )


def test_depthwise_kernels_of_a_task_overlay_and_export_alike(tmp_path):
    base, patch = make_patch(patch_owned=("dw1", "dw2"))
    create_bundle(tmp_path / "b", base, resolutions=RESOLUTIONS)
    opened = add_task(tmp_path / "b", patch)
    for name in opened.formats:
        assert patched(opened, "first", name) == standalone(opened, "first", name)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_in_any_file_is_found(bundle, name):
    good = (bundle / name).read_bytes()
    for position in (0, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 1
        (bundle / name).write_bytes(bad)
        with pytest.raises((IntegrityError, FileFormatError)) as caught:
            open_bundle(bundle)
        if name != "manifest.json":
            assert str(caught.value) == (
                f"{name} of bundle {bundle} has SHA-256 {sha256_hex(bytes(bad))}; the manifest "
                f"records {sha256_hex(good)}; copy the bundle again"
            )


def test_every_changed_byte_of_the_manifest_is_found(original):
    good = (original / "manifest.json").read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        with pytest.raises((IntegrityError, FileFormatError)):
            Manifest.from_json(bytes(bad))


def test_a_manifest_cut_anywhere_is_refused(original):
    good = (original / "manifest.json").read_bytes()
    for length in range(len(good)):
        with pytest.raises((IntegrityError, FileFormatError)):
            Manifest.from_json(good[:length])


@pytest.mark.parametrize("name", [one for one in FILES if one != "manifest.json"])
def test_a_truncated_file_is_found_and_a_lazy_reader_finds_it_too(bundle, name):
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match=name):
        open_bundle(bundle)
    with pytest.raises(IntegrityError, match=name):
        open_bundle(bundle, verify_hashes=False).read(name)


@pytest.mark.parametrize("name", ["base.onnx", "patches/first.pdp"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(IntegrityError, match=rf"{name} of bundle .* cannot be read"):
        open_bundle(bundle)


def test_a_deployed_copy_opens_without_what_does_not_ship(bundle):
    shutil.rmtree(bundle / "reference")
    opened = open_bundle(bundle)
    assert size_report(opened)["formats"]["onnx"]["duplicated_bytes"] is None
    with pytest.raises(IntegrityError, match=r"reference/base\.safetensors"):
        opened.reference()


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(FileFormatError) as caught:
        open_bundle(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a bundle (manifest.json: No such file or directory); a bundle is a "
        "folder that export wrote; correct the path"
    )


def test_a_truncated_slot_table_that_its_manifest_records_is_refused(bundle):
    table = bundle / "base.onnx.slots.json"
    table.write_bytes(table.read_bytes()[:100])
    rewrite(bundle, lambda d: None, ["base.onnx.slots.json"])
    with pytest.raises(SlotTableError):
        open_bundle(bundle).table("onnx")


def test_a_slot_table_of_another_base_file_is_refused(bundle):
    model = bundle / "base.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    rewrite(bundle, lambda d: None, ["base.onnx"])
    with pytest.raises(IntegrityError, match="is bound to base"):
        open_bundle(bundle).table("onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(surprise=1), "unknown key 'surprise' in manifest"),
        (lambda d: d["tasks"]["first"].update(path="x"), "unknown key 'path' in manifest.tasks"),
        (lambda d: d["layout"].update(x=1), "unknown key 'x' in manifest.layout"),
        (lambda d: d["preprocessing"].update(x=1), "unknown key 'x' in manifest.preprocessing"),
        (lambda d: d.update(format=1), "manifest has format 1"),
        (lambda d: d.pop("layout"), "manifest has no key 'layout'"),
        (lambda d: d.update(resolutions=[24, 16]), "ascending"),
        (lambda d: d["layout"].update(rows=1), "does not hold together"),
        (lambda d: d["files"].pop("base.onnx"), "records no hash"),
        (lambda d: d["tasks"].update({"../x": d["tasks"]["first"]}), "manifest.tasks: a key"),
        (lambda d: d["files"]["base.onnx"].update(bytes=-1), "base.onnx.bytes is -1"),
        (lambda d: d["files"]["base.onnx"].update(sha256="x"), "base.onnx.sha256 is 'x'"),
        (lambda d: d["tasks"]["first"].update(classes=["a"]), "its length is 1; it must be 2"),
    ],
)
def test_a_manifest_outside_the_rules_is_refused(bundle, change, message):
    rewrite(bundle, change)
    with pytest.raises(FileFormatError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\\b", "", "x\0", "C:x"]
)
def test_a_path_that_leaves_the_bundle_is_refused(bundle, path):
    def change(document):
        document["files"][path] = document["files"]["base.onnx"]
        document["converters"]["onnx"]["file"] = path

    rewrite(bundle, change)
    with pytest.raises(FileFormatError, match="stay inside the bundle"):
        open_bundle(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle, tmp_path):
    (bundle / "base.onnx").rename(tmp_path / "outside")
    (bundle / "base.onnx").symlink_to(tmp_path / "outside")
    with pytest.raises(IntegrityError, match="is a link to"):
        open_bundle(bundle)


def bad_additions():
    _, good = make_patch(task="third", seed=9)
    _, other_base = make_patch("residual", "third")
    _, wide = make_patch(task="third", resolutions=(16, 32))
    scales = good.values[16].weight_scale.copy()
    scales[5] = np.nan
    broken = {**good.values, 16: replace(good.values[16], weight_scale=scales)}
    many = tuple(map(str, range(11)))
    return {
        "another base": (other_base, WrongBaseError, "was made for base"),
        "not exported": (wide, UnknownResolutionError, "holds 32 px; bundle .* exported at 16, 24"),
        "capacity": (replace(good, classes=many), HeadCapacityError, "11 classes"),
        "NaN": (replace(good, values=broken), PatchFileError, r"weight_scale\[5\] is nan"),
        "name": (replace(good, task="Bad Name"), ConfigError, "task name 'Bad Name'"),
        "empty": (replace(good, values={}), PatchFileError, "holds no resolution"),
        "twice": (replace(good, task="first"), AlreadyAttachedError, "'first' is in bundle"),
    }


@pytest.mark.parametrize("case", bad_additions())
def test_a_patch_that_may_not_be_added_leaves_the_bundle_as_it_was(bundle, case):
    patch, error, message = bad_additions()[case]
    before = snapshot(bundle)
    with pytest.raises(error, match=message):
        add_task(bundle, patch)
    assert snapshot(bundle) == before


def test_replacing_a_task_takes_the_old_patch_away(bundle):
    first = make_patch(task="first", seed=33)[1]
    for _ in range(3):  # new names each time: a file in use is never written over
        opened = add_task(bundle, first, replace_existing=True)
    assert np.array_equal(open_bundle(bundle).patch("first").values[16].bias, first.values[16].bias)
    patches = {name for name in snapshot(bundle) if name.startswith("patches/first")}
    assert patches == {opened.task("first").file}


def test_a_sequence_number_goes_up_by_itself_and_one_that_is_given_must_be_newer(bundle):
    second = make_patch(task="first", seed=33)[1]
    opened = add_task(bundle, second, replace_existing=True)
    assert (opened.header("first").sequence, opened.header("second").sequence) == (2, 1)
    opened = add_task(bundle, second, replace_existing=True, release=Release(7))
    assert opened.header("first").sequence == 7
    before = snapshot(bundle)
    for sequence in (7, 1):
        with pytest.raises(ConfigError) as caught:
            add_task(bundle, second, replace_existing=True, release=Release(sequence))
        assert str(caught.value) == (
            f"sequence {sequence} for task 'first'; bundle {bundle} has sequence 7 of it, and a "
            f"reader takes what is newer alone; give 8 to {2**53 - 1}, or leave it out"
        )
    assert snapshot(bundle) == before
    assert next_sequence(opened, "third") == 1


@pytest.mark.parametrize("target", ["empty", "missing"])
def test_a_bundle_is_written_where_a_link_leads(tmp_path, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(target)
    create_bundle(tmp_path / "link", make_patch()[0], resolutions=(16,), formats=("onnx",))
    assert (tmp_path / "link").is_symlink()
    assert open_bundle(tmp_path / target).formats == ("onnx",)
    assert open_bundle(tmp_path / "link").formats == ("onnx",)


def test_nothing_is_written_or_removed_through_a_link_that_leaves_the_bundle(bundle, tmp_path):
    mine = tmp_path / "outside"
    mine.mkdir()
    (mine / "first.pdp").write_bytes(b"mine")
    (bundle / "patches").rename(tmp_path / "patches")
    (bundle / "patches").symlink_to(mine)
    manifest = (bundle / "manifest.json").read_bytes()
    for change in (
        lambda: remove_task(bundle, "first"),
        lambda: add_task(bundle, make_patch(task="third", seed=9)[1]),
    ):
        with pytest.raises((IntegrityError, FileFormatError), match="link"):
            change()
    assert snapshot(mine) == {"first.pdp": b"mine"}
    assert (bundle / "manifest.json").read_bytes() == manifest


def test_a_lock_file_that_leads_elsewhere_is_refused_and_a_second_name_of_one_is_left_as_it_is(
    bundle, tmp_path
):
    (tmp_path / "mine").write_bytes(b"mine")
    (bundle / ".lock").unlink(missing_ok=True)
    (bundle / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(FileFormatError, match="link"):
        remove_task(bundle, "first")
    (bundle / ".lock").unlink()
    (bundle / ".lock").hardlink_to(tmp_path / "mine")
    remove_task(bundle, "first")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def make_device(path):
    path.symlink_to("/dev/zero")


def make_circle(path):
    path.symlink_to(path.name)


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(20 << 30)


STRANGE = (Path.mkdir, os.mkfifo, make_device, make_circle, make_sparse)


@pytest.mark.parametrize("make", STRANGE)
def test_what_is_no_regular_file_of_its_length_is_never_opened_for_ever(original, tmp_path, make):
    for name in (*FILES, ".lock"):
        bundle = Path(shutil.copytree(original, tmp_path / name.replace("/", "-")))
        opened = open_bundle(bundle)
        (bundle / name).unlink(missing_ok=True)
        make(bundle / name)
        uses = [lambda: open_bundle(bundle), lambda: opened.read(name)]  # noqa: B023
        if name == "manifest.json":
            uses.pop()
        if name == ".lock":
            uses = [lambda: remove_task(bundle, "first")]  # noqa: B023
        for use in uses:
            with pytest.raises((IntegrityError, FileFormatError)):
                use()


KILL_STEPS = {
    "the patch is not synced": 1,
    "the patch has no name yet": 2,
    "the patch has its name, the manifest is old": 4,
    "the manifest is new, the old patch is there": 7,
    "a new bundle is half made": 10,
}


def test_what_a_killed_writer_leaves_goes_with_the_next_one(original, tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.getenv('PYTHONPATH')}"}
    for words, step in KILL_STEPS.items():
        place = tmp_path / str(step)
        path = place / "bundle"
        shutil.copytree(original, path)
        before = set(snapshot(path)), {one.name for one in place.iterdir()}
        command = [sys.executable, "-c", KILLED, str(path), str(step)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == -9, (words, done.stdout, done.stderr)
        after = set(snapshot(path)), {one.name for one in place.iterdir()}
        assert before != after, words
        remove_task(path, "second")
        kept = {"manifest.json", *open_bundle(path).manifest.files}
        assert set(snapshot(path)) == kept, words
        assert [one.name for one in place.iterdir()] == ["bundle"], words


def test_what_a_writer_that_lives_has_not_finished_stays(tmp_path):
    with staged_folder(tmp_path / "new", "bundle") as place:
        place.mkdir()
        with open_atomic(tmp_path / "file", 1) as file:
            assert remove_leftovers(tmp_path) == ()
            file.write(b"1")
        assert remove_leftovers(tmp_path) == ()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "new"]


def test_an_unknown_task_is_named_with_those_that_are_there(bundle):
    before = snapshot(bundle)
    with pytest.raises(UnknownTaskError) as caught:
        remove_task(bundle, "tird")
    assert str(caught.value) == (
        f"no task 'tird' in {bundle}; it has first, second; choose one of them or add the task"
    )
    assert snapshot(bundle) == before


def test_float_files_are_kept_beside_a_task_and_go_with_it(bundle):
    before = snapshot(bundle)
    third = make_patch(task="third", seed=9)[1]
    with pytest.raises(ConfigError, match=r"its name must be third\.<pixels>\.onnx"):
        add_task(bundle, third, float_files={"other.16.onnx": b"model"})
    opened = add_task(bundle, third, float_files={"third.16.onnx": b"model"})
    assert opened.task("third").float_files == {"16": "float/third.16.onnx"}
    assert not opened.manifest.files["float/third.16.onnx"].ships
    assert open_bundle(bundle).read("float/third.16.onnx") == b"model"
    remove_task(bundle, "third")
    assert snapshot(bundle) == before


def test_a_place_in_use_and_an_empty_request_are_refused(tmp_path):
    base, _ = make_patch()
    (tmp_path / "file").write_text("mine")
    for options in ({"resolutions": ()}, {"resolutions": (16,), "formats": ()}):
        with pytest.raises(ConfigError, match="at least one of each"):
            create_bundle(tmp_path / "new", base, **options)
    for sides in ((5000,), range(16, 33)):
        with pytest.raises(ConfigError, match="at most 16, of at most 4096 px"):
            create_bundle(tmp_path / "new", base, resolutions=sides)
    with pytest.raises(ConfigError, match="is in use"):
        create_bundle(tmp_path, base, resolutions=(16,))
    with pytest.raises(ConfigError, match="no converter 'coreml'"):
        create_bundle(tmp_path / "new", base, resolutions=(16,), formats=("coreml",))
    assert snapshot(tmp_path) == {"file": b"mine"}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from bundle_cases import make_patch
from patchdeploy.bundle import add_task, create_bundle
from patchdeploy.errors import StorageError
what, path, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
base, patch = make_patch(task="third", seed=9)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if what == "create":
        create_bundle(path, base, resolutions=(16, 24), formats=("onnx",))
    else:
        add_task(path, patch)
except StorageError as error:
    print("StorageError", error)
"""


def run_on_full_disk(what: str, path: Path, limit: int) -> str:
    """Run FULL_DISK where no file may grow beyond ``limit`` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, what, str(path), str(limit)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no file size limit here")
def test_a_full_disk_leaves_the_bundle_as_it_was(bundle, tmp_path):
    before = snapshot(bundle)
    patch_bytes = len(before["patches/first.pdp"])
    assert patch_bytes < len(before["manifest.json"])
    # below the patch: the patch fails; between: the patch is written and the manifest fails
    for limit in (500, patch_bytes + 100):
        assert "StorageError cannot write" in run_on_full_disk("add", bundle, limit)
        assert snapshot(bundle) == before
    open_bundle(bundle)
    assert "StorageError" in run_on_full_disk("create", tmp_path / "new", 500)
    assert not (tmp_path / "new").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("call", ["fsync", "replace", "fdopen"])
def test_a_fault_at_any_step_leaves_the_old_bundle_or_the_new_one(bundle, monkeypatch, call):
    old = open_bundle(bundle).patch("first").values[16].bias
    patch = make_patch(task="first", seed=33)[1]
    real, outcomes = getattr(os, call), []
    for step in range(1, 20):
        counted = 0

        def faulty(*arguments, **options):
            nonlocal counted
            counted += 1
            if counted == step:  # noqa: B023
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as context:
            context.setattr(os, call, faulty)
            try:
                add_task(bundle, patch, replace_existing=True)
                outcomes.append("done")
            except StorageError:
                outcomes.append("fault")
        found = open_bundle(bundle).patch("first").values[16].bias
        assert np.array_equal(found, old) or np.array_equal(found, patch.values[16].bias)
        if outcomes[-1] == "done":
            break
        remove_task(bundle, "first")
        add_task(bundle, make_patch(task="first", seed=1)[1])
    assert outcomes[-1] == "done"
    assert outcomes.count("fault") >= 2  # the patch and the manifest


def test_tasks_added_at_the_same_time_are_all_there(bundle):
    patches = [make_patch(task=f"task{k}", seed=k)[1] for k in range(8)]
    threads = [threading.Thread(target=add_task, args=(bundle, patch)) for patch in patches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(open_bundle(bundle).tasks) == {"first", "second", *(p.task for p in patches)}


def test_readers_never_see_a_bundle_that_is_half_replaced(bundle):
    patches = [make_patch(task="first", seed=seed)[1] for seed in (3, 4)]
    failures: list[PatchdeployError] = []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            try:
                open_bundle(bundle)
            except PatchdeployError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(30):
        add_task(bundle, patches[k % 2], replace_existing=True)
    stop.set()
    reader.join()
    assert not failures


def test_the_size_report_adds_up(original):
    opened = open_bundle(original)
    report = size_report(opened)
    for name in opened.formats:
        sizes = report["formats"][name]
        assert sizes["shared_bytes"] + sum(sizes["slot_bytes"].values()) == sizes["file_bytes"]
        assert sizes["duplicated_bytes"] == 0
        patches = sum(task["file_bytes"] for task in report["tasks"].values())
        totals = report["totals"][name]
        needed = [f"base.{name}", f"base.{name}.slots.json", "base.coding", "manifest.json"]
        on_disk = sum((original / one).stat().st_size for one in needed) + patches
        assert totals["shipped_bytes"] == on_disk == sum(totals["shipped_part_bytes"].values())
        assert totals["shipped_part_bytes"]["patches"] == patches
    assert set(report["formats"]["tflite"]["slot_bytes"]) == {"all", "16", "24"}
    assert set(report["formats"]["onnx"]["slot_bytes"]) == {"all"}
    first = report["tasks"]["first"]
    assert sum(first["part_bytes"].values()) == first["file_bytes"]
    # Seven rows of 16 random int8 do not deflate: they are stored, once for each resolution, the
    # second as differences of zero. A part's prefix takes 10 bytes.
    assert 7 * 16 + 10 <= first["head_bytes"] <= 2 * 7 * 16 + 10
    json.dumps(report)


def test_a_kernel_stored_twice_is_reported(bundle):
    opened = open_bundle(bundle)
    kernel = opened.reference().weights["last"].transpose(0, 3, 1, 2).tobytes()
    model = bundle / "base.onnx"
    model.write_bytes(model.read_bytes() + kernel)
    table = json.loads((bundle / "base.onnx.slots.json").read_text())
    table.update(base_sha256=sha256_hex(model.read_bytes()), base_bytes=model.stat().st_size)
    (bundle / "base.onnx.slots.json").write_text(json.dumps(table))
    rewrite(bundle, lambda d: None, ["base.onnx", "base.onnx.slots.json"])
    found = size_report(open_bundle(bundle))["formats"]["onnx"]["duplicated_bytes"]
    assert found == len(kernel)
