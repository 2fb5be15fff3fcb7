"""A run's TOML file: every key is checked, every error names its place and the way out."""

import contextlib
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.errors import ConfigError
from patchdeploy.patchfile import values as patchfile_values
from patchdeploy.training import TrainConfig
from patchdeploy.training.run_config import (
    METHODS,
    TASK_NAME,
    LoaderConfig,
    RunConfig,
    TaskConfig,
    load_run_config,
    parse_run_config,
)
from patchdeploy.training.run_template import field_words, write_template
from patchdeploy.training.run_toml import apply_overrides, write_toml
from patchdeploy.training.sweep import SweepConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
OTHER_EXAMPLES = {"sweep": "transfer"}
"""Examples of what is no method, by name, and the method that they use."""
TASK = {"name": "digits", "images": "packaged:digits:train"}
GOOD = {"method": "transfer", "task": [TASK]}


def parse(**changes: object) -> RunConfig:
    return parse_run_config({**GOOD, **changes}, "run.toml")


def test_every_setting_reaches_its_place(tmp_path: Path) -> None:
    path = tmp_path / "digits.toml"
    path.write_text(
        'method = "transfer"\nresolutions = [48, 32]\n'
        "[training]\nepochs = 3\nlearning_rate = 1\n"
        '[patch]\nkinds = ["head"]\n'
        '[loader]\nworkers = 2\ncache = "kept"\n'
        "[workers]\ntimeout_seconds = 90\n"
        '[[task]]\nname = "one"\nimages = "photos/one"\ntest = "photos/other"\n'
    )
    config = load_run_config(path)
    assert config.out == "runs/digits"
    assert config.resolutions == (48, 32)
    assert config.training == TrainConfig(epochs=3, learning_rate=1.0)
    assert isinstance(config.training.learning_rate, float)
    assert config.patch.kinds == ("head",)
    assert config.loader.to_load().workers == 2
    assert config.loader.to_load().cache == Path("kept")
    assert config.workers.timeout_seconds == 90.0
    assert config.tasks == (TaskConfig("one", "photos/one", test="photos/other"),)


def test_a_method_has_defaults_of_its_own_that_the_file_may_change() -> None:
    two = [TASK, {**TASK, "name": "more"}]
    joint = {"method": "tasks", "task": two}
    assert parse(**joint).patch.statistics == "batch"
    assert parse(**joint, patch={"kinds": ["head"]}).patch.statistics == "batch"
    assert parse(**joint, patch={"statistics": "frozen"}).patch.statistics == "frozen"
    assert parse().patch.statistics == "frozen"


def test_a_task_may_have_its_own_augmentation_and_smoothing() -> None:
    own = {**TASK, "name": "more", "augment": "shift", "label_smoothing": 0.1}
    config = parse(method="tasks", task=[TASK, own])
    assert config.tasks[0].training(config.training) is None
    expected = replace(config.training, augment="shift", label_smoothing=0.1)
    assert config.tasks[1].training(config.training) == expected


@pytest.mark.parametrize("method", ["tasks", "many"])
def test_ranks_are_divided_among_tasks_that_train_together(method: str) -> None:
    two = [TASK, {**TASK, "name": "more"}]
    config = parse(method=method, task=two, workers={"ranks_per_task": [2, 1]})
    assert config.workers.ranks_per_task == (2, 1)


TOP = (
    "method, base, out, resolutions, trained, statistics, training, patch, sharing, sweep, loader, "
    "workers, task"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methd": "x"},
            f"run.toml: unknown key 'methd'; the keys are {TOP}; did you mean 'method'?",
        ),
        (
            {"zzz": 1},
            f"run.toml: unknown key 'zzz'; the keys are {TOP}; remove it",
        ),
        (
            {"loader": {"worker": 2}},
            "run.toml, [loader]: unknown key 'worker'; the keys are workers, cache, on_broken; did "
            "you mean 'workers'?",
        ),
        (
            {"workers": {"backend": "mpi"}},
            "run.toml, [workers]: backend = 'mpi'; it must be 'gloo' or 'nccl'; correct it",
        ),
        (
            {"workers": {"ranks_per_task": []}},
            "run.toml, [workers]: ranks_per_task = []; it must be one or more whole numbers of at "
            "least 1; correct it",
        ),
        (
            {"workers": {"ranks_per_task": [2]}},
            "run.toml, [workers]: ranks_per_task = [2]; in method 'transfer' every rank takes a "
            "part of every batch; it belongs to tasks, many; remove it",
        ),
        (
            {"workers": {"timeout_seconds": 0}},
            "run.toml, [workers]: timeout_seconds = 0.0; it must be positive; correct it",
        ),
        (
            {"training": {"epochs": 1.5}},
            "run.toml, [training]: epochs = 1.5; it must be a whole number; correct it",
        ),
        (
            {"training": {"epochs": True}},
            "run.toml, [training]: epochs = True; it must be a whole number; correct it",
        ),
        (
            {"training": {"epochs": 0}},
            "run.toml, [training]: training epochs=0; it must be at least 1; correct it",
        ),
        (
            {"training": {"recipe": "old"}},
            "run.toml, [training]: recipe = 'old'; it must be 'modern' or 'paper'; correct it",
        ),
        (
            {"patch": {"include": "features.1"}},
            "run.toml, [patch]: include = 'features.1'; it must be a list of texts in quotes; "
            "correct it",
        ),
        (
            {"patch": {"include": [1]}},
            "run.toml, [patch]: include = [1]; it must be a list of texts in quotes; correct it",
        ),
        ({"patch": 3}, "run.toml, [patch] is 3; it must be a table of keys; correct it"),
        (
            {"resolutions": 32},
            "run.toml: resolutions = 32; it must be a list of whole numbers; correct it",
        ),
        (
            {"resolutions": [32, 32]},
            "run.toml: resolutions = [32, 32]; they must be positive and each stand once; correct "
            "the list",
        ),
        (
            {"task": TASK},
            "run.toml, [task]: one table; tasks are a list of tables; write [[task]], with two "
            "brackets",
        ),
        (
            {"task": [{"name": "one"}]},
            "run.toml, [[task]] 'one': no 'images'; it has no default; add a line images = ...",
        ),
        (
            {"task": [{**TASK, "image": "x"}]},
            "run.toml, [[task]] 'digits': unknown key 'image'; the keys are name, images, "
            "validation, test, weight, resolution, augment, label_smoothing, mixup, cutmix, patch, "
            "teacher; did you mean 'images'?",
        ),
        (
            {"task": [TASK, TASK]},
            "run.toml: two tasks are called 'digits'; names differ; rename one",
        ),
        (
            {"task": [{**TASK, "name": "My Task"}]},
            "run.toml, [[task]] 'My Task': the name must be 1 to 64 of a-z, 0-9, underscore and "
            "hyphen; rename it",
        ),
        (
            {"task": []},
            "run.toml: 0 [[task]] tables; method 'transfer' takes at least 1; add some",
        ),
        (
            {"task": [{**TASK, "patch": "x"}]},
            "run.toml, [[task]] 'digits': method 'transfer' has no use for 'patch'; it belongs to "
            "int8_retune; remove it",
        ),
        (
            {"trained": "head"},
            "run.toml: method 'transfer' has no use for 'trained'; it belongs to baseline; remove "
            "it",
        ),
        (
            {"method": "tasks"},
            "run.toml: 1 [[task]] tables; method 'tasks' takes at least 2; add some",
        ),
        (
            {"method": "resolutions", "resolutions": [32]},
            "run.toml: 1 resolutions; method 'resolutions' takes at least 2; add some",
        ),
        (
            {"method": "baseline", "resolutions": [32, 48]},
            "run.toml: 2 resolutions; method 'baseline' takes 0 to 1; leave some out",
        ),
        (
            {"method": "int8_retune"},
            "run.toml, [[task]] 'digits': no 'patch'; method 'int8_retune' trains a patch further; "
            "add patch = the folder of one",
        ),
        (
            {"method": "tasks", "task": [TASK, {**TASK, "name": "b", "label_smoothing": 2}]},
            "run.toml, [[task]] 'b': training label_smoothing=2.0; it must be in [0, 1); correct "
            "it",
        ),
        (
            {"method": "tasks", "task": [TASK, {**TASK, "name": "b", "weight": 0}]},
            "run.toml, [[task]] 'b': weight = 0.0; it must be positive; correct it",
        ),
        (
            {"sweep": {"rate": [0.1, 0.2]}},
            "run.toml, [sweep]: unknown key 'rate'; the keys are rates; did you mean 'rates'?",
        ),
        (
            {"sweep": {"rates": [0.1]}},
            "run.toml, [sweep]: sweep rates [0.1]; a sweep compares at least 2 positive rates; "
            "give for instance 0.001, 0.01, 0.1",
        ),
        (
            {"sweep": {"rates": ["large"]}},
            "run.toml, [sweep]: rates = ['large']; it must be a list of numbers; correct it",
        ),
        (
            {"sweep": {"rates": [0.1, 1]}, "training": {"learning_rate": 0.1}},
            "run.toml, [sweep]: rates = [0.1, 1.0] and [training] learning_rate = 0.1; a sweep "
            "sets the learning rate; remove one of them",
        ),
        (
            {"method": "int8_retune", "sweep": {"rates": [0.1, 1]}},
            "run.toml: method 'int8_retune' has no use for 'sweep'; it belongs to transfer, "
            "baseline, tasks, resolutions, many; remove it",
        ),
        (
            {"method": "tansfer"},
            "run.toml: method = 'tansfer'; it must be 'transfer', 'baseline', 'tasks', "
            "'resolutions', 'many' or 'int8_retune'; did you mean 'transfer'?",
        ),
    ],
)
def test_a_bad_key_or_value_is_refused_with_its_place(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    assert str(caught.value) == message


def test_a_file_without_a_method_shows_how_to_write_one() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_config({}, "run.toml")
    assert str(caught.value) == (
        "run.toml: no method; it must be 'transfer', 'baseline', 'tasks', 'resolutions', 'many' or "
        "'int8_retune'; add for instance method = \"transfer\""
    )


def test_a_file_that_is_not_there_or_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(tmp_path / "no.toml")
    assert str(caught.value) == (
        f"cannot read {tmp_path / 'no.toml'}: No such file or directory; it must be a TOML file; "
        "correct the path, or write one with: patchdeploy new-config transfer"
    )
    (tmp_path / "bad.toml").write_text("method = transfer\n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML: .*line 1, column 10") as caught:
        load_run_config(tmp_path / "bad.toml")
    assert str(caught.value).endswith("texts stand in quotes, lists in [ ]; correct that place")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml is not TOML"):
        load_run_config(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("training.epochs=3", ("training", "epochs"), 3),
        ("out=runs/x", ("out",), "runs/x"),
        ('out="7"', ("out",), "7"),
        ("resolutions=[64, 32]", ("resolutions",), [64, 32]),
        ("task.digits.images=photos", ("task", 0, "images"), "photos"),
        ("base=torchvision:resnet18@DEFAULT", ("base",), "torchvision:resnet18@DEFAULT"),
        ("out=x\nbase = 'y'", ("out",), "x\nbase = 'y'"),
    ],
)
def test_a_setting_of_the_command_line_goes_over_the_file(
    override: str, place: tuple, value: object
) -> None:
    before = repr(GOOD)
    found: object = apply_overrides(GOOD, [override])
    for key in place:
        found = found[key]  # type: ignore[index]
    assert found == value
    assert repr(GOOD) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "epochs",
            "--set 'epochs'; it must be KEY=VALUE; write for instance training.epochs=3",
        ),
        (
            "method.epochs=3",
            "--set 'method.epochs=3'; method is no table; write table.key=VALUE, for instance "
            "training.epochs=3",
        ),
        (
            "task.fashion.weight=2",
            "--set 'task.fashion.weight=2' reaches no task; the tasks are digits; write "
            "task.NAME.key=VALUE",
        ),
        (
            "task.weight=2",
            "--set 'task.weight=2' reaches no task; the tasks are digits; write "
            "task.NAME.key=VALUE",
        ),
    ],
)
def test_a_setting_that_reaches_nothing_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(GOOD, [override])
    assert str(caught.value) == message


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_loads_and_survives_being_written(path: Path) -> None:
    config = load_run_config(path)
    assert config.method == OTHER_EXAMPLES.get(path.stem, path.stem)
    text = write_toml(config.to_document())
    assert parse_run_config(tomllib.loads(text), "again") == config


def test_there_is_an_example_for_each_method() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == {*METHODS, *OTHER_EXAMPLES}


@pytest.mark.parametrize("method", METHODS)
def test_a_template_runs_as_it_is_and_its_comments_hold_the_defaults(method: str) -> None:
    text = write_template(method)  # type: ignore[arg-type]
    assert max(map(len, text.splitlines())) <= 100
    plain = parse_run_config(tomllib.loads(text), "plain")
    assert plain.method == method
    commented = re.compile(r"^# (\w+ = (?!\.\.\.).+)$", re.MULTILINE)
    whole, count = commented.subn(r"\1", text)
    assert count > 10
    assert parse_run_config(tomllib.loads(whole), "whole") == plain


def test_a_template_says_of_each_key_what_it_means() -> None:
    for kind in (TrainConfig, TaskConfig, LoaderConfig, SweepConfig):
        words = field_words(kind)
        for name in kind.__dataclass_fields__:
            assert words.get(name), f"{kind.__name__}.{name} is not described"


def test_task_names_follow_the_rule_of_patch_files() -> None:
    assert TASK_NAME.pattern == patchfile_values.TASK_NAME.pattern


names = st.text("abcz_-09", min_size=1, max_size=5)
# Surrogates have no UTF-8 and so no TOML.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), texts
)
values = st.one_of(scalars, st.lists(scalars, max_size=3))
tables = st.dictionaries(names, values, max_size=4)


@given(tables, st.dictionaries(names, tables, max_size=3), st.lists(tables, min_size=1, max_size=3))
def test_what_is_written_as_toml_reads_back_the_same(plain: dict, nested: dict, rows: list) -> None:
    document = {**plain, **nested, "rows": rows}
    read = tomllib.loads(write_toml(document))
    assert read == document
    assert repr(sorted(read)) == repr(sorted(document))


HOSTILE_TOML = {
    "nested lists": "a = " + "[" * 50_000 + "]" * 50_000,
    "nested lists that parse": "base = " + "[" * 200 + "]" * 200,
    "nested tables": "a" + ".a" * 3000 + " = 1",
    "a number of many digits": "x = 1" + "0" * 5000,
    "a number beyond 64 bits": 'method = "transfer"\n[training]\nepochs = 1' + "0" * 400,
    "a rate beyond floats": 'method = "transfer"\n[training]\nlearning_rate = 1' + "0" * 400,
    "a zero in a text": 'method = "transfer"\nout = "a\\u0000b"',
    "a longer file": "#" * 2_000_000,
    "dates": 'method = "transfer"\nbase = 1979-05-27T07:32:00Z',
    "a huge text": 'method = "' + "x" * 100_000 + '"',
    "a table for a text": 'method = "transfer"\n[base]\nx = 1',
}


@pytest.mark.parametrize("name", HOSTILE_TOML)
def test_a_file_that_no_person_would_write_gives_a_typed_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(HOSTILE_TOML[name])
    with pytest.raises(ConfigError):
        load_run_config(path)


@pytest.mark.parametrize(
    "override",
    ["training.epochs=1" + "0" * 5000, "base=" + "[" * 2000, "base=" + "[" * 9 + "]" * 9],
)
def test_a_setting_that_no_person_would_write_gives_a_typed_error(
    override: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text('method = "transfer"\n[[task]]\nname = "a"\nimages = "x"\n')
    with contextlib.suppress(ConfigError):  # what is no TOML is a text, and a base may be any
        assert load_run_config(path, [override]).base == override.removeprefix("base=")


def test_a_pipe_is_no_settings_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")
    with pytest.raises(ConfigError, match="is not a regular file"):
        load_run_config(tmp_path / "run.toml")
