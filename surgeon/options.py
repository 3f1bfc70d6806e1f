"""Typed options: turns text, TOML values and Python keywords into the fields of one frozen dataclass.

Command line, recipe file and Python all end in `build`, so an option means the same and is refused for the same
reasons wherever it was written.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from surgeon.errors import PluginError, SurgeonError, UsageError
from surgeon.suggest import did_you_mean

T = TypeVar("T")


class Bare(str):
    """Text that was typed without quotes: ``none`` may then mean None, which ``"none"`` never does."""

    __slots__ = ()


@dataclass(frozen=True)
class Option:
    """One option of a pass, as the documentation and the error messages need it.

    Attributes:
        name: The field's name.
        hint: The resolved type.
        default: The default value, or `dataclasses.MISSING` when the option must be given.
        doc: What the class docstring says about it, one paragraph.
    """

    name: str
    hint: Any
    default: object
    doc: str

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is dataclasses.MISSING


def options_of(owner: type) -> dict[str, Option]:
    """Lists the options of a dataclass in the order of its fields.

    Raises:
        PluginError: A field has a type that options cannot have.
    """
    try:
        hints = typing.get_type_hints(owner)
    except (NameError, TypeError) as error:
        raise PluginError(f"cannot resolve its option types: {error}", where=owner.__qualname__) from error
    docs: dict[str, str] = {}
    for each in reversed(owner.__mro__):  # what a pass inherits is explained where it is declared
        docs |= _attribute_docs(each.__dict__.get("__doc__") or "")
    found = {}
    for field in dataclasses.fields(owner):
        if not field.init:
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        found[field.name] = Option(field.name, hints[field.name], default, docs.get(field.name, ""))
        type_name(hints[field.name], f"{owner.__qualname__}.{field.name}")
    return found


def build(owner: type[T], values: Mapping[str, object], *, where: str) -> T:
    """Makes an instance of a dataclass from loosely typed values.

    Args:
        owner: The dataclass whose fields are the options.
        values: Option name to text, TOML value or Python object.
        where: The pass or table the values belong to, for messages.

    Raises:
        UsageError: An option is unknown, missing, of the wrong type or out of range.
    """
    options = options_of(owner)
    for name in values:
        if name not in options:
            hint = did_you_mean(name, options, what="its options")
            raise UsageError("no such option", where=f"{where}.{name}", hint=hint)
    missing = [name for name, option in options.items() if option.required and name not in values]
    if missing:
        raise UsageError("must be given", where=f"{where}.{missing[0]}")
    typed = {name: coerce(value, options[name].hint, f"{where}.{name}") for name, value in values.items()}
    try:
        return owner(**typed)
    except SurgeonError:
        raise
    except (ValueError, TypeError) as error:  # raised by a __post_init__ that does not know our errors
        raise UsageError(str(error), where=where) from error


def coerce(value: object, hint: Any, where: str) -> Any:
    """Converts a value to a declared type, or says why it cannot be.

    Args:
        value: Text, a TOML value or a Python object.
        hint: bool, int, float, str, a Literal, ``X | None``, ``tuple[X, ...]`` or ``dict[str, X]``.
        where: The option, for messages.

    Raises:
        UsageError: The value does not fit.
    """
    if hint in _SCALARS:
        return _SCALARS[hint](value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _choice(value, arguments, where)
    if origin in (Union, types.UnionType):
        return _optional(value, arguments, where)
    if origin is tuple:
        return tuple(coerce(item, arguments[0], where) for item in _items(value, where))
    if not isinstance(value, Mapping):
        raise _mismatch(value, "a table such as {name=value}", where)
    return {_string(key, where): coerce(item, arguments[1], f"{where}.{key}") for key, item in value.items()}


def type_name(hint: Any, where: str) -> str:
    """Writes an option's type the way the documentation shows it, e.g. ``int | none`` or ``l1 | l2``.

    Raises:
        PluginError: Options cannot have this type.
    """
    if hint in _SCALARS:
        return "text" if hint is str else str(hint.__name__)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
        return f"{type_name(_inner(arguments), where)} | none"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of {type_name(arguments[0], where)}"
    if origin is not None and issubclass(dict, origin) and len(arguments) == 2 and arguments[0] is str:
        return f"table of {type_name(arguments[1], where)}"
    raise PluginError(f"options cannot have the type {hint}", where=where)


def _mismatch(value: object, expected: str, where: str) -> UsageError:
    shown = repr(str(value)) if isinstance(value, str) else repr(value)
    return UsageError(f"expected {expected}, got {shown[:60]}", where=where)


def _boolean(value: object, where: str) -> bool:
    if isinstance(value, bool):
        return value
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise _mismatch(value, "true or false", where)


def _integer(value: object, where: str) -> int:
    number = _number(value, "a whole number", where)
    if number != int(number):
        raise _mismatch(value, "a whole number", where)
    return int(number)


def _real(value: object, where: str) -> float:
    return float(_number(value, "a number", where))


def _number(value: object, expected: str, where: str) -> int | float:
    """Reads a finite number; text is read as TOML and Python write numbers."""
    # numpy's scalars are numbers here too, and this module must not import numpy to know them
    if isinstance(value, str):
        try:
            value = int(value) if re.fullmatch(r"\s*[+-]?[\d_]+\s*", value) else float(value)
        except ValueError as error:
            raise _mismatch(value, expected, where) from error
    elif hasattr(value, "item") and hasattr(value, "dtype"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(value, expected, where)
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int beyond any float
        finite = False
    if not finite:
        raise _mismatch(value, f"{expected}, finite", where)
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _mismatch(value, "text", where)
    return str(value)


def _choice(value: object, choices: Sequence[Any], where: str) -> Any:
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
        if isinstance(value, str) and value == str(choice):
            return choice
    hint = did_you_mean(str(value), map(str, choices))
    raise UsageError(
        f"expected one of {', '.join(map(str, choices))}, got {str(value)[:60]!r}",
        where=where,
        hint=hint if hint and hint.startswith("did") else None,
    )


def _inner(arguments: Sequence[Any]) -> Any:
    return next(argument for argument in arguments if argument is not type(None))


def _optional(value: object, arguments: Sequence[Any], where: str) -> Any:
    inner = _inner(arguments)
    # TOML has no null, so a recipe writes `false`; typed text writes a bare none
    if value is None or (value is False and inner is not bool):
        return None
    if (
        isinstance(value, str)
        and value.lower() == "none"
        and (isinstance(value, Bare) or inner in (bool, int, float))
    ):
        return None
    return coerce(value, inner, where)


def _items(value: object, where: str) -> Sequence[object]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence):
        raise _mismatch(value, "a list", where)
    return value


def _attribute_docs(docstring: str) -> dict[str, str]:
    """Reads the ``Attributes:`` section of a Google-style docstring: name to one paragraph."""
    section = re.search(r"^[ \t]*Attributes:[ \t]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)*)", docstring, re.MULTILINE)
    if not section:
        return {}
    lines = [line for line in section[1].splitlines() if line.strip()]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    docs: dict[str, list[str]] = {}
    current: list[str] = []
    for line, indent in zip(lines, indents, strict=True):
        entry = re.match(r"\s*(\w+)(?: \([^)]*\))?:\s*(.*)", line)
        if indent < indents[0]:
            break
        if indent == indents[0] and entry:
            current = docs[entry[1]] = [entry[2]]
        else:
            current.append(line.strip())
    return {name: " ".join(part for part in parts if part) for name, parts in docs.items()}


_SCALARS: dict[Any, Callable[[object, str], Any]] = {
    bool: _boolean,
    int: _integer,
    float: _real,
    str: _string,
}
