"""The table of rules: by domain, name and the opset they hold from."""

from __future__ import annotations

import pytest

from surgeon.errors import PluginError
from surgeon.ops import RULES
from surgeon.ops.registry import Rule, Rules


def one(op):
    return []


def two(op):
    return []


def test_the_newest_rule_that_is_not_too_new_is_used():
    rules = Rules()
    rules.add(Rule("Op", "", 13, two))
    rules.add(Rule("Op", "", 1, one))
    assert rules.find("Op", "", 12).function is one
    assert rules.find("Op", "", 13).function is two
    assert rules.find("Op", "", 99).function is two
    assert [rule.since for rule in rules] == [1, 13]


def test_an_operator_without_a_rule_is_not_found():
    rules = Rules()
    rules.add(Rule("Op", "custom", 3, one))
    assert rules.find("Op", "custom", 2) is None
    assert rules.find("Op", "", 3) is None
    assert rules.find("Other", "custom", 3) is None


def test_two_rules_for_the_same_opset_are_an_error():
    rules = Rules()
    rules.add(Rule("Op", "", 1, one))
    with pytest.raises(PluginError, match="two rules for opset 1") as caught:
        rules.add(Rule("Op", "", 1, two))
    assert "ai.onnx.Op" in str(caught.value)


def test_every_rule_says_what_relation_it_states():
    silent = [rule.name for rule in RULES if not (rule.function.__doc__ or "").strip()]
    assert silent == []
