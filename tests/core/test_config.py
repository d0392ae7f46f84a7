from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from fledge.core import config
from fledge.core.config import ByKind, operation, settings
from fledge.core.errors import ConfigError


@settings
class Files:
    kind: Literal["files"] = "files"
    path: str
    expect_files: int | None = None


@settings
class Embedded:
    kind: Literal["embedded"] = "embedded"
    name: str = "docs"


@settings
class Optimizer:
    learning_rate: float = 3e-4
    """Peak learning rate."""

    steps: int = 10
    nesterov: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, but is {self.steps}")


@settings
class Recipe:
    name: str = "run"
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    sources: tuple[Annotated[Files | Embedded, ByKind()], ...] = ()
    source: Annotated[Files | Embedded, ByKind()] | None = None
    mixture: dict[str, float] | None = None
    workers: int = operation(1)
    folders: tuple[str, ...] = operation(default_factory=tuple)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(text: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def load(path: Path, *overrides: str) -> Recipe:
    return config.parse(Recipe, config.read(path, overrides))


def refused(path: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, *overrides)
    assert "\n" not in caught.value.problem
    assert "\n" not in caught.value.remedy
    return caught.value


# ---- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5E+2", -150.0),
        ("12", 12),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000_000", 1_000_000),
        ("1_000.5", 1000.5),
        ("1__0", "1__0"),
        ("1_", "1_"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-08-01", "2026-08-01"),
        ("12:30:45", "12:30:45"),
        ("'12'", "12"),
        ('"true"', "true"),
        ('""', ""),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        (".inf", ".inf"),
    ],
)
def test_scalars_follow_yaml_1_2(write: Any, text: str, value: Any) -> None:
    found = config.read(write(f"x: {text}\n")).values["x"]
    assert found == value
    assert type(found) is type(value)


def test_block_text_keeps_its_lines(write: Any) -> None:
    assert config.read(write("x: |\n  12\n  no\n")).values["x"] == "12\nno\n"


def test_a_number_of_too_many_digits_is_refused_not_a_crash(write: Any) -> None:
    assert "5000 digits" in refused(write(f"x: {'9' * 5000}\n")).problem
    assert "not valid JSON" in refused(write(f'{{"x": {"9" * 5000}}}', "a.json")).problem


# ---- files that are none


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("just words\n", "holds a str"),
        ("a:\n\t- b\n", "not valid YAML at line 2"),
        ("a: [1, 2\n", "not valid YAML at line 2"),
        ("a: @b\n", "not valid YAML at line 1"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: 1\na: 2\n", "recipe.yaml:2: the key 'a' is given twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "recipe.yaml:4: the key 'b' is given twice"),
        ("a: !!str 5\n", "recipe.yaml:1: the tag !!str is refused"),
        ("a: &x !!str 5\n", "the tag !!str is refused"),
        ("a: !!python/object/apply:os.system ['true']\n", "the tag !!python/object/apply:os.system is refused"),
        ("a: !local {b: 1}\n", "the tag !local is refused"),
        ("base: &b {x: 1}\na:\n  <<: *b\n", "recipe.yaml:3: only plain words can be keys"),
        ("? [a, b]\n: 1\n", "only plain words can be keys"),
        ("a: *nobody\n", "not valid YAML"),
        ("a: &a [*a]\n", "nested too deep"),
        ("a: " + "[" * 1500 + "]" * 1500, "nested too deep"),
        ("a: \x00\n", "not valid YAML"),
        ("extends: 5\n", "extends must be a file name"),
        ("extends: [a.yaml, 5]\n", "extends must be a file name"),
    ],
)
def test_what_is_no_recipe_is_refused(write: Any, text: str, words: str) -> None:
    assert words in refused(write(text)).problem


def test_nests_of_aliases_are_refused(write: Any) -> None:
    nest = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
    )
    assert "expands to more than 100,000 values" in refused(write(nest)).problem
    many = "a: &a 1\nb: [" + ",".join(["*a"] * 101) + "]\n"
    assert "more than 100 aliases" in refused(write(many)).problem
    few = "name: &n x\nfolders: [" + ",".join(["*n"] * 100) + "]\n"
    assert load(write(few)).folders == ("x",) * 100


def test_files_that_cannot_be_recipes(write: Any, tmp_path: Path) -> None:
    assert "is not UTF-8 text" in refused(write(b"a: \xff\xfe\n")).problem
    assert "more than a recipe can be" in refused(write(b"#" * (1 << 18) + b"#\n")).problem
    assert "is a folder" in refused(tmp_path).problem
    assert "there is no recipe file" in refused(tmp_path / "absent.yaml").problem
    write("name: x\n", "quickstart.yaml")
    assert f"did you mean {tmp_path / 'quickstart.yaml'}?" in refused(tmp_path / "quikstart.yaml").problem


def test_a_byte_order_mark_is_no_part_of_the_first_key(write: Any) -> None:
    assert load(write("\ufeffname: x\n")).name == "x"
    assert load(write('\ufeff{"name": "x"}', "a.json")).name == "x"


def test_json_is_read_as_strictly(write: Any) -> None:
    assert load(write('{"optimizer": {"learning_rate": 0.1}}', "a.json")).optimizer.learning_rate == 0.1
    assert "the key 'a' is given twice" in refused(write('{"a": 1, "a": 2}', "b.json")).problem
    assert "line 1 column 7" in refused(write('{"a": tru}', "c.json")).problem
    assert "NaN is no number" in refused(write('{"a": NaN}', "d.json")).problem
    assert "not valid JSON" in refused(write("[" * 100_000, "e.json")).problem


# ---- extends, merging and origins


def test_files_merge_and_every_leaf_knows_where_it_was_set(write: Any, tmp_path: Path) -> None:
    write("name: base\noptimizer:\n  steps: 1\n  learning_rate: 1e-3\nfolders: [a, b]\n", "base.yaml")
    write("optimizer: {steps: 2}\n", "other.yaml")
    path = write("extends: [base.yaml, other.yaml]\nfolders: [c]\noptimizer:\n  nesterov: false\n")
    tree = config.read(path, ["optimizer.learning_rate=5e-4"])
    recipe = config.parse(Recipe, tree)
    assert recipe.optimizer == Optimizer(steps=2, learning_rate=5e-4, nesterov=False)
    assert recipe.folders == ("c",)
    origins = {name: origin for name, _, origin in config.leaves(Recipe, recipe, tree)}
    assert origins["name"] == f"{tmp_path / 'base.yaml'}:1"
    assert origins["optimizer.steps"] == f"{tmp_path / 'other.yaml'}:1"
    assert origins["optimizer.nesterov"] == f"{path}:4"
    assert origins["optimizer.learning_rate"] == "override optimizer.learning_rate=5e-4"
    assert origins["folders.0"] == f"{path}:2"
    assert "folders.1" not in origins
    assert origins["workers"] == "default"
    assert tree.origin(("optimizer",)) != "default"


def test_a_changed_kind_drops_what_was_inherited(write: Any) -> None:
    write("source: {kind: files, path: a, expect_files: 3}\n", "base.yaml")
    same = write("extends: base.yaml\nsource: {path: b}\n", "same.yaml")
    other = write("extends: base.yaml\nsource: {kind: embedded}\n", "other.yaml")
    assert load(same).source == Files(path="b", expect_files=3)
    assert load(other).source == Embedded()
    assert load(same, "source.kind=embedded").source == Embedded()
    assert load(same, "source.kind=files").source == Files(path="b", expect_files=3)
    tree = config.read(other)
    assert tree.origin(("source", "path")) == "default"


def test_a_file_changes_items_of_an_inherited_list_by_their_place(write: Any) -> None:
    base = write("sources:\n  - {kind: files, path: a, expect_files: 3}\n  - {kind: embedded}\n", "base.yaml")
    own = write("extends: base.yaml\nsources:\n  0: {path: b}\n", "own.yaml")
    assert load(own).sources == (Files(path="b", expect_files=3), Embedded())
    origins = config.read(own).origins
    assert origins["sources", "0", "path"] == f"{own}:3" and origins["sources", "0", "expect_files"] == f"{base}:2"
    assert load(write("extends: base.yaml\nsources:\n  1: {kind: files, path: c}\n")).sources[1] == Files(path="c")
    assert "sources" in refused(write("extends: base.yaml\nsources:\n  2: {path: c}\n")).problem


def test_extends_must_not_be_a_circle_nor_endless(write: Any) -> None:
    write("extends: b.yaml\n", "a.yaml")
    assert "extends itself" in refused(write("extends: a.yaml\n", "b.yaml")).problem
    for level in range(17):
        write(f"extends: deep{level + 1}.yaml\n", f"deep{level}.yaml")
    path = write("name: x\n", "deep17.yaml")
    assert "nested deeper than 16" in refused(path.with_name("deep0.yaml")).problem
    assert load(path.with_name("deep2.yaml")).name == "x"


def test_two_parents_may_share_one(write: Any) -> None:
    write("name: root\n", "root.yaml")
    write("extends: root.yaml\n", "left.yaml")
    write("extends: root.yaml\n", "right.yaml")
    assert load(write("extends: [left.yaml, right.yaml]\n")).name == "root"


# ---- overrides


def test_overrides_reach_into_lists_and_make_what_is_absent(write: Any) -> None:
    path = write("sources:\n  - {kind: files, path: a}\n  - {kind: embedded}\n")
    recipe = load(path, "sources.0.path=b c", "sources.1.name=x", "mixture.docs=0.5", "optimizer.steps=7", "workers=3")
    assert recipe.sources == (Files(path="b c"), Embedded(name="x"))
    assert recipe.mixture == {"docs": 0.5}
    assert (recipe.optimizer.steps, recipe.workers) == (7, 3)
    assert load(path, "sources.0.kind=embedded").sources[0] == Embedded()
    assert load(path, "sources=[{kind: embedded}]").sources == (Embedded(),)
    assert load(path, "name=a=b").name == "a=b"


def test_an_override_with_keys_merges_as_a_file_would(write: Any) -> None:
    path = write("optimizer: {steps: 3, nesterov: false}\nsource: {kind: files, path: a}\n")
    assert load(path, "optimizer={steps: 4}").optimizer == Optimizer(steps=4, nesterov=False)
    assert load(path, "source={kind: embedded}").source == Embedded()


def test_a_later_override_wins(write: Any) -> None:
    assert load(write("name: a\n"), "name=b", "name=c").name == "c"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.steps", "is not an override"),
        ("=3", "is not an override"),
        ("sources.2.path=x", "is a list of 1, '2' is none of its places"),
        ("sources.one.path=x", "is a list of 1, 'one' is none of its places"),
        ("sources.-1.path=x", "is a list of 1, '-1' is none of its places"),
        ("name.first=x", "name is 'run1' and has no keys"),
        ("folders.0.deeper=x", "folders.0 is 'f' and has no keys"),
    ],
)
def test_overrides_that_cannot_be(write: Any, override: str, words: str) -> None:
    path = write("name: run1\nsources: [{kind: files, path: a}]\nfolders: [f]\n")
    assert words in refused(path, override).problem


@pytest.mark.parametrize("text", ["*.txt", "[x].txt", "a b #1.txt", "a: b", "[a"])
def test_an_override_may_be_any_plain_text(write: Any, text: str) -> None:
    tree = config.read(write("name: run1\n"), [f"name={text}"])
    assert tree.values["name"] == text


# ---- validation


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("optimizer: {step: 3}", "unknown key optimizer.step (", "did you mean optimizer.steps?"),
        ("optimizr: {steps: 3}", "unknown key optimizr (", "did you mean optimizer?"),
        ("zzz: 3", "unknown key zzz (", "known keys here: folders, mixture, name, optimizer"),
        ("source: {kind: files, path: a, expect: 3}", "unknown key source.expect (", "did you mean source.expect_files?"),
        ("sources: [{kind: embedded, nam: a}]", "unknown key sources.0.nam (", "did you mean sources.0.name?"),
        ("sources: [{kind: files}]", "sources.0.path is required and missing", "sources.0.path=VALUE"),
        ("sources: [{kind: file, path: a}]", "sources.0.kind is 'file', which is none of: embedded, files", "sources.0.kind=files?"),
        ("sources: [{path: a}]", "sources.0.kind is required and missing", "give one of: embedded, files"),
        ("optimizer: {steps: '12'}", "optimizer.steps: Input should be a valid integer, not '12' (", "change optimizer.steps"),
        ("optimizer: {steps: true}", "optimizer.steps: Input should be a valid integer, not True", "change"),
        ("optimizer: {steps: 1.0}", "optimizer.steps: Input should be a valid integer, not 1.0", "change"),
        ("optimizer: {nesterov: 1}", "optimizer.nesterov: Input should be a valid boolean, not 1", "change"),
        ("optimizer: {learning_rate: fast}", "optimizer.learning_rate: Input should be a valid number, not 'fast'", "change"),
        ("optimizer: {learning_rate: 1e999}", "optimizer.learning_rate: Input should be a finite number, not inf", "change"),
        ("optimizer: {steps: -1}", "optimizer.steps must not be negative, but is -1 (", "change optimizer.steps"),
        ("name: 12", "name: Input should be a valid string, not 12", "change name"),
        ("name: null", "name: Input should be a valid string, not None", "change name"),
        ("sources: {a: 1}", "sources: Input should be", "change sources"),
        ("mixture: {docs: x}", "mixture.docs: Input should be a valid number, not 'x'", "change mixture.docs"),
    ],
)
def test_errors_name_key_value_place_and_what_to_do(write: Any, text: str, problem: str, remedy: str) -> None:
    path = write(text + "\n")
    error = refused(path)
    assert problem in error.problem
    assert remedy in error.remedy
    if "required and missing" not in problem or "kind" in problem:
        assert f"({path}:1)" in error.problem


def test_an_error_counts_the_others(write: Any) -> None:
    assert refused(write("name: 1\nworkers: x\n")).problem.endswith("(and 1 more)")


def test_an_override_is_named_as_the_place_of_its_error(write: Any) -> None:
    assert "(override optimizer.steps=x)" in refused(write("name: a\n"), "optimizer.steps=x").problem


@pytest.mark.parametrize("override", ["workers=SECRET", "name.a=1", "=SECRET", "optimizer=SECRET"])
def test_no_secret_of_an_address_is_in_an_error(write: Any, override: str) -> None:
    secret = "https://user:word@host/a?key=1"
    problem = refused(write(f"name: '{secret}'\n"), override.replace("SECRET", secret)).problem
    assert "https://host/a" in problem
    assert not any(word in problem for word in ("user", "word", "key=1"))


def test_an_integer_is_a_float_but_not_the_other_way(write: Any) -> None:
    rate = load(write("optimizer: {learning_rate: 1}\n")).optimizer.learning_rate
    assert rate == 1.0
    assert isinstance(rate, float)


# ---- settings trees


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Optimizer().steps = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Optimizer(3)  # type: ignore[misc]


def test_identity_leaves_operation_fields_out_and_plain_keeps_them() -> None:
    recipe = Recipe(sources=(Files(path="a"),), workers=8, mixture={"a": 0.5})
    kept = config.identity(recipe)
    assert "workers" not in kept
    assert "folders" not in kept
    assert kept["sources"] == [{"kind": "files", "path": "a", "expect_files": None}]
    assert kept == config.identity(dataclasses.replace(recipe, workers=1))
    assert kept != config.identity(dataclasses.replace(recipe, name="other"))
    assert json.loads(json.dumps(kept)) == kept
    assert config.plain(recipe)["workers"] == 8
    assert config.identity({"path": Path("a/b"), 1: (2, 3)}) == {"path": "a/b", "1": [2, 3]}


def test_a_plain_tree_parses_to_the_same_settings(write: Any) -> None:
    recipe = Recipe(sources=(Files(path="a"), Embedded()), optimizer=Optimizer(steps=4), mixture={"a": 1.0})
    assert load(write(json.dumps(config.plain(recipe)), "full.json")) == recipe


def test_differences_name_every_changed_leaf() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": [1], "f": [{"g": 1}, {"g": 2}]}
    after = {"a": {"b": 1, "c": 3}, "d": [1, 2], "e": 5, "f": [{"g": 1}, {"g": 3}]}
    assert list(config.differences(before, after)) == [("a.c", 2, 3), ("d", [1], [1, 2]), ("f.1.g", 2, 3), ("e", None, 5)]
    assert list(config.differences(before, before)) == []
