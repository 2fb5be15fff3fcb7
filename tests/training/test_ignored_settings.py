"""A setting that a method does not read is refused; what it does read changes what it learns."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from joint_cases import PX, base_arrays, digits, metric_lines, odd_or_even, patch_arrays, small_base
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.errors import ConfigError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.training import TrainConfig, preparation, train_baseline, train_patch
from patchdeploy.training.int8_retune import retune_patch_int8
from patchdeploy.training.mixed import train_many_patches
from patchdeploy.training.multitask import TaskImages, train_tasks
from patchdeploy.training.preparation import FUNCTIONS, READERS, refuse_settings
from patchdeploy.training.resolutions import ResolutionsConfig, train_resolutions
from patchdeploy.training.run_config import METHODS, RunConfig, TaskConfig, parse_run_config
from patchdeploy.training.run_template import write_template
from patchdeploy.training.run_toml import write_toml

SHORT = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05, device="cpu", early_best=False)
CHANGES: dict[str, Any] = {
    "shared_learning_rate": 0.01,
    "distillation_weight": 0.25,
    "temperature": 2.0,
    "size_penalty": 10.0,
    "rounding_step": 0.25,
    "through_int8": True,
    "share_head": False,
    "share_scales": True,
}
"""Every key that not every method reads, at a value that is not its default."""
READ: dict[str, set[str]] = {
    "transfer": set(CHANGES) - {"shared_learning_rate"},
    "baseline": {"distillation_weight", "temperature"},
    "tasks": {"shared_learning_rate"},
    "resolutions": {"shared_learning_rate", "temperature"},
    "many": set(),
    "int8_retune": set(CHANGES) - {"shared_learning_rate"},
}
PAIRS = [(method, key) for method in METHODS for key in CHANGES]
SIZES = (PX, 12)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    return small_base()


@pytest.fixture(scope="module")
def trained(base: Base) -> Patch:
    """At two resolutions, with a head and scales that both share."""
    train, held = digits(48)
    config = replace(SHORT, share_scales=True)
    return train_patch(base, train, config, validation=held, resolutions=SIZES, quiet=True)


def teach(inputs: Tensor) -> Tensor:
    """Ten scores of an image, from its colours."""
    return inputs.mean(dim=(2, 3)).repeat(1, 4)[:, :10] * inputs.new_tensor(range(10))


def train(method: str, base: Base, trained: Patch, config: TrainConfig) -> dict[str, np.ndarray]:
    """What ``method`` makes of 48 digits, with a teacher where it takes one."""
    images, held = digits(48)
    given: dict[str, Any] = {"validation": held, "quiet": True}
    if method == "transfer":
        named = {**given, "resolutions": SIZES, "teacher": teach}
        return patch_arrays(train_patch(base, images, config, **named))
    if method == "baseline":
        network = train_baseline(
            base, images, "all", config, resolution=PX, teacher=teach, **given
        ).module
        return {key: value.numpy().copy() for key, value in network.state_dict().items()}
    if method == "resolutions":
        result = train_resolutions(base, images, SIZES, config, **given)
        return patch_arrays(result.patch) | base_arrays(result.base)
    if method == "int8_retune":
        with TemporaryDirectory() as folder:  # a re-tune that gains nothing leaves no other trace
            path = Path(folder) / "run"
            retuned = retune_patch_int8(base, trained, images, config, run_dir=path, **given)
            losses = np.array([loss for _, _, loss, _ in metric_lines(path)])
        return patch_arrays(retuned) | {"losses": losses}
    if method == "many":
        tasks = {"digits": images, "parity": odd_or_even(48)[0]}
        patches = train_many_patches(base, tasks, config, quiet=True)
    else:
        sets = [TaskImages(images), TaskImages(odd_or_even(48)[0])]
        made = train_tasks(base, sets, config, quiet=True)
        patches = made.patches
    return {f"{name}/{k}": v for name, one in patches.items() for k, v in patch_arrays(one).items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(value, other[key]) for key, value in one.items())


def test_the_table_holds_every_method_and_this_file_every_key_of_it() -> None:
    assert set(FUNCTIONS.values()) == set(METHODS) == set(READ)
    assert set(CHANGES) == set(READERS) <= {one.name for one in fields(TrainConfig)}
    for method in METHODS:
        assert {key for key, readers in READERS.items() if method in readers} == READ[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_what_the_table_says_and_nothing_else_of_it(
    method: str, base: Base, trained: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the table empty, nothing is refused: what is not read changes no bit."""
    monkeypatch.setattr(preparation, "READERS", {})
    config = replace(SHORT, through_int8=False)
    plain = train(method, base, trained, config)
    assert same(plain, train(method, base, trained, config))
    for key, value in CHANGES.items():
        if method == "int8_retune" and key in ("through_int8", "share_scales"):
            continue  # the one is always on, the other follows the patch
        found = train(method, base, trained, replace(config, **{key: value}))
        assert same(plain, found) == (key not in READ[method]), key


@pytest.mark.parametrize(("method", "key"), PAIRS)
def test_a_function_refuses_a_setting_that_it_does_not_read(
    method: str, key: str, base: Base, trained: Patch
) -> None:
    config = replace(SHORT, **{key: CHANGES[key]})
    function = next(name for name, one in FUNCTIONS.items() if one == method)
    if key in READ[method]:
        refuse_settings(config, function, [need for need in READERS[key].values() if need])
        return
    with pytest.raises(ConfigError) as caught:
        train(method, base, trained, config)
    assert str(caught.value).startswith(f"training {key}={CHANGES[key]!r}; {function} ")
    assert str(caught.value).endswith("; leave it out")


def refusal(*given: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        refuse_settings(*given, **named)
    return str(caught.value)


def test_messages_say_who_reads_a_setting_and_what_it_takes() -> None:
    rate = TrainConfig(shared_learning_rate=0.01)
    assert refusal(rate, "train_patch") == (
        "training shared_learning_rate=0.01; train_patch does not read it, only train_tasks, "
        "train_resolutions; leave it out"
    )
    assert refusal(TrainConfig(share_head=False), "train_tasks") == (
        "training share_head=False; train_tasks has no such form, only a patch that is trained on "
        "its own has (train_patch, method transfer); leave it out"
    )
    assert refusal(TrainConfig(temperature=2.0), "train_patch") == (
        "training temperature=2.0; train_patch reads it with a teacher alone; give that or leave "
        "it out"
    )


def test_a_teachers_settings_are_refused_without_one_but_a_weight_of_nothing_is_not(
    base: Base,
) -> None:
    images, _ = digits(48)
    for change in ({"temperature": 2.0}, {"distillation_weight": 0.7}):
        config = replace(SHORT, **change)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="train_patch reads it with a teacher alone"):
            train_patch(base, images, config, quiet=True)
        for which in ("head", "all"):
            with pytest.raises(ConfigError, match="train_baseline reads it with a teacher alone"):
                train_baseline(base, images, which, config, quiet=True)  # type: ignore[arg-type]
    refuse_settings(TrainConfig(distillation_weight=0.0), "train_patch")
    assert "does not read it" in refusal(TrainConfig(distillation_weight=0.0), "train_tasks")


@pytest.mark.parametrize(
    ("settings", "sizes", "change", "need"),
    [
        (ResolutionsConfig(teach="none"), SIZES, {"temperature": 2.0}, "teach='ensemble' over"),
        (ResolutionsConfig(), (PX,), {"temperature": 2.0}, "teach='ensemble' over"),
        (
            ResolutionsConfig(learn="patch", statistics="frozen"),
            SIZES,
            {"shared_learning_rate": 0.01},
            "learn='all' alone",
        ),
    ],
)
def test_resolutions_read_some_settings_only_with_others(
    base: Base, settings: ResolutionsConfig, sizes: Any, change: Any, need: str
) -> None:
    images, held = digits(48)
    given: dict[str, Any] = {"validation": held, "quiet": True}
    config = replace(SHORT, epochs=1)
    with pytest.raises(ConfigError, match=f"train_resolutions reads it with {need}"):
        train_resolutions(base, images, sizes, replace(config, **change), settings, **given)
    train_resolutions(base, images, sizes, config, settings, **given)


def test_a_last_layer_alone_with_batch_statistics_is_refused(base: Base) -> None:
    images, _ = digits(48)
    with pytest.raises(ConfigError) as caught:
        train_baseline(base, images, "head", SHORT, statistics="batch", quiet=True)
    assert str(caught.value) == (
        "baseline 'head' with statistics 'batch'; the last layer alone learns over normalisations "
        "as they are; use 'all' or leave statistics out"
    )


TASK = {"name": "digits", "images": "packaged:digits:train"}
FILES: dict[str, dict[str, Any]] = {
    "transfer": {"task": [TASK]},
    "baseline": {"task": [TASK]},
    "tasks": {"task": [TASK, {**TASK, "name": "more"}]},
    "resolutions": {"task": [TASK], "resolutions": [48, 32]},
    "many": {"task": [TASK, {**TASK, "name": "more"}]},
    "int8_retune": {"task": [{**TASK, "patch": "runs/x"}]},
}


def parse(method: str, training: dict[str, Any], **changes: Any) -> RunConfig:
    document = {"method": method, **FILES[method], "training": training, **changes}
    return parse_run_config(document, "run.toml")


@pytest.mark.parametrize(("method", "key"), PAIRS)
def test_a_file_may_not_name_a_key_that_the_method_never_reads_even_at_its_default(
    method: str, key: str
) -> None:
    default = getattr(TrainConfig(), key)
    written = 0.01 if default is None else default
    if key in READ[method]:
        if (method, key) != ("int8_retune", "through_int8"):
            parse(method, {key: written})
        return
    with pytest.raises(ConfigError) as caught:
        parse(method, {key: written})
    text = str(written).lower()
    assert str(caught.value) == (
        f"run.toml, [training]: {key} = {text}; method {method!r} does not read it, only "
        f"{', '.join(READERS[key])}; remove it"
    )


def test_a_file_of_a_baseline_may_not_say_what_is_checked_for_an_export() -> None:
    for method in METHODS:
        if method != "baseline":
            parse(method, {"check_export": False})
    with pytest.raises(ConfigError) as caught:
        parse("baseline", {"check_export": False})
    assert str(caught.value) == (
        "run.toml, [training]: check_export = false; method 'baseline' does not read it, only "
        "transfer, tasks, resolutions, many, int8_retune; remove it"
    )


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "transfer",
            {"training": {"temperature": 4}},
            "[training]: temperature = 4.0; method 'transfer' reads it with a teacher alone; give "
            "that or remove it",
        ),
        (
            "resolutions",
            {"training": {"temperature": 4}, "sharing": {"teach": "none"}},
            "[training]: temperature = 4.0; method 'resolutions' reads it with teach='ensemble' "
            "over several resolutions alone; give that or remove it",
        ),
        (
            "resolutions",
            {"training": {"shared_learning_rate": 0.1}, "sharing": {"learn": "patch"}},
            "[training]: shared_learning_rate = 0.1; method 'resolutions' reads it with "
            "learn='all' alone; give that or remove it",
        ),
        (
            "int8_retune",
            {"training": {"through_int8": False}},
            "[training]: through_int8 = false; method 'int8_retune' trains through the int8 base; "
            "remove it",
        ),
    ],
)
def test_a_value_without_what_it_takes_is_refused_with_its_place(
    method: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(method, **changes)
    assert str(caught.value) == f"run.toml, {message}"


def test_a_file_with_batch_statistics_for_a_last_layer_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("baseline", {}, trained="head", statistics="batch")
    assert str(caught.value) == (
        "run.toml: statistics = 'batch' with trained = 'head'; the last layer alone learns over "
        "normalisations as they are; remove one of them"
    )
    parse("baseline", {}, trained="head", statistics="frozen")
    parse("baseline", {}, trained="all", statistics="batch")


def test_a_file_with_a_teacher_may_say_how_it_teaches() -> None:
    taught = {"task": [TASK, {**TASK, "name": "more", "teacher": "trained:x"}]}
    config = parse("transfer", {"temperature": 4, "distillation_weight": 0.7}, **taught)
    assert (config.training.temperature, config.training.distillation_weight) == (4.0, 0.7)
    assert parse("int8_retune", {"temperature": 4}).training.temperature == 4.0
    assert parse("int8_retune", {"through_int8": True}).training.through_int8


@pytest.mark.parametrize("method", METHODS)
def test_a_run_from_python_is_written_as_a_file_that_is_taken_again(method: str) -> None:
    """A run's folder is read again to go on from it."""
    tasks = tuple(TaskConfig(**row) for row in FILES[method]["task"])
    sizes = tuple(FILES[method].get("resolutions", ()))
    patch = PatchConfig(statistics="batch") if method == "tasks" else PatchConfig()
    training = TrainConfig(learning_rate=0.01)
    config = RunConfig(method, "embedded", "", sizes, "all", "frozen", training, patch, tasks=tasks)  # type: ignore[arg-type]
    again = parse_run_config(tomllib.loads(write_toml(config.to_document())), "again")
    through = method == "int8_retune"
    assert again == replace(config, training=replace(training, through_int8=through))
    assert set(again.to_document()["training"]) & set(CHANGES) == READ[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_template_shows_the_keys_that_its_method_reads(method: str) -> None:
    text = write_template(method)  # type: ignore[arg-type]
    assert {key for key in CHANGES if f"\n# {key} = " in text} == READ[method]
