"""The short form of the rows that have no other: minutes of `make faults` in seconds.

Rows 7, 8, 11 to 17, 19 and 20 have theirs in tests/store and tests/runtime, the mutants of row 1
theirs in tests/patchfile.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import fault_cases
import hostile_bundles
import numpy as np
import pytest
import rows_bundles
import rows_cascades
import rows_container
import rows_engine
import rows_foreign
import rows_greedy
import rows_hostile
import rows_images
import rows_match
import rows_misbehave
import rows_revoked
import rows_service
import rows_sites
import rows_state
import rows_values
from container_cases import forge
from rows import ROWS
from uvicorn.protocols.http.h11_impl import H11Protocol

from patchdeploy import named_trained
from patchdeploy.bundle import reader
from patchdeploy.cascade import scores
from patchdeploy.coding import decode
from patchdeploy.data import containers, formats
from patchdeploy.data import decode as image_decode
from patchdeploy.errors import FileFormatError, IntegrityError, RuntimeBackendError
from patchdeploy.patch import variants
from patchdeploy.patchfile import cascade_part, container, pack, parts, payload
from patchdeploy.patchfile.connections import BoundedProtocol
from patchdeploy.runtime import self_test, versions
from patchdeploy.storage import sha256_hex
from patchdeploy.training import checkpoint
from patchdeploy.verify import verify_bundle

TFLITE_TABLE, ONNX_TABLE = hostile_bundles.TABLES


def swapped_views(document):
    """The views of the two resolutions, each in the other's place."""
    first, second = document["views"]
    return {first: document["views"][second], second: document["views"][first]}


def alike(slots, column):
    """Two slots that differ in ``column`` and take as many values of the same kind."""
    for a in slots:
        for b in slots:
            if a[1] == b[1] and a[5:9] == b[5:9] and a[column] != b[column]:
                return a, b
    raise AssertionError("no two such slots")


def swap(slots, column):
    a, b = alike(slots, column)
    a[column], b[column] = b[column], a[column]


def swap_names(slots):
    swap(slots, 10)


def swap_resolutions(slots):
    swap(slots, 2)


def swap_runs(slots):
    swap(slots, 4)


def edited(good, tmp_path, file, change):
    """``good`` with one table changed and every hash right again."""
    folder = Path(shutil.copytree(good, tmp_path / "edited"))
    document = json.loads((folder / file).read_text())
    change(document)
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    (folder / file).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file].update(sha256=sha256_hex(data), bytes=len(data))
    hostile_bundles.write_manifest(folder, manifest)
    return folder


def no_progress(part):
    """Nobody looks."""


def test_every_row_is_there_once_and_has_something_that_tries_it():
    assert [row.number for row in ROWS] == [*range(1, len(ROWS) + 1)]
    assert all(row.parts for row in ROWS)


def test_row_1_no_flipped_bit_is_taken():
    seen = rows_container.flip_bits(step=17)
    assert {"magic", "header_length", "reserved", "signature", "payload_hash"} <= set(seen.codes)


def test_row_2_no_other_length_is_taken():
    rows_container.try_lengths(0.02, no_progress)


def test_row_3_a_signed_mutant_is_refused_or_sound():
    cost = rows_hostile.try_signed_mutants(500, seed=1)
    assert cost.codes.total() == 500
    assert {"header_text", "header_field", "inflate", "parts", "values"} <= set(cost.codes)


def test_row_3_a_bomb_is_refused_before_it_goes_off():
    assert rows_hostile.try_bombs(2**24).count > 40


def test_row_3_a_patch_asks_for_no_more_work_than_it_may():
    assert rows_greedy.try_greedy(0.1, no_progress).count > 300


def test_row_4_a_signature_of_anything_else_does_not_count():
    rows_container.try_signatures(1.0, no_progress)


def test_row_4_no_score_comes_of_a_patch_whose_key_was_revoked(tmp_path):
    assert rows_revoked.try_revoked(0.1, tmp_path, no_progress).count == 2 * 3 * 2


def test_row_5_a_patch_fits_its_own_base_alone():
    rows_match.try_bases(0.005, no_progress)


def test_row_6_a_patch_fits_its_own_task_runtime_and_engine_alone():
    rows_match.try_places(0.15, no_progress)


def test_row_9_a_value_that_no_slot_takes_is_refused():
    rows_values.try_values(0.1, no_progress)


def test_row_10_only_all_slots_and_whole_parts_are_taken():
    rows_sites.try_sites(0.1, no_progress)


def test_row_15_a_bad_patch_does_not_keep_a_store_from_coming_back(tmp_path):
    # 2 runtimes, 4 bad patches and none, 1 damage, with and without a copy; 2 folders.
    tried = rows_state.try_state(tmp_path, no_progress, damages=("noise",))
    assert tried.count == 2 * 5 * 2 + 2


def test_row_18_a_patch_that_misbehaves_is_refused_and_the_one_before_stays(tmp_path):
    names = ("two classes swapped in the head", "a high bit of one bias")
    rows_misbehave.try_planted(tmp_path, names=names)


def test_row_18_what_the_self_test_cannot_see_is_what_the_page_says(tmp_path):
    expected = {"labels": "ok", "image on TFLite": "ok", "image on ONNX": "self_test"}
    assert rows_misbehave.see_limits(tmp_path) == expected


def test_row_23_a_base_that_was_changed_with_its_manifest_gives_no_score(tmp_path):
    assert rows_engine.try_changed_bases(0.05, tmp_path, no_progress).count == 2 * 15


@pytest.mark.filterwarnings("ignore")  # Pillow's own, on what it can still read
def test_row_24_a_mutant_of_an_image_is_decoded_or_refused():
    found = rows_images.try_mutants(600, seed=1)
    found.check()
    assert {"read", "refused"} <= set(found.codes)


def test_row_24_no_other_format_and_no_pipe_is_opened(tmp_path):
    assert rows_images.try_foreign(tmp_path) > 100
    assert rows_images.try_places(tmp_path) == 7


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_row_24_a_file_made_to_cost_much_is_refused_or_costs_little():
    found = rows_images.see_dear_files(scale=40)
    found.check()
    assert found.codes == {"refused": 25, "read": 4}


def test_row_25_no_other_is_shut_out_and_nothing_leads_astray(tmp_path):
    rows_service.try_service(0.1, tmp_path, no_progress)


def test_row_26_what_training_writes_is_refused_once_it_is_changed():
    assert rows_foreign.fuzz_own(200, seed=1)["PatchFileError"] > 30


def test_row_26_a_strangers_checkpoint_gives_a_typed_error_or_a_network():
    assert set(rows_foreign.fuzz_checkpoints(150, seed=1)) == {"CheckpointError", "read"}


def test_row_27_both_readers_say_the_same_of_a_cascades_bytes():
    assert rows_cascades.try_parts(0.02, no_progress).count > 1000


def test_row_27_both_readings_take_the_same_decision():
    assert rows_cascades.try_decisions(0.05, no_progress).count == 1000


def nothing(*arguments, **named):
    """A check that was forgotten."""


def check_with_own_keys(self, task, trusted=None):
    """As if a bundle could know what was revoked since it was made."""
    return container.check_patch_file(self.read(self.task(task).file), self.policy(task))


def turn_away(self, transport):
    """As a server without room does."""
    H11Protocol.connection_made(self, transport)
    if len(self.connections) > self.most:
        transport.abort()


def whatever(payload, place, name, numbers):
    """Any number in any order."""
    return READ_PREFIX(payload, place, name, range(256))


READ_PREFIX = parts._read_prefix
BUGS = {
    "a cascade's fields are not checked": (
        (cascade_part, "_check", nothing),
        lambda tmp_path: rows_cascades.try_parts(0.02, no_progress),
    ),
    "an unknown part that a reader needs is passed over": (
        (parts, "FIRST_IGNORED", 10),
        lambda tmp_path: rows_cascades.try_parts(0.02, no_progress),
    ),
    "optional parts may come in any order": (
        (parts, "_read_prefix", whatever),
        lambda tmp_path: rows_cascades.try_parts(0.02, no_progress),
    ),
    "an entropy is rounded another way": (
        (scores, "_FIRST_LOG2", scores._FIRST_LOG2 + 1),
        lambda tmp_path: rows_cascades.try_decisions(0.1, no_progress),
    ),
    "a probability is a bit too small": (
        (scores, "PROBABILITY_BITS", 29),
        lambda tmp_path: rows_cascades.try_decisions(0.05, no_progress),
    ),
    "the payload's hash is not compared": (
        (container, "_check_payload", nothing),
        lambda tmp_path: rows_container.flip_bits(step=17),
    ),
    "any signature verifies": (
        (container, "verify_signature", lambda *arguments: True),
        lambda tmp_path: rows_container.try_signatures(1.0, no_progress),
    ),
    "the threshold is forgotten": (
        (container, "_check_threshold", nothing),
        lambda tmp_path: rows_container.try_signatures(1.0, no_progress),
    ),
    "what is at hand is not compared": (
        (container, "_check_place", nothing),
        lambda tmp_path: rows_match.try_bases(0.005, no_progress),
    ),
    "tasks and bases are not compared": (
        (container, "_check_same", nothing),
        lambda tmp_path: rows_match.try_places(0.15, no_progress),
    ),
    "a self-test may ask for any work": (
        (payload, "check_work", nothing),
        lambda tmp_path: rows_greedy.try_greedy(0.1, no_progress),
    ),
    "a bundle's own patches are checked with its own keys": (
        (reader.Bundle, "check", check_with_own_keys),
        lambda tmp_path: rows_revoked.try_revoked(0.1, tmp_path, no_progress),
    ),
    "a patch that runs is not looked at again": (
        (versions, "still_count", lambda signers, policy: True),
        lambda tmp_path: rows_revoked.try_revoked(0.1, tmp_path, no_progress),
    ),
    "who comes last is turned away": (
        (BoundedProtocol, "connection_made", turn_away),
        lambda tmp_path: rows_service.try_clients(tmp_path, step=5),
    ),
    "the result's hash is another's": (
        (pack, "result_sha256", lambda values, px, data, table: "0" * 64),
        lambda tmp_path: rows_match.try_bases(0.005, no_progress),
    ),
    "scales are not checked": (
        (decode, "check_scales", nothing),
        lambda tmp_path: rows_values.try_values(0.1, no_progress),
    ),
    "biases wrap": (
        (decode, "_check_biases", lambda px, units: units.astype("i8").astype("i4")),
        lambda tmp_path: rows_values.try_values(0.1, no_progress),
    ),
    "slots are not compared": (
        (payload, "_check_sites", nothing),
        lambda tmp_path: rows_sites.try_sites(0.1, no_progress),
    ),
    "lengths of parts are not compared": (
        (payload, "_check_length", nothing),
        lambda tmp_path: rows_sites.try_sites(0.1, no_progress),
    ),
    "an Engine does not compare results": (
        (versions, "check_results", nothing),
        lambda tmp_path: rows_engine.try_changed_bases(0.05, tmp_path, no_progress),
    ),
    "an image's format is not looked at": (
        (
            image_decode,
            "identify_format",
            lambda data, suffix: (
                formats.ImageFormat("EPS", ())
                if data.startswith(b"%!PS")
                else formats.identify_format(data, suffix)
            ),
        ),
        rows_images.try_foreign,
    ),
    "an image's parts are not counted": (
        (containers, "_count", nothing),
        lambda tmp_path: rows_images.see_dear_files(scale=40),
    ),
    "an image's cost is not looked at": (
        (image_decode, "_check_cost", nothing),
        lambda tmp_path: rows_images.see_dear_files(scale=40),
    ),
    "a trained patch's hash is not compared": (
        (variants, "check_hash", nothing),
        lambda tmp_path: rows_foreign.fuzz_own(200, seed=1),
    ),
    "a checkpoint's hash is not compared": (
        (checkpoint, "check_seal", lambda data: True),
        lambda tmp_path: rows_foreign.fuzz_own(200, seed=1),
    ),
    "a network's file is not compared": (
        (named_trained, "_check_tensor_file", nothing),
        lambda tmp_path: rows_foreign.fuzz_own(800, seed=1),
    ),
    "scores are not compared": (
        (self_test, "check_golden", nothing),
        lambda tmp_path: rows_misbehave.try_planted(
            tmp_path, names=("two classes swapped in the head",)
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # what the bugs let through
@pytest.mark.parametrize("name", BUGS)
def test_a_row_notices_a_check_that_was_forgotten(name, tmp_path, monkeypatch):
    (module, check, bug), row = BUGS[name]
    monkeypatch.setattr(module, check, bug)
    with pytest.raises((AssertionError, ValueError)):
        row(tmp_path)


def test_the_parts_made_here_are_those_that_the_package_makes():
    """`make_subject` compares them; and what is signed here is what is read."""
    subject = fault_cases.make_subject("conv_stack")
    again = fault_cases.sign_payload(subject, subject.payload)
    assert again == subject.data
    assert fault_cases.header_of(again).sites == ((0, subject.table.slot_count),)
    assert fault_cases.open_verdict(forge(b"{}"), subject.table) == "header_field"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return hostile_bundles.make_judge(tmp_path_factory.mktemp("hostile"))


def test_row_22_a_consistent_hostile_document_is_refused_or_changes_no_answer(hostile):
    good, verdict = hostile
    cases = hostile_bundles.list_cases(good)
    drawn = np.random.default_rng(0).choice(len(cases), 80, replace=False)
    seen = Counter(verdict(cases[index]) for index in drawn)
    assert seen["refused"] > 60


EDITS = {
    "the view of another resolution": (TFLITE_TABLE, lambda d: d["views"].update(swapped_views(d))),
    "no view": (TFLITE_TABLE, lambda d: d["views"].clear()),
    "two names swapped": (ONNX_TABLE, lambda d: swap_names(d["slots"])),
    "a slot of another resolution": (TFLITE_TABLE, lambda d: swap_resolutions(d["slots"])),
    "a resolution given as text": (TFLITE_TABLE, lambda d: d["slots"][-1].__setitem__(2, "24")),
    "two rows of a patch swapped": (TFLITE_TABLE, lambda d: swap_runs(d["slots"])),
}


@pytest.mark.parametrize("edit", EDITS)
def test_row_22_a_table_that_would_run_a_wrong_model_is_refused(hostile, tmp_path, edit):
    good, _ = hostile
    file, change = EDITS[edit]
    folder = edited(good, tmp_path, file, change)
    with pytest.raises((FileFormatError, IntegrityError)):
        hostile_bundles.ask(folder)


@pytest.mark.parametrize("edit", ["no view", "two names swapped"])
def test_row_22_the_proof_notices_a_reader_that_believes_the_table(
    hostile, tmp_path, monkeypatch, edit
):
    good, _ = hostile
    file, change = EDITS[edit]
    monkeypatch.setattr(reader, "check_base", lambda data, table: None)
    with pytest.raises((AssertionError, RuntimeBackendError)):  # an answer, or none too late
        hostile_bundles.judge(edited(good, tmp_path, file, change), hostile_bundles.ask(good))


def test_row_22_no_file_of_a_bundle_is_waited_for_or_followed(tmp_path):
    rows_bundles.try_files(1.0, tmp_path, no_progress)


def test_row_22_verify_reports_what_is_wrong_with_a_hostile_bundle(hostile, tmp_path):
    good, _ = hostile
    cases = [one for one in hostile_bundles.list_cases(good, 1) if one.change == "missing"]
    drawn = np.random.default_rng(3).choice(len(cases), 12, replace=False)
    for index in drawn:
        hostile_bundles.write_case(cases[index], good, tmp_path / "case")
        report = verify_bundle(tmp_path / "case", reference_limit=1)
        assert not report.ok, str(cases[index])
