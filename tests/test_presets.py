"""The shapes in recipes/models are what their names and first lines say, and any recipe can extend them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fledge import recipe
from fledge.core.errors import ConfigError
from fledge.model.cost import parameter_count
from fledge.model.settings import ModelConfig, padded_vocabulary_size
from fledge.recipe import find_recipe, load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
PRESETS = sorted((RECIPES / "models").glob("*.yaml"))
FIRST_LINE = re.compile(
    r"# (?P<parameters>[\d,]+) parameters at a vocabulary of (?P<vocabulary>[\d,]+) \((?P<head>tied|untied)\): "
    r"(?P<layers>\d+) layers of width (?P<width>[\d,]+), (?P<heads>\d+) query heads(?: on (?P<key_heads>\d+) key heads)? of (?P<size>\d+)\."
)
UNITS = {"m": 10**6, "b": 10**9}


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_there_is_a_preset_for_every_size() -> None:
    assert {path.stem for path in PRESETS} == {"23m", "25m", "42m", "96m", "124m", "197m", "350m", "1b"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_what_it_says(path: Path) -> None:
    model = load_recipe(path, [])[0].model
    said = FIRST_LINE.match(path.read_text(encoding="utf-8"))
    assert said is not None
    vocabulary_size = number(said["vocabulary"])
    assert vocabulary_size == padded_vocabulary_size(vocabulary_size)
    parameters = parameter_count(ModelConfig(model, vocabulary_size))
    assert parameters == number(said["parameters"])
    assert parameters == pytest.approx(int(path.stem[:-1]) * UNITS[path.stem[-1]], rel=0.03)
    shape = (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.head_size)
    assert shape == tuple(number(said[name]) for name in ("layers", "width", "heads", "size"))
    assert model.key_value_heads == int(said["key_heads"] or said["heads"])
    assert model.tie_word_embeddings == (said["head"] == "tied")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_documentation_says_the_same(path: Path) -> None:
    said, model = FIRST_LINE.match(path.read_text(encoding="utf-8")), load_recipe(path, [])[0].model
    assert said is not None
    heads = said["heads"] + (f" on {said['key_heads']}" if said["key_heads"] else "")
    shape = f"{said['layers']} x {said['width']} | {heads} | {model.intermediate_size:,} | {said['head']} |"
    page = (RECIPES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    assert f"| `{path.stem}` | {said['parameters']} | {said['vocabulary']} | {shape}" in page.splitlines()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_takes_the_place_of_the_whole_shape(path: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: [quickstart.yaml, other.yaml, models/{path.name}]\n")
    other = "{hidden_size: 96, head_dim: 32, num_key_value_heads: 1, num_attention_heads: 3, tie_word_embeddings: false, rope_theta: 5e5}"
    (tmp_path / "other.yaml").write_text(f"model: {other}\n")
    found, tree = load_recipe(own, [])
    assert found.model.rope_theta == 5e5
    assert {**vars(found.model), "rope_theta": 1e4} == vars(load_recipe(path, [])[0].model)
    assert tree.origin(("model", "hidden_size")) == f"{path}:{line_of(path, 'hidden_size')}"
    assert found.pretrain is not None and found.pretrain.steps == 100


def line_of(path: Path, key: str) -> int:
    return next(place for place, line in enumerate(path.read_text().splitlines(), start=1) if line.strip().startswith(key))


def test_a_file_beside_a_recipe_comes_before_ours(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "23m.yaml").write_text("model: {hidden_size: 64}\n")
    own = tmp_path / "own.yaml"
    own.write_text("extends: models/23m.yaml\n")
    assert load_recipe(own, [])[0].model.hidden_size == 64


def test_an_installed_fledge_finds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = tmp_path / "package" / "recipes"
    (packaged / "models").mkdir(parents=True)
    (packaged / "models" / "7m.yaml").write_text("model: {hidden_size: 128}\n")
    monkeypatch.setattr(recipe, "PACKAGED", packaged)
    own = tmp_path / "own.yaml"
    own.write_text("extends: models/7m.yaml\n")
    assert load_recipe(own, [])[0].model.hidden_size == 128


def test_a_file_that_nobody_has_is_named_where_it_was_looked_for_first(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: models/24m.yaml\n")
    with pytest.raises(ConfigError, match=re.escape(f"there is no recipe file {tmp_path}/models/24m.yaml")):
        load_recipe(own, [])


def test_the_place_of_a_recipe_in_a_checkout_means_it_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("recipes/own-text.yaml") == find_recipe("own-text")
    assert find_recipe("recipes/other.yaml") == Path("recipes/other.yaml")
    assert find_recipe("elsewhere/own-text.yaml") == Path("elsewhere/own-text.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own-text.yaml").touch()
    assert find_recipe("recipes/own-text.yaml") == Path("recipes/own-text.yaml")


def test_presets_are_no_recipes_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no recipe '23m'") as error:
        find_recipe("23m")
    assert not any(f" {path.stem}" in f"{error.value.remedy}," for path in PRESETS)
