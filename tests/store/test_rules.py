from proof_keys import prove_reset, prove_revocation, prove_shipped_floor
from proof_rules import (
    HOSTILE_NAMES,
    prove_checks,
    prove_clean_up,
    prove_expiry,
    prove_hostile_names,
    prove_order_of_commit,
    prove_orders,
    prove_random_histories,
    prove_readers_lock,
    prove_state_damage,
)


def test_in_all_orders_of_five_versions_only_higher_ones_are_taken():
    # 120 orders; the k-th install of an order, k = 0..4, replays k + 1 versions twice.
    assert prove_orders() == 120 * sum(2 + 2 * k for k in range(5))


def test_expiry_refuses_on_install_and_stops_nothing_that_runs():
    prove_expiry()


def test_a_patch_that_fails_a_check_leaves_nothing_behind():
    prove_checks()


def test_nothing_is_written_before_the_self_test():
    prove_order_of_commit()


def test_a_clean_up_removes_what_nothing_uses_and_no_other_name():
    prove_clean_up()


def test_a_damaged_state_comes_back_from_its_copy_and_is_said():
    # Every fifth of: each byte once, each length, missing, and four more.
    assert prove_state_damage(masks=(1,), step=5) >= 200


def test_no_name_of_a_caller_and_no_link_leads_out_of_the_folder(tmp_path):
    assert len(HOSTILE_NAMES) >= 50
    assert prove_hostile_names(tmp_path) >= 55


def test_any_history_agrees_with_a_model_of_a_few_lines():
    assert prove_random_histories(histories=20) == 400


def test_a_key_that_leaked_leaves_nothing_once_it_is_revoked():
    # Three forgeries, three first steps after the revocation, and a store that was empty.
    assert prove_revocation() == 3 * 3 + 1


def test_what_ships_is_a_floor_until_its_key_is_revoked():
    prove_shipped_floor()


def test_an_operator_lowers_a_floor_to_what_is_active_and_no_further():
    prove_reset()


def test_a_reader_of_a_store_cannot_open_its_lock(tmp_path):
    prove_readers_lock(tmp_path)
