"""Where operator rules are declared and found: by domain, name and the opset they hold from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from surgeon.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from surgeon.axes import Axis

Axes: TypeAlias = "list[Axis]"


#: States the relations between the axes of one operator's inputs and outputs. Called with the operator and the axes of
#: its inputs, named as the ONNX operator page names them (None where an optional input is absent); returns the axes of
#: each output. A rule that cannot say raises Barrier.
RuleFunction: TypeAlias = "Callable[..., list[Axes]] | Callable[..., list[Axes | None]]"


@dataclass(frozen=True)
class Rule:
    """One rule and where it holds; without ``needs_shapes`` it is asked even where inputs have no known rank."""

    name: str
    domain: str
    since: int
    function: RuleFunction
    needs_shapes: bool = True


class Declared(Protocol):
    """What is declared for an operator, from an opset on."""

    @property
    def name(self) -> str:
        """The operator type."""

    @property
    def domain(self) -> str:
        """The operator's domain."""

    @property
    def since(self) -> int:
        """The first opset of that domain in which it holds."""


R = TypeVar("R", bound=Declared)


class Rules(Generic[R]):
    """A table of rules; the newest one not newer than the graph's opset is used."""

    def __init__(self) -> None:
        self._rules: dict[tuple[str, str], list[R]] = {}

    def add(self, rule: R) -> None:
        """Add a rule.

        Raises:
            PluginError: A rule for the same operator, domain and opset is there already.
        """
        known = self._rules.setdefault((rule.domain, rule.name), [])
        if any(other.since == rule.since for other in known):
            where = f"{rule.domain or 'ai.onnx'}.{rule.name}"
            raise PluginError(f"two rules for opset {rule.since}", where=where)
        known.append(rule)
        known.sort(key=lambda each: each.since)

    def find(self, name: str, domain: str, opset: int) -> R | None:
        """The rule for an operator at ``opset``, or None when it has none."""
        found = [rule for rule in self._rules.get((domain, name), ()) if rule.since <= opset]
        return found[-1] if found else None

    def __iter__(self) -> Iterator[R]:
        return (rule for rules in self._rules.values() for rule in rules)


RULES: Rules[Rule] = Rules()


def rule(
    *names: str, domain: str = "", since: int = 1, needs_shapes: bool = True
) -> Callable[[RuleFunction], RuleFunction]:
    """Declare the rule of one or several operators.

    Args:
        names: ONNX operator types.
        domain: Their domain; empty for the standard operators.
        since: The first opset of that domain in which the rule holds.
        needs_shapes: Whether the rank of every input has to be known; if not, the axes of some may be None.
    """

    def declare(function: RuleFunction) -> RuleFunction:
        for name in names:
            RULES.add(Rule(name, domain, since, function, needs_shapes))
        return function

    return declare
