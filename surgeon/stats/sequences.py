"""The states of recurrent operators as tensors: named where nobody reads them, and computed anew for other weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.recurrent import GATES, X
from surgeon.stats.weight import weight_chain, weight_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.stats.linear import Read

    Array = NDArray[Any]

SUFFIX = "/surgeon/sequence"


def name_of(node: gs.Node) -> str:
    """What reports call an operator: its name, or that of what it puts out first, whether its states are named now or not."""
    first = next((str(tensor.name) for tensor in node.outputs if tensor.name), "")
    return str(node.name or first.removesuffix(SUFFIX))


@contextmanager
def named_sequences(analysis: Analysis, *others: gs.Graph) -> Iterator[None]:
    """Recurrent operators whose states nobody reads give them a name meanwhile, the same in all graphs.

    Outside of it such operators have no views. The types of the names are entered into the analysis' shapes and stay
    there.

    Args:
        analysis: Of the original.
        others: Graphs that were cut out of it.
    """
    with naming_sequences(analysis.graph, *others) as named:
        dtypes = analysis.shapes.dtypes
        for node in named:
            dtypes[node.outputs[0].name] = dtypes[node.inputs[X].name]
        yield


@contextmanager
def naming_sequences(*graphs: gs.Graph) -> Iterator[list[gs.Node]]:
    """The same for graphs that nobody has inferred the shapes of; yields the operators."""
    named: list[gs.Node] = []
    for node in (node for graph in graphs for node in graph.nodes):
        if node.op in GATES and not node.domain and node.outputs and not node.outputs[0].name:
            other = next((tensor.name for tensor in node.outputs if tensor.name), "")
            node.outputs[0] = gs.Variable(other + SUFFIX)
            named.append(node)
    try:
        yield named
    finally:
        for node in named:
            node.outputs[0] = gs.Variable.empty()


def rerun(node: gs.Node, graph: gs.Graph, *, threads: int = 1) -> Callable[[Read], Array]:
    """The states of one recurrent operator with the weights it has now, without running its graph again.

    A replay runs every node once; who changes the weights of the inputs needs the states they lead to before the
    weights of the states can be fitted.

    Args:
        node: The operator; its first output has a name.
        graph: The graph it is in.
        threads: Threads for onnxruntime.

    Returns:
        A function that computes the first output from the operator's inputs, given what reads them.
    """
    fed = {
        tensor.name: tensor for tensor in node.inputs if tensor.name and not isinstance(tensor, gs.Constant)
    }

    def feed(read: Read) -> dict[str, Array]:
        return {
            name: read(name) if weight_chain(tensor) is None else weight_values(tensor)
            for name, tensor in fed.items()
        }

    runner = None

    def states(read: Read) -> Array:
        nonlocal runner
        arrays = feed(read)
        if runner is None:
            piece = gs.Graph(
                nodes=[node],
                inputs=[gs.Variable(name, dtype=array.dtype) for name, array in arrays.items()],
                outputs=[gs.Variable(node.outputs[0].name, dtype=arrays[node.inputs[X].name].dtype)],
                opset=graph.opset,
                import_domains=graph.import_domains,
            )
            runner = session(to_model(piece), threads=threads)
        return run(runner, arrays)[0]

    return states
