"""Unification is sound, symmetric and idempotent, changes no size, and says why it pins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from axes.expressions import build, free_atoms, random_keep, removals, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.axes import (
    ONE,
    Atom,
    Concat,
    Pin,
    Product,
    Selection,
    atoms_of,
    cut_at,
    is_fixed,
    mask,
    normal,
    pin,
    select,
    unify,
)

many = settings(max_examples=80, deadline=None)


def reasons(axis) -> set[str]:
    return {str(atom.pinned) for atom in atoms_of(axis) if atom.pinned is not None}


@many
@given(worlds(), st.data())
def test_what_is_unified_loses_the_same_positions(world, data):
    atoms = {}
    left, right = (build(each, atoms) for each in world)
    unify(left, right, "op")
    keep = random_keep(data, left, right)
    np.testing.assert_array_equal(mask(left, keep), mask(right, keep))


@many
@given(worlds(axes=4), st.data())
def test_earlier_statements_hold_after_later_ones(world, data):
    atoms = {}
    a, b, c, d = (build(each, atoms) for each in world)
    unify(a, b, "first")
    unify(c, d, "second")
    unify(b, c, "third")
    keep = random_keep(data, a, b, c, d)
    for other in (b, c, d):
        np.testing.assert_array_equal(mask(a, keep), mask(other, keep))


@many
@given(worlds())
def test_unification_is_symmetric(world):
    one, other = {}, {}
    left, right = (build(each, one) for each in world)
    unify(left, right, "op")
    left_again, right_again = (build(each, other) for each in world)
    unify(right_again, left_again, "op")
    assert removals(left, right) == removals(left_again, right_again)


@many
@given(worlds())
def test_unification_is_idempotent(world):
    atoms = {}
    left, right = (build(each, atoms) for each in world)
    unify(left, right, "op")
    before = removals(left, right)
    unify(left, right, "op")
    unify(right, left, "op")
    assert removals(left, right) == before


@many
@given(worlds(axes=3))
def test_unification_changes_no_size(world):
    atoms = {}
    axes = [build(each, atoms) for each in world]
    size = axes[0].size
    everything = list(atoms.values())
    sizes = [atom.size for atom in everything]
    for left, right in pairwise(axes):
        unify(left, right, "op")
    assert [normal(axis).size for axis in axes] == [size] * 3
    assert [len(mask(axis, {})) for axis in axes] == [size] * 3
    assert [normal(atom).size for atom in everything] == sizes


@many
@given(worlds(axes=3), st.data())
def test_a_refined_atom_means_what_it_meant(world, data):
    """The mask of an expression is made of the masks of its atoms, whatever they have been refined to."""
    atoms = {}
    axes = [build(each, atoms) for each in world]
    unify(axes[0], axes[1], "op")
    unify(axes[1], axes[2], "op")
    keep = random_keep(data, *axes)
    for axis, blueprint in zip(axes, world, strict=True):
        np.testing.assert_array_equal(mask(axis, keep), naive(blueprint, atoms, keep))


def naive(blueprint, atoms, keep) -> np.ndarray:
    if blueprint[0] == "atom":
        return mask(atoms[blueprint[1]], keep)
    if blueprint[0] == "select":
        return naive(blueprint[1], atoms, keep)[list(blueprint[2])]
    parts = [naive(part, atoms, keep) for part in blueprint[1]]
    if blueprint[0] == "concat":
        return np.concatenate(parts)
    return np.array([x and y for x in parts[0] for y in parts[1]])


@many
@given(worlds(axes=2, selections=False))
def test_nothing_is_pinned_without_a_reason(world):
    atoms = {}
    left, right = (build(each, atoms) for each in world)
    unify(left, right, "Some op")
    for atom in (*atoms_of(left), *atoms_of(right)):
        if atom.pinned is not None:
            assert atom.pinned.why


def test_an_atom_is_refined_by_a_concatenation():
    a, p, q = Atom(5), Atom(2), Atom(3)
    unify(a, Concat([p, q]))
    assert list(atoms_of(a)) == [p, q]
    assert mask(a, {q: np.array([1, 0, 1], bool)}).tolist() == [True, True, True, False, True]


def test_an_atom_is_refined_by_a_product():
    a, p, q = Atom(6), Atom(2), Atom(3)
    unify(Product([p, q]), a)
    assert mask(a, {p: np.array([0, 1], bool)}).tolist() == [False] * 3 + [True] * 3


def test_concatenations_are_cut_at_common_places():
    a, b = Atom(5), Atom(7)
    c, d, e = Atom(3), Atom(4), Atom(5)
    unify(Concat([a, b]), Concat([c, d, e]))
    assert [atom.size for atom in atoms_of(Concat([c, d, e]))] == [3, 2, 2, 5]
    assert list(atoms_of(a)) == list(atoms_of(Concat([c, *atoms_of(d)])))[:2]


def test_products_are_split_at_common_factors():
    a, b = Atom(12), Atom(5)
    c, d = Atom(4), Atom(15)
    unify(Product([a, b]), Product([c, d]))
    assert [atom.size for atom in atoms_of(a)] == [4, 3]
    assert [atom.size for atom in atoms_of(d)] == [3, 5]
    assert free_atoms(a, b, c, d) == list(dict.fromkeys(atoms_of(Product([a, b]))))


def test_a_concatenation_is_factored_by_a_product():
    """Two feature maps of heads that are reshaped together share the head dimension."""
    p, q, heads, each = Atom(6), Atom(9), Atom(5), Atom(3)
    unify(Concat([p, q]), Product([heads, each]))
    assert [atom.size for atom in atoms_of(heads)] == [2, 3]
    assert mask(p, {each: np.array([1, 0, 1], bool)}).tolist() == [True, False, True] * 2
    assert mask(q, {each: np.array([1, 0, 1], bool)}).tolist() == [True, False, True] * 3


def test_a_fixed_axis_is_only_a_number():
    """Pinned throughout, it may be re-split in any way, and what it is unified with is pinned for the same reason."""
    fixed, free = (
        Product([Atom(2, Pin("x", "batch")), Atom(3, Pin("x", "batch"))]),
        Concat([Atom(1), Atom(5)]),
    )
    unify(fixed, free, "Reshape r")
    assert is_fixed(free)
    assert reasons(free) == {"x: batch"}


@pytest.mark.parametrize("turned", [False, True])
def test_pins_are_carried_by_binding(turned):
    """A part that is pinned stays pinned, and nothing else becomes so."""
    free, pinned, rest = Atom(5), Atom(2, Pin("x", "wanted")), Atom(3)
    joined = Concat([pinned, rest])
    unify(*((joined, free) if turned else (free, joined)))
    assert free_atoms(free) == [rest]
    assert reasons(free) == {"x: wanted"}


def test_a_pin_given_before_a_refinement_holds_after_it():
    atom = Atom(6)
    pin(atom, Pin("x", "early"))
    head, tail = cut_at(atom, 2)
    assert is_fixed(head)
    assert is_fixed(tail)
    left, right = Atom(2), Atom(3)
    unify(atom, Product([left, right]))
    assert reasons(left) == reasons(right) == {"x: early"}


def test_a_pin_given_after_a_refinement_reaches_the_parts():
    atom = Atom(6)
    head, tail = cut_at(atom, 2)
    pin(atom, Pin("x", "late"))
    assert is_fixed(head)
    assert is_fixed(tail)


def test_an_axis_that_would_contain_itself_is_pinned():
    atom = Atom(4)
    unify(atom, Selection(atom, np.array([1, 0, 3, 2])), "Add s")
    assert reasons(atom) == {"Add s: an axis would have to contain itself"}


def test_an_axis_that_would_contain_itself_through_others_is_pinned():
    a, b, c = Atom(2), Atom(2), Atom(4)
    unify(c, Concat([a, b]))
    unify(a, Selection(c, np.array([2, 3])), "Add s")
    assert not free_atoms(a)


def test_different_sizes_pin_both():
    a, b = Atom(4), Atom(5)
    unify(a, b, "Mul m")
    assert reasons(a) == reasons(b) == {"Mul m: sizes 4 and 5 are used as one"}


def test_blocks_that_do_not_line_up_pin_both():
    parts, factors = Concat([Atom(2), Atom(4)]), Product([Atom(2), Atom(3)])
    unify(parts, factors, "Reshape r")
    assert is_fixed(parts)
    assert is_fixed(factors)
    assert reasons(parts) == {"Reshape r: joined parts do not line up with the blocks they are reshaped to"}


def test_factors_without_a_common_divisor_pin_what_is_left():
    a, b, c = Atom(2), Atom(3), Atom(5)
    d, e, f = Atom(2), Atom(5), Atom(3)
    unify(Product([a, b, c]), Product([d, e, f]), "Reshape r")
    assert free_atoms(a, d) == [a]
    assert reasons(Product([b, c, e, f])) == {"Reshape r: blocks of 3 and 5 do not line up"}


def test_equal_selections_unify_their_bases():
    a, b, picked = Atom(6), Atom(6), np.array([5, 0, 2])
    unify(Selection(a, picked), Selection(b, picked.copy()))
    assert normal(a) is normal(b)


def test_different_selections_pin_both():
    a, b = Atom(6), Atom(6)
    unify(Selection(a, np.array([0, 2, 4])), Selection(b, np.array([1, 3, 5])), "Add s")
    assert reasons(a) == reasons(b) == {"Add s: two different selections of channels are used as one"}


def test_a_selection_meets_another_arrangement():
    a, parts = Atom(6), Concat([Atom(1), Atom(2)])
    unify(Selection(a, np.array([4, 0, 2])), parts, "Add s")
    assert is_fixed(a)
    assert "a selection of channels meets another arrangement" in next(iter(reasons(a)))


def test_size_one_is_the_empty_product():
    assert normal(Atom(1)) is ONE
    assert normal(Product([Atom(1), Atom(1)])) is ONE
    one = Atom(1)
    unify(one, Product([]))
    assert normal(one) is ONE


@many
@given(worlds(axes=1), st.data())
def test_cutting_gives_two_parts_that_make_up_the_whole(world, data):
    axis = build(world[0], {})
    size = data.draw(st.integers(0, axis.size))
    head, tail = cut_at(axis, size, "Split s")
    assert (head.size, tail.size) == (size, axis.size - size)
    keep = random_keep(data, axis, head, tail)
    np.testing.assert_array_equal(np.concatenate([mask(head, keep), mask(tail, keep)]), mask(axis, keep))


@many
@given(worlds(axes=1), st.data())
def test_selecting_picks_positions(world, data):
    axis = build(world[0], {})
    indices = data.draw(st.lists(st.integers(0, axis.size - 1), max_size=8))
    chosen = select(axis, indices, "Gather g")
    assert chosen.size == len(indices)
    keep = random_keep(data, axis, chosen)
    np.testing.assert_array_equal(mask(chosen, keep), mask(axis, keep)[np.array(indices, int)])


def test_a_run_is_a_part():
    atom = Atom(8)
    chosen = select(atom, [2, 3, 4])
    assert [each.size for each in atoms_of(atom)] == [2, 3, 3]
    assert free_atoms(chosen) == [list(atoms_of(atom))[1]]


def test_selections_compose():
    atom = Atom(8)
    chosen = select(select(atom, [7, 5, 3, 1]), [3, 1])
    assert isinstance(chosen, Selection)
    assert chosen.indices.tolist() == [1, 5]


def test_a_cut_inside_a_block_pins_it_and_says_so():
    axis = Product([Atom(2), Atom(3)])
    head, tail = cut_at(axis, 4, "Slice s")
    assert (head.size, tail.size) == (4, 2)
    assert reasons(axis) == {"Slice s: split at 4, inside a block of 3"}
