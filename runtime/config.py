"""Configuration: one TOML file into one frozen struct.

Rules: an unknown key is an error; every limit is a field with a default, a range and a unit
(`Annotated[int, msgspec.Meta(ge=…, le=…, extra={"unit": "bytes"})]`); a fault is one line naming the key and
what is allowed, exit code 2. Secrets are given by file path, never as values. No global settings object.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from runtime.errors import ConfigError
from runtime.logs import REDACTED, is_secret_name

T = TypeVar("T", bound=msgspec.Struct)

CONFIG_BYTES_MAX = 1024 * 1024
VALUE_CHARS_MAX = 80
_PLACE = re.compile(r" - at `\$([^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$")
_MISSING = re.compile(r"Object missing required field `(.*)`$")


def load_config(path: Path | str, struct: type[T]) -> T:
    """Read a TOML file (≤ 1 MiB) into `struct`, which should forbid unknown fields.

    Raises:
        ConfigError: unreadable, not TOML, unknown or missing key, wrong type, out of range; one line.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: expected a readable configuration file: {exc.strerror}") from exc
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: expected at most {CONFIG_BYTES_MAX} bytes")
    return parse_config(data, struct, source=str(path))


def parse_config(data: bytes, struct: type[T], *, source: str) -> T:
    """Decode TOML bytes into `struct`; `source` begins every message. Raises as load_config does."""
    try:
        tree = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{source}: expected TOML: {exc}") from exc
    try:
        return msgspec.convert(tree, struct, strict=True)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{source}: {_explain(str(exc), tree, struct)}") from exc


def check_config(path: Path | str, struct: type[T]) -> int:
    """Do `--check-config`: print the redacted configuration and return 0, or the one-line fault and return 2."""
    try:
        config = load_config(path, struct)
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\n")
        return ConfigError.exit_code
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(describe(config))).decode() + "\n")
    return 0


def describe(config: msgspec.Struct) -> dict[str, Any]:
    """Return the configuration as plain data for the log, values under secret-like names replaced."""
    tree = msgspec.to_builtins(config, enc_hook=str)
    redacted = _redact(tree)
    assert isinstance(redacted, dict)  # noqa: S101 - a struct becomes a dict
    return redacted


def _redact(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: REDACTED if is_secret_name(str(key)) and item else _redact(item)
            for key, item in value.items()
        }
    return [_redact(item) for item in value] if isinstance(value, list) else value


def _explain(message: str, tree: dict[str, Any], struct: type[msgspec.Struct]) -> str:
    """Turn msgspec's message into `key: what is expected, what came`."""
    place = _PLACE.search(message)
    message = _PLACE.sub("", message)
    key = place[1].lstrip(".") if place else ""
    unknown, missing = _UNKNOWN.match(message), _MISSING.match(message)
    if unknown or missing:
        name = f"{key}.{(unknown or missing)[1]}" if key else (unknown or missing)[1]  # type: ignore[index]
        table = _type_at(msgspec.inspect.type_info(struct), key)
        known = ", ".join(field.encode_name for field in getattr(table, "fields", ()))
        return (
            f"{name}: unknown key, expected one of {known}" if unknown else f"{name}: required key is missing"
        )
    described = _describe_type(_type_at(msgspec.inspect.type_info(struct), key))
    came = _value_at(tree, key)
    shown = REDACTED if is_secret_name(key.rsplit(".", 1)[-1]) else came
    return f"{key}: expected {described}, got {shown}" if described else f"{key}: {message}, got {shown}"


_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")


def _type_at(node: Any, key: str) -> Any:
    for match in _STEP.finditer(key):
        node = _step_into(_plain(node), match[1], index=match[2])
    return node


def _step_into(node: Any, name: str | None, *, index: str | None) -> Any:
    if index is not None:
        return getattr(
            node, "value_type" if index == "..." and hasattr(node, "value_type") else "item_type", None
        )
    for field in getattr(node, "fields", ()):
        if field.encode_name == name:
            return field.type
    return None


def _plain(node: Any) -> Any:
    """Look through metadata and through `X | None`."""
    while True:
        if isinstance(node, msgspec.inspect.Metadata):
            node = node.type
        elif isinstance(node, msgspec.inspect.UnionType):
            others = [kind for kind in node.types if not isinstance(kind, msgspec.inspect.NoneType)]
            if len(others) != 1:
                return node
            node = others[0]
        else:
            return node


def _value_at(tree: Any, key: str) -> str:
    value = tree
    for match in _STEP.finditer(key):
        try:
            value = value[int(match[2])] if match[2] is not None else value[match[1]]
        except (KeyError, IndexError, TypeError, ValueError):
            return "another value"
    return repr(value)[:VALUE_CHARS_MAX]


def _describe_type(node: Any) -> str:
    unit = _unit(node)
    kind = _plain(node)
    describers: list[tuple[type, Callable[[Any], str]]] = [
        (msgspec.inspect.IntType, lambda t: f"an integer{_bounds(t)}"),
        (msgspec.inspect.FloatType, lambda t: f"a number{_bounds(t)}"),
        (msgspec.inspect.BoolType, lambda _t: "true or false"),
        (msgspec.inspect.StrType, _describe_text),
        (msgspec.inspect.LiteralType, lambda t: "one of " + ", ".join(map(repr, t.values))),
        (msgspec.inspect.EnumType, lambda t: "one of " + ", ".join(repr(member.value) for member in t.cls)),
        (msgspec.inspect.ListType, lambda t: f"a list{_lengths(t, 'items')}"),
        (msgspec.inspect.VarTupleType, lambda t: f"a list{_lengths(t, 'items')}"),
        (msgspec.inspect.DictType, lambda _t: "a table"),
        (msgspec.inspect.StructType, lambda _t: "a table"),
    ]
    for known, describer in describers:
        if isinstance(kind, known):
            return describer(kind) + (f" ({unit})" if unit else "")
    return ""


def _unit(node: Any) -> str:
    while isinstance(node, msgspec.inspect.Metadata):
        if node.extra and "unit" in node.extra:
            return str(node.extra["unit"])
        node = node.type
    if isinstance(node, msgspec.inspect.UnionType):
        return next((unit for unit in map(_unit, node.types) if unit), "")
    return ""


def _bounds(kind: Any) -> str:
    parts = [
        f"{word} {value}"
        for word, value in (("≥", kind.ge), (">", kind.gt), ("≤", kind.le), ("<", kind.lt))
        if value is not None
    ]
    if kind.multiple_of is not None:
        parts.append(f"a multiple of {kind.multiple_of}")
    return " " + ", ".join(parts) if parts else ""


def _lengths(kind: Any, what: str) -> str:
    low, high = kind.min_length, kind.max_length
    if low is None and high is None:
        return ""
    return f" of {low or 0} to {high} {what}" if high is not None else f" of at least {low} {what}"


def _describe_text(kind: Any) -> str:
    pattern = f" matching {kind.pattern}" if kind.pattern else ""
    return f"text{_lengths(kind, 'characters')}{pattern}"
