"""Where 8 bits pay: the split of a graph into float and 8-bit operators that takes the least time, as a minimal cut.

Every unit of operators has a time either way, and where a tensor goes from one side to the other it has to be
converted, once. Such a labelling costs what the cut of a network costs (Greig, Porteous and Seheult 1989), so the best
one is found exactly: the source's side is 8-bit, the sink's float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import onnx

from surgeon_passes.quantizing.choose import FUSED, Choice, data_of, needs_of

#: Operators through which onnxruntime passes 8-bit values on by itself.
MOVES = {"Concat", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
#: Operators whose 8-bit kernels put out floats.
PRODUCTS = {"MatMul", "Gemm"}
_FLOAT, _INTEGER = "float", "integer"


@dataclass
class Unit:
    """Operators that become 8-bit together: one, and those chosen that depend on it alone.

    Attributes:
        nodes: Names of its nodes, the first one first.
        float_us: Microseconds it takes in float.
        integer_us: Microseconds it takes with 8 bits, without conversions at its ends.
        needs: Numbers of the units, with weights, whose results it passes on: it has 8 bits only where they do.
    """

    nodes: list[str] = field(default_factory=list)
    float_us: float = 0.0
    integer_us: float = 0.0
    needs: set[int] = field(default_factory=set)


@dataclass
class Times:
    """What was measured of a model in float and with everything that was chosen in 8 bits.

    Attributes:
        floats: Microseconds of each node in float, by name; fused nodes count for one of their nodes.
        integers: The same with 8 bits.
        sizes: Elements of each tensor that may have to be converted, by name.
        per_element: Microseconds to convert one element.
        per_kernel: Microseconds to convert none.
    """

    floats: Mapping[str, float]
    integers: Mapping[str, float]
    sizes: Mapping[str, int]
    per_element: float
    per_kernel: float

    def conversion(self, tensor: str) -> float:
        """Returns the microseconds it takes to convert a tensor from float to 8 bits or back."""
        return self.per_kernel + self.per_element * self.sizes.get(tensor, 0)


def units_of(graph: onnx.GraphProto, choice: Choice, times: Times, *, joined: bool = False) -> list[Unit]:
    """Groups the chosen nodes; what moves values between 8-bit operators is a unit of its own that costs nothing.

    Args:
        graph: The prepared graph, in topological order.
        choice: What may become 8-bit.
        times: What its nodes take.
        joined: Whether all that depends on one node alone is a unit with it; if not, only what has no kernel of its own in one of the
            models, for it is fused into it there. A fused kernel may be named after either.
    """
    chosen, needs = set(choice.nodes), needs_of(graph, choice)
    makers: dict[str, int] = {}
    numbers: dict[str, int] = {}
    units: list[Unit] = []
    constants = {entry.name for entry in graph.initializer}
    for node in graph.node:
        if node.name not in chosen:
            continue
        before = [makers.get(name) for name in node.input if name and name not in constants]
        takes = times.floats.get(node.name, 0.0), times.integers.get(node.name, 0.0)
        number = before[0] if before and (joined or not all(takes)) else None
        if number is None or node.name in choice.weighted or any(each != number for each in before):
            number = len(units)
            units.append(Unit(needs={numbers[name] for name in needs[node.name]}))
        unit = units[number]
        unit.nodes.append(node.name)
        unit.float_us += takes[0]
        unit.integer_us += takes[1]
        makers.update(dict.fromkeys(node.output, number))
        numbers[node.name] = number
    return units


def best(
    graph: onnx.GraphProto, choice: Choice, times: Times, *, caution: float = 1.0, joined: bool = False
) -> tuple[list[Unit], float]:
    """Finds the units that are faster in float, conversions considered.

    Args:
        graph: The prepared graph.
        choice: What may become 8-bit.
        times: What its nodes take.
        caution: The times of 8-bit units are multiplied by this: above 1 only what clearly wins stays 8-bit.
        joined: See `units_of`.

    Returns:
        The units that stay float, and the microseconds the split is predicted to take.
    """
    units = units_of(graph, choice, times, joined=joined)
    network = _borders(graph, choice, units, times)
    for index, unit in enumerate(units):
        network.add_edge(_INTEGER, index, capacity=unit.float_us)
        network.add_edge(index, _FLOAT, capacity=unit.integer_us * caution)
        network.add_edges_from((index, need) for need in unit.needs)  # without a capacity: infinite
    time, (_, floats) = nx.minimum_cut(network, _INTEGER, _FLOAT)
    names = {name for index, unit in enumerate(units) if index in floats for name in unit.nodes}
    stay = names
    while fused := _fused(graph, choice, stay):
        stay = stay - fused
    if stay != names:
        time = predicted(graph, choice, times, stay)
    return [unit for unit in units if unit.nodes[0] in stay], float(time)


def _fused(graph: onnx.GraphProto, choice: Choice, floats: Collection[str]) -> set[str]:
    """What of the nodes that should stay float onnxruntime computes in 8 bits all the same, for all around it has such."""
    integers = set(choice.nodes) - set(floats)
    constants = {entry.name for entry in graph.initializer}
    outputs = {output.name for output in graph.output}
    makers = {name: node.name for node in graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    return {
        node.name
        for node in graph.node
        if node.name in floats
        and node.op_type in FUSED
        and all(makers.get(name) in integers for name in data_of(node) if name and name not in constants)
        and all(name not in outputs and readers.get(name, set()) <= integers for name in node.output)
    }


def predicted(graph: onnx.GraphProto, choice: Choice, times: Times, floats: Collection[str]) -> float:
    """Returns the microseconds a given split takes: the units of the nodes named stay float, and what needs these, the others do not."""
    units = units_of(graph, choice, times)
    network = _borders(graph, choice, units, times)
    for index, unit in enumerate(units):
        if any(units[each].nodes[0] in floats for each in (index, *unit.needs)):
            network.add_edge(_INTEGER, index, capacity=unit.float_us)
            network.add_edge(index, _FLOAT)  # without a capacity: infinite
        else:
            network.add_edge(_INTEGER, index)
            network.add_edge(index, _FLOAT, capacity=unit.integer_us)
    return float(nx.minimum_cut_value(network, _INTEGER, _FLOAT))


def _borders(graph: onnx.GraphProto, choice: Choice, units: Sequence[Unit], times: Times) -> nx.DiGraph:
    """Makes the network of what crossing from one side to the other costs, the units' own times left out."""
    network = nx.DiGraph()
    network.add_edge(_INTEGER, _FLOAT, capacity=0.0)
    owner = {name: index for index, unit in enumerate(units) for name in unit.nodes}
    products = {name for name, operator in choice.weighted.items() if operator in PRODUCTS}
    _add_conversions(network, graph, owner, times, products)
    return network


def _add_conversions(
    network: nx.DiGraph, graph: onnx.GraphProto, owner: Mapping[str, int], times: Times, products: set[str]
) -> None:
    """Lets every tensor that crosses from one side to the other cost its conversion, once for all its readers.

    What neither side computes but moves values (Concat, Reshape, …) takes the side that is cheaper. ``products`` put
    out floats by themselves.
    """
    free = {output for node in graph.node if node.name in products for output in node.output}
    makers: dict[str, object] = {}
    readers: dict[str, set[object]] = {}
    for node in graph.node:
        place: object = owner.get(node.name, ("moves", node.name) if node.op_type in MOVES else _FLOAT)
        for output in node.output:
            makers[output] = place
        for name in node.input:
            readers.setdefault(name, set()).add(place)
    constants = {entry.name for entry in graph.initializer}
    for output in graph.output:
        readers.setdefault(output.name, set()).add(_FLOAT)
    for tensor, users in readers.items():
        maker = makers.get(tensor, _FLOAT)
        if not tensor or tensor in constants or users == {maker}:
            continue
        cost = times.conversion(tensor)
        into, out = ("into", tensor), ("out", tensor)
        network.add_edge(into, maker, capacity=cost)
        network.add_edge(maker, out, capacity=0.0 if tensor in free else cost)
        for user in users:
            network.add_edge(user, into)
            network.add_edge(out, user)
