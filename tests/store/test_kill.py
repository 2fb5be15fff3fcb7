import pytest
from proof_kill import can_trace, prove_kills, prove_kills_by_strace, prove_one_wins


def test_a_kill_before_any_operation_of_the_file_layer_leaves_old_or_new(tmp_path):
    kills = prove_kills(tmp_path)
    assert kills.count >= 100
    assert kills.missed == 0
    assert kills.new >= 5


def test_a_kill_before_any_system_call_of_an_install_leaves_old_or_new(tmp_path):
    reason = can_trace()
    if reason is not None:
        pytest.skip(f"{reason}; the file layer's own kills are in the test above")
    kills = prove_kills_by_strace(tmp_path, names=["install"])
    assert kills.count >= 25
    assert kills.new >= 1


def test_of_eight_processes_that_install_at_once_one_wins(tmp_path):
    assert prove_one_wins(tmp_path, rounds=3) >= 3
