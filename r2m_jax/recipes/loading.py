"""Reading a recipe: a YAML file or one that ships with the package, on top of another perhaps, with replacements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from r2m_jax.data.catalogue import nearest
from r2m_jax.errors import InputError

Recipe = TypeVar("Recipe", bound=BaseModel)

EXTENDS = "extends"
"""Key that names the recipe a file starts from, one that ships or a file beside it."""


def shipped(job: str) -> list[str]:
    """Names of the recipes that come with the package for ``train``, ``merge`` …."""
    folder = resources.files(__package__) / job
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(
    kind: type[Recipe],
    job: str,
    source: str | Path | None,
    replacements: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """A checked recipe.

    Args:
        kind: what it is checked against.
        job: whose shipped recipes ``source`` may name.
        source: a YAML file, or the name of a recipe that ships; None starts from the defaults.
        replacements: ``key=value``, dots in the key lead into sections, values are YAML
            (``optimizer.learning_rate=1e-5``, ``data.methods=[uniface]``); the last of equals counts.
        settings: put between the file and the replacements.

    Raises:
        InputError: the recipe does not exist or is no YAML, or a key is unknown or a value does not fit; key, value
            and the nearest known key are named.
    """
    content: dict[str, Any] = _read(job, source, ()) if source is not None else {}
    content = _merged(content, settings or {})
    for replacement in replacements:
        key, equals, value = replacement.partition("=")
        if not equals or not key:
            raise InputError(f"{replacement!r} is no key=value, e.g. optimizer.learning_rate=1e-5.")
        nested: Any = _number(_parse(value, replacement))
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        content = _merged(content, nested)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(_in_words(error, kind)) from None


def _read(job: str, source: str | Path, seen: tuple[str, ...]) -> dict[str, Any]:
    name = str(source)
    if name in seen:
        raise InputError(f"the recipes {' and '.join(seen)} extend each other.")
    ships = resources.files(__package__) / job / f"{name}.yaml"
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the recipe {path} cannot be read ({getattr(error, 'strerror', error)}).") from None
    elif ships.is_file():
        text = ships.read_text(encoding="utf-8")
    else:
        raise InputError(
            f"there is no recipe {name!r}; give a .yaml file or a shipped one: {nearest(name, shipped(job))}"
        )
    content = _parse(text, name)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise InputError(f"the recipe {name} is no mapping of keys to values.")
    below = content.pop(EXTENDS, None)
    if below is None:
        return _numbers(content)
    if not isinstance(below, str):
        raise InputError(f"the recipe {name}: extends is {below!r}; give the name of one recipe.")
    if below.endswith((".yaml", ".yml")):
        below = str(path.parent / below)
    return _merged(_read(job, below, (*seen, name)), _numbers(content))


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is no valid YAML ({str(error).splitlines()[0]}).") from None


def _number(value: Any) -> Any:
    """YAML 1.1 takes ``1e-5`` for text, which nobody means."""
    if isinstance(value, str):
        try:
            return float(value) if set(value) <= set("0123456789.eE+-") and any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return _numbers(value) if isinstance(value, dict) else value


def _numbers(content: dict[str, Any]) -> dict[str, Any]:
    return {key: _number(value) for key, value in content.items()}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``; sections are merged, everything else is replaced."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return out


def _in_words(error: ValidationError, kind: type[BaseModel]) -> str:
    # An unknown key first: it is often the misspelt one that is reported missing.
    unknown = ("extra_forbidden", "unexpected_keyword_argument")  # of a model, of a dataclass
    first = min(error.errors(), key=lambda found: found["type"] not in unknown)
    where = [str(part) for part in first["loc"]]
    if first["type"] in unknown:
        section = _section(kind, where[:-1])
        place = f"the section {'.'.join(where[:-1])} of the recipe" if where[:-1] else "the recipe"
        return f"{place} has no key {where[-1]!r}; {nearest(where[-1], section)}"
    # Where a value may be of several kinds, pydantic adds the kind it tried.
    key = ".".join(part for part in where if part.isidentifier())
    if first["type"] == "missing":
        return f"the recipe needs {key}; add {key}=…"
    message = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if not key or isinstance(first["input"], dict):
        return f"{key or 'the recipe'}: {message}."
    return f"{key}={first['input']!r} does not fit: {message[:1].lower()}{message[1:]}."


def _section(kind: type[BaseModel], path: Sequence[str]) -> Iterable[str]:
    """The keys of a section."""
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
        inner = [option for option in options if isinstance(option, type)]
        for option in inner:
            if is_dataclass(option):
                return [field.name for field in fields(option)]
        models = [option for option in inner if issubclass(option, BaseModel)]
        if not models:
            break
        kind = models[0]
    return kind.model_fields
