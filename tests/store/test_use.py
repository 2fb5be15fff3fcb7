from proof_use import prove_swap_races, prove_swaps, prove_updates_in_use


def test_a_file_that_is_swapped_after_its_check_is_not_used(tmp_path):
    assert prove_swaps(tmp_path) == 8


def test_in_a_race_with_swaps_only_the_checked_bytes_are_used(tmp_path):
    races = prove_swap_races(tmp_path / "store", races=200)
    assert races.good >= 1
    assert races.refused >= 1


def test_updates_do_not_change_what_a_reader_holds(tmp_path):
    assert prove_updates_in_use(tmp_path / "store", installs=30) >= 1
