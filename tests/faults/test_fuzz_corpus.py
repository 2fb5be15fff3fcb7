"""Every input of the fuzzers' corpus, without a fuzzer: what was a fault once stays found."""

import importlib.util
import subprocess
import sys

import fuzz_bundle
import fuzz_header
import fuzz_payload
import fuzz_trusted
import pytest
from fuzz import CORPUS, HERE, TARGETS, read_stats

MODULES = {
    "header": fuzz_header,
    "payload": fuzz_payload,
    "trusted": fuzz_trusted,
    "bundle": fuzz_bundle,
}
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())
MOST_CORPUS_BYTES = 200_000


@pytest.mark.parametrize("path", INPUTS, ids=lambda one: f"{one.parent.name}-{one.name}")
def test_an_input_of_the_corpus_ends_in_a_typed_error_or_a_sound_value(path):
    MODULES[path.parent.name].fuzz_one(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_holds_the_seeds_and_stays_small(name):
    for seed, data in MODULES[name].seeds().items():
        assert (CORPUS / name / seed).read_bytes() == data, f"{seed}: run fuzz.py --write-seeds"
    assert sum(path.stat().st_size for path in INPUTS) < MOST_CORPUS_BYTES


def test_the_targets_notice_a_fault(monkeypatch):
    """What a target lets through must be sound, and a header must give its bytes back."""
    bundle, other = fuzz_bundle.seeds(), fuzz_bundle.good()[fuzz_bundle.TABLES[0]]
    monkeypatch.setattr(fuzz_header.PatchHeader, "to_bytes", lambda self: b"other bytes")
    with pytest.raises(AssertionError):
        fuzz_header.fuzz_one(fuzz_header.seeds()["header"])
    monkeypatch.setattr(fuzz_payload, "CODES", {"sites"})
    with pytest.raises(AssertionError):
        fuzz_payload.fuzz_one(fuzz_payload.seeds()["labels-not-utf8"])
    trusted = fuzz_trusted.seeds()["five-keys"]
    monkeypatch.setattr(fuzz_trusted.TrustedKeys, "to_bytes", lambda self: b"other bytes")
    with pytest.raises(AssertionError):
        fuzz_trusted.fuzz_one(trusted)
    monkeypatch.setattr(fuzz_bundle.Manifest, "to_json", lambda self: b"other bytes")
    with pytest.raises(AssertionError):
        fuzz_bundle.fuzz_one(bundle["manifest"])
    monkeypatch.setattr(fuzz_bundle.SlotTable, "to_json", lambda self: other)
    with pytest.raises(AssertionError):
        fuzz_bundle.fuzz_one(bundle["base.onnx.slots"])


def test_the_fuzzers_last_lines_are_read():
    log = "#9\tDONE   cov: 167 ft: 300 corp: 71/9Kb\nstat::number_of_executed_units: 105401\n"
    assert read_stats(log) == {"inputs": 105401, "edges": 167, "kept": 71}
    assert read_stats("") == {"inputs": 0, "edges": 0, "kept": 0}


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed; it has no wheel for every Python",
)
def test_a_fuzzer_runs_from_its_corpus(tmp_path):
    command = [sys.executable, str(HERE / "fuzz_child.py"), "trusted", str(tmp_path)]
    command += [str(CORPUS / "trusted"), "-runs=500"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_stats(done.stderr)["edges"] > 0
