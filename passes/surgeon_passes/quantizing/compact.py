"""Taking the ballast out of a quantized model: long generated names, one copy of every equal scale and zero point."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx

_LINEAR = ("QuantizeLinear", "DequantizeLinear")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def compact(model: onnx.ModelProto, known: Collection[str]) -> None:
    """Shortens what quantization added to a model; in a small model that is a tenth of the file.

    Names the model had before stay, and so do the names of quantized weights.

    Args:
        model: The quantized model, changed in place.
        known: Names of nodes and tensors before it was quantized.
    """
    del model.graph.value_info[:]
    _share_parameters(model.graph)
    taken = {*known, *(entry.name for entry in (*model.graph.input, *model.graph.output))}
    taken |= {entry.name for entry in model.graph.initializer if entry.name.endswith("_quantized")}
    taken |= set(_inside(model.graph))
    made = [entry.name for entry in model.graph.initializer]
    made += [name for node in model.graph.node for name in node.output if name]
    _rename(model.graph, _short_names([name for name in made if name not in taken], taken))
    names = _short_names([node.name for node in model.graph.node if node.name not in known], taken)
    for node in model.graph.node:
        node.name = names.get(node.name, node.name)


def _inside(graph: onnx.GraphProto) -> Iterator[str]:
    """Yields the names of nodes and tensors in bodies, whose tensors must not be called like those around them."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from (entry.name for entry in (*body.input, *body.output, *body.initializer))
                for inner in body.node:
                    yield from (inner.name, *inner.input, *inner.output)
                yield from _inside(body)


def _share_parameters(graph: onnx.GraphProto) -> None:
    """Merges equal scales and zero points."""
    users: dict[str, set[bool]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            users.setdefault(name, set()).add(node.op_type in _LINEAR and position > 0)
    first: dict[bytes, str] = {}
    merged: dict[str, str] = {}
    kept = []
    for entry in graph.initializer:
        if users.get(entry.name) == {True}:
            nameless = onnx.TensorProto()
            nameless.CopyFrom(entry)
            nameless.name = ""
            original = first.setdefault(nameless.SerializeToString(deterministic=True), entry.name)
            if original != entry.name:
                merged[entry.name] = original
                continue
        kept.append(entry)
    _rename(graph, merged)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for entry in graph.initializer:
        entry.name = names.get(entry.name, entry.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                _rename(body, names)


def _short_names(names: list[str], taken: set[str]) -> dict[str, str]:
    short: dict[str, str] = {}
    number = 0
    for name in names:
        if name in short:
            continue
        while (candidate := f"q{_digits(number)}") in taken:
            number += 1
        number += 1
        taken.add(candidate)
        short[name] = candidate
    return short


def _digits(number: int) -> str:
    text = ""
    while True:
        number, digit = divmod(number, len(_ALPHABET))
        text = _ALPHABET[digit] + text
        if not number:
            return text
