import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from patchdeploy.errors import ConfigError, FileFormatError
from patchdeploy.patchfile.json import encode_canonical
from patchdeploy.storage import sha256_hex
from patchdeploy.store.state import MAX_STATE_BYTES, MAX_TASKS, StoreState

A, B, C = "a" * 64, "b" * 64, "c" * 64
TASKS = st.text("abcz019_-", min_size=1, max_size=64)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
REMEDY = "the store rebuilds it from the signed patches in its folder"


@st.composite
def states(draw: st.DrawFn) -> StoreState:
    active = draw(st.dictionaries(TASKS, HASHES, max_size=5))
    previous = {t: draw(HASHES) for t in active if draw(st.booleans())}
    previous = {task: sha256 for task, sha256 in previous.items() if sha256 != active[task]}
    return StoreState(active, previous, {t: draw(st.integers(1, 2**53 - 1)) for t in active})


def state_text(**changes: object) -> bytes:
    """A STATE with these parts changed and its own hash right."""
    parts: dict[str, object] = {"format": 1, "active": {"t": A}, "previous": {}, "floors": {"t": 1}}
    document = {key: one for key, one in (parts | changes).items() if one is not None}
    own = {"state_sha256": sha256_hex(encode_canonical(document))}
    return encode_canonical(document | own)


@given(states())
def test_a_state_comes_back_from_its_bytes(state: StoreState):
    assert StoreState.from_bytes(state.to_bytes()) == state


@given(states(), st.binary(max_size=400))
def test_other_bytes_are_another_state_or_a_typed_error(state: StoreState, data: bytes):
    assume(data != state.to_bytes())
    with pytest.raises(FileFormatError):
        StoreState.from_bytes(data)


@given(states(), TASKS, HASHES, st.integers(1, 2**53 - 1))
def test_activating_moves_one_task_and_never_lowers_a_floor(
    state: StoreState, task: str, sha256: str, sequence: int
):
    after = state.activated(task, sha256, sequence)
    assert after.active == {**state.active, task: sha256}
    assert after.floors[task] == max(sequence, state.floors.get(task, 0))
    if task in state.active and state.active[task] != sha256:
        assert after.previous[task] == state.active[task]
    others = {name: floor for name, floor in after.floors.items() if name != task}
    assert others == {name: floor for name, floor in state.floors.items() if name != task}
    assert after.activated(task, sha256, sequence) is after


@given(states())
def test_reverting_twice_changes_nothing(state: StoreState):
    for task in state.previous:
        once = state.reverted(task)
        assert once.active[task] == state.previous[task]
        assert once.floors == state.floors
        assert once.reverted(task) == state


def test_the_text_of_a_state_is_as_documented():
    state = StoreState({"birds": A}, {"birds": B}, {"birds": 7})
    head = (
        f'{{"active":{{"birds":"{A}"}},"floors":{{"birds":7}},"format":1,'
        f'"previous":{{"birds":"{B}"}}'
    )
    own = sha256_hex(f"{head}}}".encode())
    assert state.to_bytes() == f'{head},"state_sha256":"{own}"}}'.encode()
    assert state.named == {A, B}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "STATE of the store has something else at offset 1; it must have JSON; " + REMEDY),
        (
            state_text(format=2),
            "STATE of the store has format 2; it must have format 1; " + REMEDY,
        ),
        (
            state_text(floors=None),
            "STATE of the store has others; it must have the keys active, floors, format, "
            "previous, state_sha256; " + REMEDY,
        ),
        (
            b"[]",
            "STATE of the store has others; it must have the keys active, floors, format, "
            "previous, state_sha256; " + REMEDY,
        ),
        (
            state_text(active=[]),
            "STATE of the store has others; it must have three objects; " + REMEDY,
        ),
        *(
            (
                state_text(**change),
                "STATE of the store has others; it must have names, hashes and numbers that "
                "agree; " + REMEDY,
            )
            for change in (
                {"active": {"t": A, "u": B}},
                {"active": {"t": "A" * 64}},
                {"active": {"t": 7}},
                {"active": {"T": A}, "floors": {"T": 1}},
                {"active": {"../t": A}, "floors": {"../t": 1}},
                {"floors": {"t": 0}},
                {"floors": {"t": "1"}},
                {"floors": {"u": 1}},
                {"previous": {"t": A}},
                {"previous": {"u": B}},
            )
        ),
    ],
)
def test_a_state_outside_the_rules_is_refused_with_its_reason(data: bytes, message: str):
    with pytest.raises(FileFormatError) as caught:
        StoreState.from_bytes(data)
    assert str(caught.value) == message


def test_a_full_store_fits_its_limit_and_takes_no_other_task():
    tasks = [f"{number:064d}" for number in range(MAX_TASKS)]
    full = StoreState(
        dict.fromkeys(tasks, A), dict.fromkeys(tasks, B), dict.fromkeys(tasks, 2**53 - 1)
    )
    assert len(full.to_bytes()) <= MAX_STATE_BYTES
    assert full.activated(tasks[0], C, 1).active[tasks[0]] == C
    with pytest.raises(ConfigError) as caught:
        full.activated("one-more", C, 1)
    assert str(caught.value) == (
        "the store holds 4096 tasks and 'one-more' is one more; a store holds at most 4096; "
        "install it into another folder"
    )


def test_the_reason_names_both_hashes_of_a_changed_state():
    data = state_text().replace(b'"t":1', b'"t":2')
    recorded = json.loads(data)["state_sha256"]
    document = {"active": {"t": A}, "floors": {"t": 2}, "format": 1, "previous": {}}
    with pytest.raises(FileFormatError) as caught:
        StoreState.from_bytes(data)
    assert str(caught.value) == (
        f"STATE of the store has {sha256_hex(encode_canonical(document))}; it must have the "
        f"SHA-256 that it records, {recorded}; {REMEDY}"
    )
