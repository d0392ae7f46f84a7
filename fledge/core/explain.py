"""Turns what pydantic found wrong with a recipe into a sentence: the dotted key, its value, where it was set, and what to do.

Used by `config.parse` only. The known keys and kinds are read from the JSON schema of the settings, so suggestions never go stale.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from fledge.core.errors import ConfigError
from fledge.core.wording import without_secrets

KeyPath = tuple[str, ...]
"""Where a value stands: ("corpus", "sources", "0", "path")."""

_ABSENT_KEY = {"missing", "missing_argument", "missing_keyword_only_argument"}
_NO_KIND = {"union_tag_not_found", "union_tag_invalid"}


def explain(errors: Sequence[Any], schema: dict[str, Any], values: Any, origin: Callable[[KeyPath], str]) -> ConfigError:
    """The first of pydantic's errors as ours; `origin` says where the value at a path was set ("default": nowhere)."""
    first, *others = errors
    keys = _known_path(values, first["loc"])
    found = origin(keys)
    place = "" if found == "default" or not keys else f" ({found})"
    place += f" (and {len(others)} more)" if others else ""
    dotted = ".".join(keys) or "the recipe"
    if first["type"] == "unexpected_keyword_argument":
        return _unknown_key(keys, place, schema, values)
    if first["type"] in _ABSENT_KEY:
        missing = ".".join((*keys, str(first["loc"][-1])))
        return ConfigError(f"{missing} is required and missing{place}", f"add it to the recipe or give {missing}=VALUE on the command line")
    if first["type"] in _NO_KIND:
        return _unknown_kind(keys, place, schema, values)
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        # A check of a whole section begins its message with the field it is about.
        section, field = _lookup(values, keys), reason.split()[0]
        if isinstance(section, dict) and field in section:
            dotted = ".".join((*keys, field))
            return ConfigError(f"{'.'.join((*keys, reason))} ({origin((*keys, field))})", f"change {dotted}")
    value = "" if first["type"] == "value_error" else f", not {shorten(_lookup(values, keys))}"
    return ConfigError(f"{dotted}: {reason}{value}{place}", f"change {dotted}")


def shorten(value: Any) -> str:
    """A value as a person would write it, cut to one line, without what may be secret in an address."""
    text = without_secrets(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown_key(keys: KeyPath, place: str, schema: dict[str, Any], values: Any) -> ConfigError:
    known = sorted({key for node in _nodes(schema, values, keys[:-1]) for key in node.get("properties", {})})
    close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
    remedy = f"did you mean {'.'.join((*keys[:-1], close[0]))}?" if close else f"known keys here: {', '.join(known)}"
    return ConfigError(f"unknown key {'.'.join(keys)}{place}", remedy)


def _unknown_kind(keys: KeyPath, place: str, schema: dict[str, Any], values: Any) -> ConfigError:
    known = sorted({str(kind) for node in _nodes(schema, values, keys) for kind in _kinds(node)})
    dotted = ".".join((*keys, "kind"))
    given = _lookup(values, keys).get("kind")
    if given is None:
        return ConfigError(f"{dotted} is required and missing{place}", f"give one of: {', '.join(known)}")
    close = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
    return ConfigError(
        f"{dotted} is {shorten(given)}, which is none of: {', '.join(known)}{place}",
        f"did you mean {dotted}={close[0]}?" if close else "choose one of them",
    )


def _known_path(values: Any, location: tuple[int | str, ...]) -> KeyPath:
    """pydantic's location without the names of union branches, which are no keys of ours."""
    keys: list[str] = []
    current = values
    for step in location:
        is_key = isinstance(current, dict) and step in current
        is_place = isinstance(current, list) and isinstance(step, int) and step < len(current)
        if is_key or is_place:
            keys.append(str(step))
            current = current[step]
    return tuple(keys)


def _lookup(values: Any, keys: KeyPath) -> Any:
    for key in keys:
        values = values[int(key)] if isinstance(values, list) else values[key]
    return values


def _nodes(schema: dict[str, Any], values: Any, keys: KeyPath) -> list[dict[str, Any]]:
    """The schemas that the value at `keys` may have; of a union, the branches of its `kind` where that names any."""
    nodes, current = _branches(schema, schema, values), values
    for key in keys:
        current = current[int(key)] if isinstance(current, list) else current[key]
        below = [node["properties"][key] for node in nodes if key in node.get("properties", {})]
        below += [node["items"] for node in nodes if isinstance(node.get("items"), dict) and key.isdecimal()]
        below += [node["additionalProperties"] for node in nodes if isinstance(node.get("additionalProperties"), dict)]
        nodes = [leaf for node in below for leaf in _branches(schema, node, current)]
    return nodes


def _branches(schema: dict[str, Any], node: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _branches(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[1]], value)
    branches = node.get("anyOf", []) + node.get("oneOf", [])
    if not branches:
        return [node]
    resolved = [leaf for branch in branches for leaf in _branches(schema, branch, value)]
    kind = value.get("kind") if isinstance(value, dict) else None
    matching = [leaf for leaf in resolved if kind is not None and kind in _kinds(leaf)]
    return matching or resolved


def _kinds(node: dict[str, Any]) -> list[Any]:
    declared = node.get("properties", {}).get("kind", {})
    return list(declared.get("enum", [])) + ([declared["const"]] if "const" in declared else [])
