"""Masks, sizes and coordinates against brute force."""

from __future__ import annotations

import numpy as np
from axes.expressions import build, free_atoms, random_keep, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.axes import Atom, Concat, Product, Selection, atoms_of, coordinates, count, mask

many = settings(max_examples=80, deadline=None)


@many
@given(worlds(axes=2), st.data())
def test_removal_commutes_with_joining(world, data):
    atoms = {}
    a, b = (build(each, atoms) for each in world)
    keep = random_keep(data, a, b)
    labels = np.arange(a.size + b.size)
    joined = labels[mask(Concat([a, b]), keep)]
    apart = np.concatenate([labels[: a.size][mask(a, keep)], labels[a.size :][mask(b, keep)]])
    np.testing.assert_array_equal(joined, apart)


@many
@given(worlds(axes=2), st.data())
def test_removal_commutes_with_products(world, data):
    """Cutting a matrix along both axes and flattening it is flattening it and cutting the product."""
    atoms = {}
    a, b = (build(each, atoms) for each in world)
    keep = random_keep(data, a, b)
    matrix = np.arange(a.size * b.size).reshape(a.size, b.size)
    cut = matrix[mask(a, keep)][:, mask(b, keep)]
    np.testing.assert_array_equal(matrix.ravel()[mask(Product([a, b]), keep)], cut.ravel())


@many
@given(worlds(axes=1), st.data())
def test_coordinates_say_what_falls_with_an_index(world, data):
    axis = build(world[0], {})
    for atom in free_atoms(axis):
        places = coordinates(axis, atom)
        assert places
        for index in range(atom.size):
            falls = np.any([each == index for each in places], axis=0)
            np.testing.assert_array_equal(~falls, mask(axis, {atom: np.arange(atom.size) != index}))


@many
@given(worlds(axes=1, selections=False), st.data())
def test_sizes_follow_from_the_sizes_of_atoms(world, data):
    axis = build(world[0], {})
    keep = random_keep(data, axis)
    sizes = {atom: float(flags.sum()) for atom, flags in keep.items()}
    assert count(axis, sizes) == mask(axis, keep).sum()


@many
@given(worlds(axes=1))
def test_nothing_removed_leaves_everything(world):
    axis = build(world[0], {})
    assert mask(axis, {}).all()
    assert count(axis, {}) == axis.size


def test_coordinates_of_a_product():
    a, b = Atom(2), Atom(3)
    axis = Product([a, b])
    assert [each.tolist() for each in coordinates(axis, a)] == [[0, 0, 0, 1, 1, 1]]
    assert [each.tolist() for each in coordinates(axis, b)] == [[0, 1, 2, 0, 1, 2]]


def test_coordinates_of_a_square_have_two_occurrences():
    a = Atom(2)
    assert [each.tolist() for each in coordinates(Product([a, a]), a)] == [[0, 0, 1, 1], [0, 1, 0, 1]]


def test_coordinates_along_a_concatenation():
    a, b = Atom(2), Atom(3)
    (places,) = coordinates(Concat([b, a, a]), a)
    assert places.tolist() == [-1, -1, -1, 0, 1, 0, 1]
    assert coordinates(b, a) == []


def test_coordinates_of_a_selection_are_those_of_its_base():
    a = Atom(4)
    (places,) = coordinates(Selection(a, np.array([3, 3, 0])), a)
    assert places.tolist() == [3, 3, 0]


def test_selections_shrink_with_their_base():
    a = Atom(4)
    assert count(Selection(a, np.array([3, 0])), {a: 2.0}) == 1.0
    assert list(atoms_of(Selection(a, np.array([3, 0])))) == [a]
