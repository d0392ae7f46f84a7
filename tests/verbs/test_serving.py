"""What served models are called."""

from __future__ import annotations

import pytest

from fledge.core.errors import ConfigError
from fledge.verbs.serving import model_names


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("demo", "demo"),
        ("demo@best", "demo@best"),
        ("runs/demo/sft@500", "demo/sft@500"),
        ("/srv/models/small", "small"),
        ("exported/", "exported"),
    ],
)
def test_a_model_is_called_what_it_was_named_by(reference: str, name: str) -> None:
    assert model_names([reference], []) == [name]


def test_given_names_replace_them_and_none_may_be_twice() -> None:
    assert model_names(["demo", "demo@best"], ["one", "two"]) == ["one", "two"]
    for references, names in ((["demo"], ["one", "two"]), (["demo", "runs/demo"], []), (["a", "b"], ["one", "one"])):
        with pytest.raises(ConfigError, match="model-name"):
            model_names(references, names)
