"""The only parser: YAML or JSON files, `extends` and dotted overrides become one frozen, typed tree whose every value knows its origin.

    defaults  <-  the files named by `extends`, left to right  <-  the file  <-  overrides `a.b.c=value`

Merging happens on plain trees (mappings merge, lists and scalars replace, a mapping of places such as `0:` changes those of a list,
a changed `kind` drops what was inherited), so the origin of each leaf is known. Then pydantic validates the merged tree, strictly:
"12" is not an integer and true is not 1. The tree is never changed afterwards; what follows from it is a function of it.

YAML here is the core schema of YAML 1.2: `3e-4` is a float and `no` a string (both are not, in PyYAML's YAML 1.1). Duplicate
keys, tags and nests of aliases are refused with their line. After lingua's `args.py` and torchtitan's frozen option list.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

from fledge.core.errors import ConfigError
from fledge.core.explain import KeyPath, explain, shorten
from fledge.core.wording import without_secrets

T = TypeVar("T")

_MAXIMUM_FILE_BYTES = 1 << 18
_MAXIMUM_ALIASES = 100
_MAXIMUM_VALUES = 100_000
_MAXIMUM_EXTENDS_DEPTH = 16
_OPERATION = {"operation": True}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass that pydantic validates: unknown keys and NaN are refused.

    A string below a field is its help text and names the unit. Checks of one class go into `__post_init__` as ValueError.
    """
    frozen: type[T] = dataclass(frozen=True, kw_only=True)(cls)
    frozen.__pydantic_config__ = {  # type: ignore[attr-defined]
        "extra": "forbid",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }
    return frozen


def operation(default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING) -> Any:
    """A field that changes how a result is made, not what it is (cadence, device, sinks): it stays out of the artifact's key."""
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=_OPERATION)
    return dataclasses.field(default=default, metadata=_OPERATION)


class ByKind:
    """Marks a union of settings that their `kind` tells apart: `Annotated[A | B, ByKind()]`; errors then speak of that kind only."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Discriminator

        return Discriminator("kind").__get_pydantic_core_schema__(source, handler)


def identity(value: Any) -> Any:
    """The part of a settings tree that decides the result, as plain JSON: every `operation` field left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = (field for field in dataclasses.fields(value) if not field.metadata.get("operation"))
        return {field.name: identity(getattr(value, field.name)) for field in kept}
    if isinstance(value, dict):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def plain(value: Any) -> Any:
    """A whole settings tree as plain JSON."""
    return json.loads(_adapter(type(value)).dump_json(value))


def differences(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf at which two plain trees differ: (dotted path, before, after), None where absent; lists by item, if equally long."""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        before, after = (dict(enumerate(side)) for side in (before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif before != after:
        yield prefix, before, after


@dataclass(frozen=True)
class Tree:
    """A merged recipe before validation: plain values, and for each leaf the file or override it came from."""

    values: dict[str, Any]
    origins: dict[KeyPath, str]

    def origin(self, path: KeyPath) -> str:
        """Where the value at `path`, or the first one below it, was set; "default" if nothing there was."""
        found = self.origins.get(path)
        below = (origin for leaf, origin in self.origins.items() if leaf[: len(path)] == path)
        return found if found is not None else next(below, "default")


def read(path: Path, overrides: Sequence[str] = (), find: Callable[[Path, str], Path] = Path.__truediv__) -> Tree:
    """Read a recipe file with what it extends, `find(folder of the file, name)`, and apply dotted overrides. Raises ConfigError."""
    values, origins = _read_file(path, find, chain=())
    for override in overrides:
        _apply_override(values, origins, override)
    return Tree(values, origins)


def parse(cls: type[T], tree: Tree) -> T:
    """Validate a merged tree as `cls`. Raises ConfigError naming the dotted key, the value, its origin and a suggestion."""
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_json(json.dumps(tree.values), strict=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise explain(error.errors(), _adapter(cls).json_schema(), tree.values, tree.origin) from error


def leaves(cls: type[Any], value: Any, tree: Tree) -> list[tuple[str, Any, str]]:
    """Every leaf of a parsed tree as (dotted path, value, origin)."""
    return [(".".join(path), item, tree.origin(path)) for path, item in _walk(plain(value), ())]


def _adapter(cls: type[Any]) -> Any:
    return _cached_adapter(cast(Hashable, cls))


@cache
def _cached_adapter(cls: Hashable) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cast("type[Any]", cls))


# ---- files


def _read_file(path: Path, find: Callable[[Path, str], Path], chain: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    if path.resolve() in chain:
        raise ConfigError(f"{path} extends itself", "remove the circle of `extends`")
    if len(chain) >= _MAXIMUM_EXTENDS_DEPTH:
        raise ConfigError(f"{path}: `extends` is nested deeper than {_MAXIMUM_EXTENDS_DEPTH}", "flatten the chain of files")
    own, lines = _load_text(path, _read_text(path))
    parents = own.pop("extends", [])
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends must be a file name or a list of file names, not {parents!r}", "write `extends: base.yaml`")
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for parent in parents:
        _merge(values, origins, *_read_file(find(path.parent, parent), find, (*chain, path.resolve())))
    own_origins = {leaf: f"{path}:{lines[leaf]}" if leaf in lines else str(path) for leaf, _ in _walk(own, ())}
    _merge(values, origins, own, own_origins)
    return values, origins


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a recipe file", "give the path of a .yaml or .json file")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is a pipe or a device, not a recipe file", "give the path of a .yaml or .json file")
    if not path.is_file():
        raise ConfigError(f"there is no recipe file {path}{_suggest_file(path)}", "give the path of a .yaml or .json file")
    if path.stat().st_size > _MAXIMUM_FILE_BYTES:
        raise ConfigError(f"{path} is {path.stat().st_size:,} bytes long, more than a recipe can be", "give a recipe, not a data file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})", "give a recipe, not a data file") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "mend its permissions, or give another file") from error


def _suggest_file(path: Path) -> str:
    names = [entry.name for entry in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""


def _load_text(path: Path, text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    value, lines = (_load_json(path, text), {}) if path.suffix == ".json" else _load_yaml(str(path), text)
    if value is None:
        raise ConfigError(f"{path} is empty", "write `key: value` lines; `fledge config quickstart` prints every key of a whole recipe")
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, not keys with values", "write `key: value` lines")
    return value, lines


def _load_json(path: Path, text: str) -> Any:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ConfigError(f"{path}: the key {key!r} is given twice", "keep one of the two")
            result[key] = value
        return result

    def refuse_constant(name: str) -> None:
        raise ConfigError(f"{path}: {name} is no number that a recipe can hold", "give a finite number")

    try:
        return json.loads(text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}", "mend the file at that place") from error


# ---- YAML


def _load_yaml(name: str, text: str) -> tuple[Any, dict[KeyPath, int]]:
    """The value of a YAML text in the 1.2 core schema, and the line (from 1) of every leaf."""
    import yaml

    lines: dict[KeyPath, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_tags_and_alias_nests(name, text)
        return (None if node is None else _construct(name, node, (), lines, [_MAXIMUM_VALUES])), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{name} is not valid YAML{place}: {reason}", "mend it at that place (indent with spaces)") from error
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deep", "flatten it; an alias must not stand inside its own anchor") from error


def _refuse_tags_and_alias_nests(name: str, text: str) -> None:
    import yaml

    aliases = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.TagToken):
            line = token.start_mark.line + 1
            written = text[token.start_mark.index : token.end_mark.index]
            raise ConfigError(f"{name}:{line}: the tag {written} is refused", "a recipe holds plain values only; remove the tag")
        aliases += isinstance(token, yaml.AliasToken)
    if aliases > _MAXIMUM_ALIASES:
        raise ConfigError(f"{name} uses more than {_MAXIMUM_ALIASES} aliases", "write the values out")


def _construct(name: str, node: Any, path: KeyPath, lines: dict[KeyPath, int], budget: list[int]) -> Any:
    """The plain value of a YAML node; notes the line of every leaf and takes one from `budget` for each value made."""
    import yaml

    line = node.start_mark.line + 1
    budget[0] -= 1
    if budget[0] < 0:
        raise ConfigError(f"{name} expands to more than {_MAXIMUM_VALUES:,} values", "write it without nests of aliases")
    lines[path] = line
    if isinstance(node, yaml.ScalarNode):
        return _core_scalar(f"{name}:{line}", node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_construct(name, item, (*path, str(index)), lines, budget) for index, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        if not isinstance(key, str) or key == "<<":
            raise ConfigError(f"{name}:{key_node.start_mark.line + 1}: only plain words can be keys", "write `key: value`")
        if key in result:
            raise ConfigError(f"{name}:{key_node.start_mark.line + 1}: the key {key!r} is given twice", "keep one of the two")
        result[key] = _construct(name, value_node, (*path, key), lines, budget)
    return result


_DIGITS = "[0-9](?:_?[0-9])*"
_INTEGER = re.compile(f"[-+]?{_DIGITS}")
_OTHER_BASE = re.compile("0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def _core_scalar(place: str, text: str) -> Any:
    """A plain scalar in the YAML 1.2 core schema; underscores between digits are allowed too, as in Python."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        if _OTHER_BASE.fullmatch(text):
            return int(text, 0)
        if _INTEGER.fullmatch(text):
            return int(text)
    except ValueError as error:
        raise ConfigError(f"{place}: a number of {len(text)} digits", "give a number that a setting can hold") from error
    return float(text) if _FLOAT.fullmatch(text) else text


# ---- merging


def _merge(values: dict[str, Any], origins: dict[KeyPath, str], new: dict[str, Any], new_origins: dict[KeyPath, str]) -> None:
    _merge_values(values, new, (), origins)
    origins.update(new_origins)


def _merge_values(values: dict[str, Any], new: dict[str, Any], path: KeyPath, origins: dict[KeyPath, str]) -> None:
    if "kind" in new and "kind" in values and new["kind"] != values["kind"]:
        _forget(origins, path)
        values.clear()
    for key, value in new.items():
        inherited = values.get(key)
        if isinstance(value, dict) and isinstance(inherited, dict):
            _merge_values(inherited, value, (*path, key), origins)
        elif isinstance(value, dict) and isinstance(inherited, list) and value.keys() <= set(map(str, range(len(inherited)))):
            items = {str(place): item for place, item in enumerate(inherited)}
            _merge_values(items, value, (*path, key), origins)
            values[key] = list(items.values())
        else:
            _forget(origins, (*path, key))
            values[key] = value


def _forget(origins: dict[KeyPath, str], path: KeyPath) -> None:
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]


def _apply_override(values: dict[str, Any], origins: dict[KeyPath, str], override: str) -> None:
    (dotted, equals, text), told = override.partition("="), without_secrets(override)
    if not equals or not dotted:
        raise ConfigError(f"{told!r} is not an override", "write key.subkey=value")
    value, path = override_value(text), tuple(dotted.split("."))
    target: Any = values
    for position in range(1, len(path)):
        target = _descend(target, path[:position], told)
    _place(target, path, value, origins, told)
    origins |= {leaf: f"override {told}" for leaf, _ in _walk(value, path)}


def override_value(text: str) -> Any:
    """A value in YAML, except where YAML would make something else of plain text: a comment, an alias, a mapping without braces."""
    if " #" in text:
        return text
    try:
        value, _ = _load_yaml("the override", text)
    except ConfigError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


def _descend(target: Any, path: KeyPath, override: str) -> Any:
    """The mapping or list at `path`, whose parent is `target`; an absent mapping is made."""
    if isinstance(target, list):
        below = target[_index(target, path, override)]
    else:
        if target.get(path[-1]) is None:
            target[path[-1]] = {}
        below = target[path[-1]]
    if not isinstance(below, (dict, list)):
        raise ConfigError(f"override {override!r}: {'.'.join(path)} is {shorten(below)} and has no keys", f"write {'.'.join(path)}=VALUE")
    return below


def _place(target: Any, path: KeyPath, value: Any, origins: dict[KeyPath, str], override: str) -> None:
    step: Any = _index(target, path, override) if isinstance(target, list) else path[-1]
    inherited = target[step] if isinstance(target, list) else target.get(step)
    if isinstance(value, dict) and isinstance(inherited, dict):
        _merge_values(inherited, value, path, origins)
        return
    if step == "kind" and inherited != value:
        target.clear()
        _forget(origins, path[:-1])
    _forget(origins, path)
    target[step] = value


def _index(target: list[Any], path: KeyPath, override: str) -> int:
    step = path[-1]
    if not step.isdecimal() or int(step) >= len(target):
        raise ConfigError(
            f"override {override!r}: {'.'.join(path[:-1])} is a list of {len(target)}, {step!r} is none of its places",
            f"count from 0 to {len(target) - 1}" if target else "the list is empty; give it whole",
        )
    return int(step)


def _walk(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Every leaf below a plain value; an empty mapping or list is a leaf itself."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _walk(item, (*path, str(index)))
    else:
        yield path, value
