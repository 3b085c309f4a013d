"""Validated settings: one frozen model per configuration, unknown keys and wrong values refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gpenlib.run import nearest, resolve_path


class SettingsError(ValueError):
    """Settings that cannot be used; the message names each key, its value and what is allowed."""


class Settings(BaseModel):
    """Base of every configuration: frozen, no unknown keys, errors in plain words."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "settings") -> Self:
        """Build the settings from a mapping.

        Numbers may arrive as strings (YAML reads ``1e-3`` as one, papermill passes them on).

        Raises
        ------
        SettingsError
            Naming every key that is unknown (with the nearest known names) or has a wrong value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise SettingsError(f"{source}: {_explain(error, cls)}") from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Build the settings from a YAML file, with dotted overrides such as ``{"backend.dtype": "int8"}``.

        Raises
        ------
        SettingsError
            If the file is not a YAML mapping, or as :meth:`parse`.
        """
        path = resolve_path(path)
        values = read_yaml(path)
        for dotted, value in (overrides or {}).items():
            set_dotted(values, dotted, value)
        return cls.parse(values, source=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises
    ------
    SettingsError
        If the file is absent, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise SettingsError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML ({error})") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected a mapping of keys to values")
    return content


def set_dotted(values: dict[str, Any], dotted: str, value: object) -> None:
    """Set ``values["a"]["b"]`` for the key ``"a.b"``, creating mappings on the way."""
    *parents, last = dotted.split(".")
    for name in parents:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{dotted}: {name} is not a mapping")
        values = inner
    values[last] = value


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Turn command-line words ``key=value`` into overrides; values are read as YAML."""
    overrides = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise SettingsError(f"{word!r}: expected key=value")
        overrides[key] = yaml.safe_load(text) if text else None
    return overrides


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line per problem."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            close = nearest(str(problem["loc"][-1]), known, count=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            lines.append(f"unknown key {where!r}{hint}; allowed: {', '.join(known)}")
        elif problem["type"] == "missing":
            lines.append(f"missing key {where!r}")
        else:
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            if problem["type"] == "literal_error":
                allowed = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
                close = nearest(str(problem["input"]), allowed, count=1)
                message += f" (did you mean {close[0]!r}?)" if close else ""
            prefix = "" if problem["type"] == "value_error" else "should be "
            lines.append(f"{where}={problem['input']!r}: {prefix}{message}")
    return "; ".join(lines)


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the keys allowed at a location inside nested models."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            candidates = [current.model_fields[str(part)].annotation]
            candidates += list(getattr(candidates[0], "__args__", ()))
            nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
            current = nested[0] if nested else None
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []
