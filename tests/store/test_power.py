from proof_power import prove_disk_faults, prove_power_loss


def test_a_power_loss_at_any_step_leaves_the_old_state_or_the_new_one():
    crashes = prove_power_loss(states=500)
    assert len(crashes.states) >= 500


def test_a_disk_that_fails_at_any_operation_leaves_the_old_state_and_a_typed_error():
    faults = prove_disk_faults()
    assert faults.met >= 400
    assert faults.refused >= 300
