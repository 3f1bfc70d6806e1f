"""Blocks cover every weight once, compute together what the graph does, and meet where little passes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from grad import structures
from grad.structures import EVERY
from zoo import read

from surgeon.engine import analyse
from surgeon.errors import SurgeonError
from surgeon.grad.blocks import find_blocks, together
from surgeon.grad.parameters import parameters_of, weighted
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.schemas import opsets
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.shapes import infer
from surgeon.probes import probe_feeds
from surgeon.refit.turns import find_trainable

NAMES = list(EVERY)


def found(name, **options):
    model = EVERY[name](**options)
    graph = from_model(model)
    return model, graph, find_trainable(graph)


def block_graph(graph, block):
    kinds = infer(graph).dtypes

    def variable(name):
        return gs.Variable(name, onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))

    return gs.Graph(
        nodes=list(block.nodes),
        inputs=[variable(name) for name in block.reads],
        outputs=[variable(name) for name in block.makes],
        opset=graph.opset,
        import_domains=graph.import_domains,
    )


@pytest.mark.parametrize("name", NAMES)
def test_blocks_one_after_the_other_compute_what_the_graph_does(name):
    model, graph, blocks = found(name)
    composes(graph, blocks, structures.feeds(model))


def composes(graph, blocks, values):
    made = [tensor for block in blocks for tensor in block.makes]
    whole = session(with_outputs(to_model(graph), made))
    expected = dict(zip((o.name for o in whole.get_outputs()), run(whole, values), strict=True))
    for block in blocks:
        assert set(block.reads) <= values.keys(), "it reads what no block before it makes"
        assert block.makes
        results = run(session(to_model(block_graph(graph, block))), values)
        values |= dict(zip(block.makes, results, strict=True))
    for tensor in made:
        np.testing.assert_allclose(values[tensor], expected[tensor], rtol=1e-4, atol=1e-5)
    assert len(made) == len(set(made))


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_in_one_block(name):
    _, graph, blocks = found(name)
    versions = opsets(graph)
    homes = [node for block in blocks for node in block.nodes if weighted(node, versions)]
    assert len(homes) == len({id(node) for node in homes})
    assert {id(node) for node in homes} == {id(node) for node in graph.nodes if weighted(node, versions)}
    learned = set().union(*(parameters_of(block.nodes, versions) for block in blocks))
    assert learned == set(parameters_of(graph.nodes, versions))


@pytest.mark.parametrize("name", NAMES)
def test_a_block_has_at_least_two_weights(name):
    _, graph, blocks = found(name)
    counts = [sum(weighted(node, opsets(graph)) for node in block.nodes) for block in blocks]
    assert min(counts) >= 2


def test_a_chain_is_cut_anywhere():
    _, _, blocks = found("chain", length=8)
    assert len(blocks) == 4
    assert all(len(block.reads) == len(block.makes) == 1 for block in blocks)


def test_blocks_of_a_residual_network_are_its_own():
    _, _, blocks = found("residual")
    assert [block.makes for block in blocks] == [("s1",), ("s2",), ("s3",), ("d3",)]


def test_squeeze_and_excitation_stays_whole():
    _, _, blocks = found("squeezed")
    assert [block.makes for block in blocks] == [("s1",), ("s2",), ("s3",)]


@pytest.mark.parametrize("name", ["transformer", "padded"])
def test_attention_and_feed_forward_are_apart_and_masks_belong_to_nobody(name):
    _, _, blocks = found(name)
    assert [block.makes for block in blocks] == [("t0",), ("s1",), ("t1",), ("s2",)]
    assert all(block.reads for block in blocks)


def test_skips_cross_boundaries_and_are_read_where_they_are_needed():
    _, _, blocks = found("unet")
    (decoder,) = (block for block in blocks if any(node.op == "Concat" for node in block.nodes))
    assert any("d" in block.makes for block in blocks if block is not decoder) == ("d" in decoder.reads)


def test_concatenations_are_boundaries_of_one_tensor():
    _, _, blocks = found("dense")
    assert len(blocks) >= 3
    assert all(len(block.reads) == 1 for block in blocks)


def test_outputs_inside_are_what_a_block_makes():
    model, _, blocks = found("detector")
    made = {name for block in blocks for name in block.makes}
    # the sigmoid is behind the last weight of all
    assert made >= {"l1", "b2", "l2", "p2"}
    assert {output.name for output in model.graph.output} - made <= {"boxes"}


def test_integers_and_shapes_are_the_blocks_own():
    _, _, blocks = found("masked")
    assert [block.makes for block in blocks] == [("s1",), ("s2",), ("s3",), ("s4",), ("c4",)]
    assert [block.reads for block in blocks] == [("ids",), ("s1",), ("s2",), ("s1", "s3"), ("s4",)]
    assert sum(node.op == "ArgMax" for block in blocks for node in block.nodes) == 2
    _, _, blocks = found("transformer")
    for block in blocks:
        assert not any(name.startswith(("z", "front", "split", "join")) for name in block.reads)


def test_blocks_can_be_larger():
    graph = from_model(structures.chain(9))
    floats = {tensor.name for node in graph.nodes for tensor in node.outputs} | {"x"}
    assert len(find_blocks(graph, floats, fewest=4)) == 2
    assert len(find_blocks(graph, floats, fewest=9)) == 1


ZOO = (
    *("bert_tiny.dynamo", "fpn_retina.dynamo", "gru_crnn.legacy", "llama_tiny.dynamo", "mamba.dynamo"),
    *(
        "shufflenet_v2_x1_0.dynamo",
        "t5_tiny.dynamo",
        "torch_transformer_encoder.dynamo",
        "unet_upsample.legacy",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_blocks_of_real_networks_compute_what_the_network_does(name, shared):
    path = shared / "zoo" / f"{name}.onnx"
    graph = from_model(read(path), path)
    runner = session(to_model(graph))
    for values in probe_feeds(analyse(graph).analysis):
        try:
            run(runner, values)
        except SurgeonError:
            continue
        composes(graph, find_trainable(graph), dict(values))
        return
    raise AssertionError("no inputs are accepted")


def test_nothing_to_learn_is_no_block():
    from ops.oracle import build

    assert find_trainable(from_model(build("float[N,3] x", "float[N,3] y", "y = Relu (x)"))) == []
    one = build("float[N,3] x", "float[N,2] y", "m = MatMul (x, w)\ny = Relu (m)", {"w": (3, 2)})
    (block,) = find_trainable(from_model(one))
    assert block.makes == ("m",)


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_as_one_compute_what_they_do_one_by_one(name):
    model, graph, blocks = found(name)
    joined = [together(graph, blocks, start, start + 2) for start in range(0, len(blocks), 2)]
    composes(graph, joined, structures.feeds(model))
    versions = opsets(graph)
    for several, first in zip(joined, range(0, len(blocks), 2), strict=True):
        each = [node for block in blocks[first : first + 2] for node in block.nodes]
        assert {id(n) for n in several.nodes if weighted(n, versions)} == {
            id(n) for n in each if weighted(n, versions)
        }
