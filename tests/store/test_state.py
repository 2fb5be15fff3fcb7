import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from patchdeploy.errors import ConfigError, FileFormatError
from patchdeploy.patchfile.json import encode_canonical
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.storage import sha256_hex
from patchdeploy.store.state import (
    MAX_FLOORS,
    MAX_STATE_BYTES,
    MAX_TASKS,
    Floor,
    StoreState,
    raise_floor,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64
TASKS = st.text("abcz019_-", min_size=1, max_size=64)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
FLOORS = st.builds(
    Floor,
    st.integers(1, 2**53 - 1),
    HASHES,
    st.sampled_from(((), (0,), (1,), (255,), (0, 1), (0, 1, 2, 255))),
)
REMEDY = "the store takes its copy, or has the patches run that ship with the app"
KEY = SigningKey.from_seed(bytes(32)).public


@st.composite
def states(draw: st.DrawFn) -> StoreState:
    active = draw(st.dictionaries(TASKS, HASHES, max_size=3))
    previous = {t: draw(HASHES) for t in active if draw(st.booleans())}
    previous = {task: sha256 for task, sha256 in previous.items() if sha256 != active[task]}
    floors: dict[str, tuple[Floor, ...]] = {}
    for task in [*active, *draw(st.lists(TASKS, max_size=2))]:
        for floor in draw(st.lists(FLOORS, min_size=1, max_size=3)):
            floors[task] = raise_floor(floors.get(task, ()), floor)
    trusted = draw(st.sampled_from((None, TrustedKeys((None, KEY), 1))))
    return StoreState(active, previous, floors, trusted)


GONE = object()


def state_text(**changes: object) -> bytes:
    """A STATE with these parts changed and its own hash right."""
    parts: dict[str, object] = {
        "format": 2,
        "active": {"t": A},
        "previous": {},
        "floors": {"t": [[1, A, [0]]]},
        "trusted": None,
    }
    document = {key: one for key, one in (parts | changes).items() if one is not GONE}
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


@given(states(), TASKS, FLOORS, HASHES)
def test_activating_moves_one_task_and_never_lowers_a_floor(
    state: StoreState, task: str, floor: Floor, back_to: str
):
    after = state.activated(task, floor, back_to)
    assert after.active == {**state.active, task: floor.sha256}
    for signers in {one.signers for one in after.floors[task]}:
        before = [one for one in state.floors.get(task, ()) if one.signers == signers]
        now = [one for one in after.floors[task] if one.signers == signers]
        assert now[0].sequence >= max((one.sequence for one in before), default=0)
    if state.active.get(task) != floor.sha256:
        highest = after.highest(task, lambda signers: True)
        assert highest is not None
        assert highest.sequence >= floor.sequence
        assert after.previous.get(task) == (back_to if back_to != floor.sha256 else None)
    others = {name: floors for name, floors in after.floors.items() if name != task}
    assert others == {name: one for name, one in state.floors.items() if name != task}
    assert after.trusted == state.trusted
    assert after.activated(task, floor, back_to) is after


@given(st.lists(FLOORS, min_size=1, max_size=20))
def test_of_the_floors_of_a_task_the_highest_of_each_set_of_signers_stays(floors: list[Floor]):
    kept: tuple[Floor, ...] = ()
    for floor in floors:
        kept = raise_floor(kept, floor)
    best: dict[tuple[int, ...], int] = {}
    for floor in floors:
        best[floor.signers] = max(floor.sequence, best.get(floor.signers, 0))
    assert len(kept) == min(len(best), MAX_FLOORS)
    if len(best) <= MAX_FLOORS:
        assert {one.signers: one.sequence for one in kept} == best
    assert max(kept).sequence == max(floors).sequence


def test_a_floor_whose_signers_count_no_longer_is_none():
    floors = (Floor(5, A, (1,)), Floor(9, B, (0,)), Floor(9, C, (0, 1)))
    state = StoreState({"t": A}, {}, {"t": floors})
    assert state.highest("t", lambda signers: True) == floors[2]
    assert state.highest("t", lambda signers: 0 not in signers) == floors[0]
    assert state.highest("t", lambda signers: False) is None
    assert state.highest("u", lambda signers: True) is None


@given(states())
def test_reverting_twice_changes_nothing(state: StoreState):
    for task in state.previous:
        once = state.reverted(task)
        assert once.active[task] == state.previous[task]
        assert once.floors == state.floors
        assert once.reverted(task) == state


def test_the_text_of_a_state_is_as_documented():
    trusted = TrustedKeys((None, KEY), 1)
    state = StoreState({"birds": A}, {"birds": B}, {"birds": (Floor(7, A, (1,)),)}, trusted)
    head = (
        f'{{"active":{{"birds":"{A}"}},"floors":{{"birds":[[7,"{A}",[1]]]}},"format":2,'
        f'"previous":{{"birds":"{B}"}}'
    )
    keys = trusted.to_bytes().decode()
    own = sha256_hex(f'{head},"trusted":{keys}}}'.encode())
    assert state.to_bytes() == f'{head},"state_sha256":"{own}","trusted":{keys}}}'.encode()
    assert state.named == state.kept == {A, B}
    lost = StoreState({}, {}, {"birds": (Floor(7, A, (1,)),)})
    assert (lost.named, lost.kept) == (frozenset(), {A})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "STATE of the store has something else at offset 1; it must have JSON; " + REMEDY),
        (
            state_text(format=1),
            "STATE of the store has format 1; it must have format 2; " + REMEDY,
        ),
        (
            state_text(floors=GONE),
            "STATE of the store has others; it must have the keys active, floors, format, "
            "previous, state_sha256, trusted; " + REMEDY,
        ),
        (
            b"[]",
            "STATE of the store has others; it must have the keys active, floors, format, "
            "previous, state_sha256, trusted; " + REMEDY,
        ),
        (
            state_text(active=[]),
            "STATE of the store has others; it must have three objects; " + REMEDY,
        ),
        *(
            (
                state_text(floors={"t": one}),
                "STATE of the store has others; it must have " + rule + "; " + REMEDY,
            )
            for one, rule in (
                (1, "lists of floors"),
                ([1], "floors of a number, a hash and a list"),
                ([[1, A]], "floors of a number, a hash and a list"),
                ([[1, A, 0]], "floors of a number, a hash and a list"),
            )
        ),
        (
            state_text(trusted={"format": 1, "keys": [], "threshold": 1}),
            "STATE of the store has another (threshold 1 over 0 live keys; it must be an integer "
            "from 1 to 4 and at most the live keys; add keys or lower it); it must have a list of "
            "trusted keys; " + REMEDY,
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
                {"active": {"T": A}, "floors": {"T": [[1, A, [0]]]}},
                {"active": {"../t": A}, "floors": {"../t": [[1, A, [0]]]}},
                {"floors": {"t": [[1, A, [0]]], "../u": [[1, A, [0]]]}},
                {"floors": {"t": []}},
                {"floors": {"t": [[0, A, [0]]]}},
                {"floors": {"t": [["1", A, [0]]]}},
                {"floors": {"t": [[1, "a", [0]]]}},
                {"floors": {"t": [[1, A, [256]]]}},
                {"floors": {"t": [[1, A, ["0"]]]}},
                {"floors": {"t": [[1, A, [1, 0]]]}},
                {"floors": {"t": [[1, A, [0, 0]]]}},
                {"floors": {"t": [[1, A, [0, 1, 2, 3, 4]]]}},
                {"floors": {"t": [[2, A, [0]], [1, A, [1]]]}},
                {"floors": {"t": [[1, A, [0]], [2, A, [0]]]}},
                {"floors": {"t": [[k, A, [k]] for k in range(1, 6)]}},
                {"floors": {"u": [[1, A, [0]]]}},
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
    signers = [
        (250, 251, 252, 253),
        *((251, 252, 253, k) for k in (254, 255)),
        (252, 253, 254, 255),
    ]
    floors = tuple(Floor(2**53 - 1, A, one) for one in signers)
    keys = [SigningKey.from_seed(bytes([k]) * 32).public for k in range(256)]
    full = StoreState(
        dict.fromkeys(tasks, A),
        dict.fromkeys(tasks, B),
        dict.fromkeys(tasks, floors),
        TrustedKeys(tuple(keys), 4),
    )
    data = full.to_bytes()
    assert len(data) <= MAX_STATE_BYTES
    assert full.activated(tasks[0], Floor(1, C, ()), None).active[tasks[0]] == C
    with pytest.raises(ConfigError) as caught:
        full.activated("one-more", Floor(1, C), None)
    assert str(caught.value) == (
        "the store holds 4096 tasks and 'one-more' is one more; a store holds at most 4096; "
        "install it into another folder"
    )


def test_the_reason_names_both_hashes_of_a_changed_state():
    data = state_text().replace(b"[[1,", b"[[2,")
    recorded = json.loads(data)["state_sha256"]
    document = {
        "active": {"t": A},
        "floors": {"t": [[2, A, [0]]]},
        "format": 2,
        "previous": {},
        "trusted": None,
    }
    with pytest.raises(FileFormatError) as caught:
        StoreState.from_bytes(data)
    assert str(caught.value) == (
        f"STATE of the store has {sha256_hex(encode_canonical(document))}; it must have the "
        f"SHA-256 that it records, {recorded}; {REMEDY}"
    )
