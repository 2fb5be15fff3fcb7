"""One rule for keys that are not known, wherever settings are read."""

import pytest

from patchdeploy.data import Preprocessing
from patchdeploy.errors import ConfigError
from patchdeploy.errors_keys import refuse_unknown_keys
from patchdeploy.patch import PatchConfig
from patchdeploy.training import TrainConfig


def test_the_message_names_all_keys_and_the_nearest() -> None:
    refuse_unknown_keys(["b", "a"], ["a", "b"], "unknown key")
    with pytest.raises(ConfigError) as caught:
        refuse_unknown_keys(["a", "epoch"], ["a", "epochs"], "x.toml: unknown key")
    assert str(caught.value) == (
        "x.toml: unknown key 'epoch'; the keys are a, epochs; did you mean 'epochs'?"
    )
    with pytest.raises(ConfigError) as caught:
        refuse_unknown_keys(["zzz"], ["a"], "unknown key", shown=["a", "b"])
    assert str(caught.value) == "unknown key 'zzz'; the keys are a, b; remove it"


@pytest.mark.parametrize(
    ("kind", "key", "begin", "near"),
    [
        (TrainConfig, "epoch", "unknown training key 'epoch'; ", "epochs"),
        (PatchConfig, "kind", "unknown patch key 'kind'; ", "kinds"),
        (Preprocessing, "meann", "unknown preprocessing key 'meann'; ", "mean"),
    ],
)
def test_every_kind_of_settings_follows_it(kind: type, key: str, begin: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind.from_json({key: 1})  # type: ignore[attr-defined]
    assert str(caught.value).startswith(begin)
    assert str(caught.value).endswith(f"; did you mean {near!r}?")
