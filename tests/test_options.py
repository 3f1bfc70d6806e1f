"""Typed options and their text form."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon import options, recipe, syntax
from surgeon.errors import PluginError, UsageError
from surgeon.options import Bare, build, coerce


@dataclass(frozen=True)
class Everything:
    """Has an option of every type.

    More text: this is no attribute.

    Attributes:
        flag: Turns it on.
        count: How many,
            in two lines: with a colon.
        ratio (float): Between.

    Note:
        tail: not an attribute.
    """

    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    text: str = ""
    score: Literal["l1", "l2", "none"] = "l1"
    bits: Literal[4, 8] = 8
    limit: int | None = None
    word: str | None = "x"
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    table: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ratio > 1:
            raise ValueError("ratio is too large")


def make(**values: object) -> Everything:
    return build(Everything, values, where="every")


def test_text_of_every_type_is_understood():
    made = make(
        flag=Bare("yes"), count=Bare("7"), ratio=Bare(".5"), text=Bare("none"), score=Bare("none"), bits=Bare("4"),
        limit=Bare("none"), word=Bare("none"), names=Bare("a"), sizes=[Bare("1"), 2], table={"a": Bare("1e-3")},
    )  # fmt: skip
    assert made == Everything(True, 7, 0.5, "none", "none", 4, None, None, ("a",), (1, 2), {"a": 0.001})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("count", "1.5", "whole number"), ("count", True, "whole number"), ("count", 2.5, "whole number"),
        ("count", "1e400", "whole number"), ("ratio", "nan", "finite"), ("ratio", "-inf", "finite"), ("ratio", math.nan, "finite"),
        ("ratio", 10**400, "finite"), ("ratio", "half", "a number"), ("ratio", "", "a number"), ("ratio", None, "a number"),
        ("ratio", [0.5], "a number"), ("flag", "maybe", "true or false"), ("flag", 1, "true or false"),
        ("score", "l3", "one of l1, l2, none"), ("bits", True, "one of 4, 8"), ("names", 3, "a list"),
        ("names", [3], "text"), ("table", "a", "a table"), ("table", {"a": "b"}, "every.table.a"), ("text", 3, "text"),
        ("ratio", 2.0, "too large"), ("rato", 2.0, "did you mean 'ratio'?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name, value, said):
    with pytest.raises(UsageError) as error:
        make(**{name: value})
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_near_choice_is_suggested():
    with pytest.raises(UsageError, match="did you mean 'l2'"):
        make(score="L2")


def test_numpy_scalars_are_numbers():
    np = pytest.importorskip("numpy")
    assert make(count=np.int64(4), ratio=np.float32(0.25)) == Everything(count=4, ratio=0.25)


def test_docs_come_from_the_attributes_section_only():
    docs = {name: option.doc for name, option in options.options_of(Everything).items()}
    assert docs["flag"] == "Turns it on."
    assert docs["count"] == "How many, in two lines: with a colon."
    assert docs["ratio"] == "Between."
    assert docs["text"] == ""


@pytest.mark.parametrize("hint", [list[int], int | str, set, tuple[int, int], dict[int, str], object])
def test_types_that_options_cannot_have(hint):
    with pytest.raises(PluginError, match="cannot have the type"):
        options.type_name(hint, "pass.option")


def test_missing_required_option():
    @dataclass(frozen=True)
    class Needy:
        size: int

    Needy.__annotations__["size"] = int
    with pytest.raises(UsageError, match="size: must be given"):
        build(Needy, {}, where="needy")


VALUES = st.builds(
    Everything,
    flag=st.booleans(),
    count=st.integers(),
    ratio=st.floats(max_value=1, allow_nan=False, allow_infinity=False),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    score=st.sampled_from(["l1", "l2", "none"]),
    bits=st.sampled_from([4, 8]),
    limit=st.none() | st.integers(),
    word=st.none() | st.text(st.characters(exclude_categories=["Cs"])) | st.just("none"),
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
    sizes=st.lists(st.integers()).map(tuple),
    table=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.floats(-1, 1)),
)


@given(VALUES)
def test_text_round_trip(value):
    text = syntax.format_passes([syntax.Call("every", vars(value)), syntax.Call("other", {})])
    first, second = syntax.parse_passes(text)
    assert second == syntax.Call("other", {})
    assert build(Everything, first.options, where="every") == value


@given(VALUES)
def test_toml_round_trip(value):
    lines = [f"{name} = {recipe.toml(False if item is None else item)}" for name, item in vars(value).items()]
    assert build(Everything, tomllib.loads("\n".join(lines)), where="every") == value


@given(st.text(max_size=30))
def test_any_text_parses_or_is_a_usage_error(text):
    for parse in (syntax.parse_passes, lambda each: syntax.parse_value(each, "x")):
        try:
            parse(text)
        except UsageError as error:
            said = str(error)
            if not said:
                raise


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("prune", [("prune", {})]),
        (" prune , quantize ", [("prune", {}), ("quantize", {})]),
        ("prune{macs=0.5 score=l2},q{}", [("prune", {"macs": "0.5", "score": "l2"}), ("q", {})]),
        ("prune{macs=0.5, score=l2}", [("prune", {"macs": "0.5", "score": "l2"})]),
        ('p{a="x y" b=[1,2 3] c={k=1,"l m"=2}}', [("p", {"a": "x y", "b": ["1", "2", "3"], "c": {"k": "1", "l m": "2"}})]),
        ("p{a=/layer[12]/*}", [("p", {"a": "/layer[12]/*"})]),
    ],
)  # fmt: skip
def test_inline_form(text, calls):
    assert [(call.name, call.options) for call in syntax.parse_passes(text)] == calls


@pytest.mark.parametrize(
    "text", ["", ",", "a,", "a b", "a{", "a{x}", "a{x=", 'a{x="}', "a{x=1 x=2}", "a{x=[1}", "a}", "{x=1}"]
)
def test_broken_inline_form_says_where(text):
    with pytest.raises(UsageError):
        syntax.parse_passes(text)


def test_set_values_may_be_lists_without_brackets():
    assert coerce(syntax.parse_value("a, b,c", "x"), tuple[str, ...], "x") == ("a", "b", "c")
    assert coerce(syntax.parse_value("[a]", "x"), tuple[str, ...], "x") == ("a",)
    assert coerce(syntax.parse_value('"a,b"', "x"), str, "x") == "a,b"
