"""A settings tree as the fields of a form: for each value its name, help, kind and choices, from the same classes that check a recipe.

What a person types into a field is the right side of an override `a.b=VALUE`, so a form knows nothing that the command line does not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

from fledge.core.config import Tree, override_value, plain
from fledge.core.explain import KeyPath

FieldKind = Literal["switch", "choice", "integer", "number", "text", "data"]


@dataclass(frozen=True)
class FormField:
    """One value."""

    name: str
    """Dotted, as in an override."""
    kind: FieldKind
    help: str
    """With the unit."""
    value: str
    """As it is typed."""
    default: str | None
    """The same of what holds where nothing is set; None where something must be."""
    choices: tuple[str, ...]
    optional: bool
    """Whether it may be `null`."""
    origin: str
    """The file and line, the override, or "default"."""
    decides_result: bool
    """Whether it is part of what is asked for, rather than of how it is made."""


def form_fields(settings: Any, tree: Tree) -> list[FormField]:
    """The fields of a parsed tree, in the order of its classes."""
    return list(_Form(_schema(cast(Hashable, type(settings))), tree).of_class(settings, (), (), decides=True))


def written_as(value: Any) -> str:
    """A plain value as the right side of an override that gives it back."""
    if isinstance(value, str) and "\n" not in value and override_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


@cache
def _schema(cls: Hashable) -> Mapping[str, Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cast("type[Any]", cls)).json_schema()


class _Form:
    """Walks a tree of settings beside the JSON schema of its classes."""

    def __init__(self, schema: Mapping[str, Any], tree: Tree) -> None:
        self._schema, self._tree = schema, tree
        self._known: Mapping[str, Any] = schema.get("$defs", {})

    def of_class(self, settings: Any, path: KeyPath, kinds: Sequence[str], decides: bool) -> Iterator[FormField]:
        """`kinds`: which other classes may stand in its place."""
        properties = self._known.get(type(settings).__name__, self._schema)["properties"]
        for field in dataclasses.fields(settings):
            node, value = properties[field.name], getattr(settings, field.name)
            inner = decides and not field.metadata.get("operation")
            if field.name == "kind" and kinds:
                node = {**node, "const": None, "enum": kinds}
            yield from self._of_value(value, node, (*path, field.name), inner)

    def _of_value(self, value: Any, node: Mapping[str, Any], path: KeyPath, decides: bool) -> Iterator[FormField]:
        if dataclasses.is_dataclass(value):
            yield from self.of_class(value, path, self._kinds(node), decides)
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for number, item in enumerate(value):
                yield from self._of_value(item, node.get("items", {}), (*path, str(number)), decides)
        else:
            yield self._leaf(value, node, path, decides)

    def _leaf(self, value: Any, node: Mapping[str, Any], path: KeyPath, decides: bool) -> FormField:
        alternatives = [one for one in self._alternatives(node) if one.get("type") != "null"]
        choices = [choice for one in alternatives for choice in _choices(one)]
        return FormField(
            name=".".join(path),
            kind="choice" if choices and all(map(_choices, alternatives)) else _kind_of({str(one.get("type")) for one in alternatives}),
            help=str(node.get("description", "")),
            value=written_as(plain(value)),
            default=written_as(node["default"]) if "default" in node else None,
            choices=tuple(map(written_as, choices)),
            optional=any(one.get("type") == "null" for one in self._alternatives(node)),
            origin=self._tree.origin(path),
            decides_result=decides,
        )

    def _alternatives(self, node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        if "$ref" in node:
            yield from self._alternatives(self._known[str(node["$ref"]).rpartition("/")[2]])
        elif "anyOf" in node or "oneOf" in node:
            for one in (*node.get("anyOf", ()), *node.get("oneOf", ())):
                yield from self._alternatives(one)
        else:
            yield node

    def _kinds(self, node: Mapping[str, Any]) -> list[str]:
        inner = [node, *node.get("anyOf", ())]
        return [kind for one in inner for kind in one.get("discriminator", {}).get("mapping", ())]


def _choices(node: Mapping[str, Any]) -> list[Any]:
    return [node["const"]] if node.get("const") is not None else list(node.get("enum", ()))


def _kind_of(types: set[str]) -> FieldKind:
    """What a field takes whose value may be of these JSON types."""
    single: dict[str, FieldKind] = {"boolean": "switch", "integer": "integer", "number": "number", "string": "text"}
    if len(types) == 1:
        return single.get(next(iter(types)), "data")
    if types == {"integer", "number"}:
        return "number"
    return "text" if types <= single.keys() else "data"
