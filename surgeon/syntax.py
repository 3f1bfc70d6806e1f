"""The text form of passes, ``prune{macs=0.5 score=l2},quantize``: read into calls, and written back.

    passes := pass ("," pass)*            pass  := name [ "{" setting* "}" ]
    setting := name "=" value             value := bare | "quoted" | "[" values "]" | "{" settings "}"

Settings and list items are separated by blanks or commas. Types are not decided here: `surgeon.options.coerce`
knows what each option should be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon.errors import UsageError
from surgeon.options import Bare

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_KEY = re.compile(r"[^\s,={}\[\]\"]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# a bare value may carry brackets of its own, as in the pattern /layer[12]/*, only not as its first character
_BARE = re.compile(r'[^\s,{}\[\]"](?:[^\s,{}\[\]"]|\[[^\s\[\]]*\])*')
_SAFE = re.compile(r"[A-Za-z0-9_./*:+?-]+")
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Call:
    """A pass as it was written: its name and its options, not yet typed."""

    name: str
    options: Mapping[str, object]


def parse_passes(text: str) -> list[Call]:
    """Reads ``a{x=1},b`` into calls.

    Raises:
        UsageError: The text is not of that form; the message points at the place.
    """
    scanner = _Scanner(text, "passes")
    calls: list[Call] = []
    while True:
        scanner.blanks()
        name = scanner.expect(_NAME, "a pass name")
        scanner.blanks()
        calls.append(Call(name, scanner.settings() if scanner.take("{") else {}))
        scanner.blanks()
        if scanner.done():
            return calls
        if not scanner.take(","):
            raise scanner.error("expected ',' between passes")


def parse_value(text: str, where: str) -> object:
    """Reads the right-hand side of ``--set pass.option=value``; ``a,b`` without brackets is a list too.

    Raises:
        UsageError: A quote, bracket or brace is not closed.
    """
    if text[:1] in ('"', "[", "{"):
        scanner = _Scanner(text, where)
        value = scanner.value()
        scanner.blanks()
        if not scanner.done():
            raise scanner.error("unexpected text after the value")
        return value
    return [Bare(part.strip()) for part in text.split(",") if part.strip()] if "," in text else Bare(text)


def format_passes(calls: Sequence[Call]) -> str:
    """Writes calls so that `parse_passes` reads the same values back."""
    return ",".join(
        call.name + (f"{{{format_settings(call.options)}}}" if call.options else "") for call in calls
    )


def format_settings(options: Mapping[str, object]) -> str:
    """Writes ``name=value`` pairs separated by blanks."""
    return " ".join(f"{_format_key(name)}={format_value(value)}" for name, value in options.items())


def format_value(value: object) -> str:
    """Writes one option value: bool, number, text, None, list or table."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if _SAFE.fullmatch(value) and value.lower() != "none" else json.dumps(value)
    if isinstance(value, Mapping):
        return f"{{{format_settings(value)}}}"
    if isinstance(value, Sequence):
        return f"[{','.join(map(format_value, value))}]"
    return repr(value)


def _format_key(key: str) -> str:
    return key if _KEY.fullmatch(key) else json.dumps(key)


class _Scanner:
    """A cursor over the text that knows how to complain."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where, self.position = text, where, 0

    def error(self, message: str) -> UsageError:
        rest = self.text[self.position : self.position + 20]
        place = f"at {rest!r}" if rest else "at the end"
        return UsageError(
            f"{message} {place}", where=self.where, hint="write prune{macs=0.5 score=l2},quantize"
        )

    def done(self) -> bool:
        return self.position == len(self.text)

    def match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.text, self.position)
        if found is None:
            return None
        self.position = found.end()
        return found[0]

    def expect(self, pattern: re.Pattern[str], what: str) -> str:
        found = self.match(pattern)
        if found is None:
            raise self.error(f"expected {what}")
        return found

    def take(self, character: str) -> bool:
        if self.text.startswith(character, self.position):
            self.position += 1
            return True
        return False

    def blanks(self) -> None:
        self.match(re.compile(r"\s*"))

    def gap(self) -> None:
        self.match(_GAP)

    def settings(self) -> dict[str, object]:
        """Reads ``name=value`` pairs up to and including the closing brace."""
        found: dict[str, object] = {}
        self.gap()
        while not self.take("}"):
            key = self.quoted()
            key = self.expect(_KEY, "an option name or '}'") if key is None else key
            self.blanks()
            if not self.take("="):
                raise self.error(f"expected '=' after {key!r}")
            if key in found:
                raise UsageError("given twice", where=f"{self.where}.{key}")
            self.blanks()
            found[key] = self.value()
            self.gap()
        return found

    def value(self) -> object:
        if self.take("{"):
            return self.settings()
        if self.take("["):
            return self.items()
        quoted = self.quoted()
        return quoted if quoted is not None else Bare(self.match(_BARE) or "")

    def items(self) -> list[object]:
        found: list[object] = []
        self.gap()
        while not self.take("]"):
            before = self.position
            found.append(self.value())
            if self.position == before:
                raise self.error("expected ']'")
            self.gap()
        return found

    def quoted(self) -> str | None:
        literal = self.match(_QUOTED)
        if literal is None:
            if self.text.startswith('"', self.position):
                raise self.error("quote not closed")
            return None
        try:
            return str(json.loads(literal, strict=False))
        except ValueError as error:
            raise UsageError(f"bad quoted text {literal[:40]}", where=self.where) from error
