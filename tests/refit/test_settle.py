"""Rounding the weights of whole graphs anew: every kind of operator gets nearer to the float model, on its grid."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ops.oracle import build
from refit import networks
from refit.rounded import rounded, stored

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.reference import Reference
from surgeon.refit.constrained import Unconstrained, fit_constrained
from surgeon.refit.fit import Effort, Sample
from surgeon.refit.gptq import round_again
from surgeon.refit.settle import settle


def images(middle, spatial=(6, 6), **weights):
    """A convolution and a Relu before ``middle``, which makes ``y`` of ``r`` ``[N, 8, ...]``."""
    sizes, taps = ",".join(map(str, spatial)), (1,) * len(spatial)
    outs = ",".join(f"o{k}" for k in range(len(spatial)))
    return build(
        f"float[N,3,{sizes}] x", f"float[N,c,{outs}] y", f"a = Conv (x, w1, b1) r = Relu (a) {middle}",
        {"w1": (8, 3, *taps), "b1": (8,), **weights},
    )  # fmt: skip


def rows(middle, **weights):
    """A product and a Relu before ``middle``, which makes ``y`` of ``r`` ``[N, 4, 12]``."""
    body = f"a = MatMul (x, w1) r = Relu (a) {middle}"
    return build("float[N,4,6] x", "float[N,p,c] y", body, {"w1": (6, 12), **weights})


def flat(middle, **weights):
    return build("float[N,6] x", "float[N,c] y", f"a = Gemm (x, w1, b1) r = Relu (a) {middle}",
                 {"w1": (6, 12), "b1": (12,), **weights})  # fmt: skip


CASES = {
    "strided": images("y = Conv <strides=[2,2], pads=[1,1,1,1]> (r, w2, b2)", w2=(5, 8, 3, 3), b2=(5,)),
    "one axis": images("y = Conv <strides=[2]> (r, w2)", spatial=(15,), w2=(5, 8, 3)),
    "grouped": images("y = Conv <group=4> (r, w2)", w2=(8, 2, 3, 3)),
    "depthwise": images("d = Conv <group=8, pads=[1,1,1,1]> (r, w2, b2) s = Relu (d) y = Conv (s, w3)",
                        w2=(8, 1, 3, 3), b2=(8,), w3=(5, 8, 1, 1)),
    "transposed": images("y = ConvTranspose <strides=[2,2], pads=[1,0,0,1]> (r, w2, b2)", w2=(8, 5, 3, 3), b2=(5,)),
    "grouped transposed": images("y = ConvTranspose <strides=[2,2], group=4> (r, w2)", w2=(8, 2, 2, 2)),
    "Gemm": flat("y = Gemm (r, w2, b2)", w2=(12, 5), b2=(5,)),
    "Gemm transB": flat("y = Gemm <transB=1, alpha=0.5, beta=2.0> (r, w2, b2)", w2=(5, 12), b2=(5,)),
    "MatMul": rows("m = MatMul (r, w2) y = Add (m, b2)", w2=(12, 5), b2=(5,)),
    "MatMul, nothing added": rows("y = MatMul (r, w2)", w2=(12, 5)),
    "weight on the left": rows("t = Transpose <perm=[0,2,1]> (r) y = MatMul (w2, t)", w2=(5, 12)),
    "batched": rows("t = Transpose <perm=[1,0,2]> (r) m = MatMul (t, w2) y = Transpose <perm=[1,0,2]> (m)",
                    w2=(4, 12, 5)),
    "residual": images("d = Conv <pads=[1,1,1,1]> (r, w2) s = Add (d, r) y = Relu (s)", w2=(8, 8, 3, 3)),
}  # fmt: skip


def named(source):
    """A copy, whose nodes have names."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    for k, node in enumerate(model.graph.node):
        node.name = node.name or f"n{k}"
    return model


def data(model, seed, count=64):
    """Inputs whose entries go together."""
    dims = [each.dim_value or count for each in model.graph.input[0].type.tensor_type.shape.dim]
    random = np.random.default_rng(seed)
    common = random.standard_normal((dims[0], 1, *dims[2:]))
    return (common + 0.5 * random.standard_normal(dims)).astype(np.float32)


def error(model, other, x):
    one, two = networks.outputs(model, x), networks.outputs(other, x)
    return float(np.square(one - two).sum() / np.square(one - one.mean(axis=0)).sum())


def again(model, quantized, x, **options):
    graph = from_model(quantized)
    found = round_again(
        graph, Reference(from_model(model)), [{"x": part} for part in np.split(x, 8)], **options
    )
    return found, to_model(graph)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_operator_gets_nearer(case):
    model = named(CASES[case])
    quantized = rounded(model)
    found, result = again(model, quantized, data(model, 1, 256))
    assert found.left == {}
    weighted = [n.name for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert list(found.errors) == weighted
    assert all(after <= before for before, after in found.errors.values())
    before, after = stored(quantized), stored(result)
    assert before.keys() == after.keys()
    for name, integers in after.items():
        assert np.abs(integers).max() <= np.abs(before[name]).max()
    fresh = data(model, 2)
    assert error(model, result, fresh) < 0.75 * error(model, quantized, fresh)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 3), ("uint8", 4), ("int4", 4), ("uint4", 4)])
@pytest.mark.parametrize("block", [0, 5])
def test_types_and_blocks(kind, bits, block):
    model = named(CASES["MatMul"])
    # onnxruntime fuses products with rounded inputs and blocks of 8-bit weights into a kernel that refuses blocks
    quantized = rounded(model, kind=kind, bits=bits, block=block, activations=not block)
    found, result = again(model, quantized, data(model, 1, 256))
    assert found.left == {}
    most = 2 ** (bits - 1) - 1
    zero = most + 1 if kind.startswith("u") else 0
    for name, integers in stored(result).items():
        assert np.abs(integers - zero).max() <= most, name
    parameters = [e for e in result.graph.initializer if e.name.endswith(("/scale", "/zero"))]
    assert parameters == [e for e in quantized.graph.initializer if e.name.endswith(("/scale", "/zero"))]
    fresh = data(model, 2)
    assert error(model, result, fresh) < 0.8 * error(model, quantized, fresh)


def test_plain_rounding_of_the_original_is_what_is_there():
    """The weights that the sweep starts from, and pulls towards, are those of the two graphs."""
    model = named(CASES["depthwise"])
    quantized = rounded(model)
    seen = []

    class Seen(Unconstrained):
        def __call__(self, ideal, hessian):
            seen.append(ideal)
            return ideal

    def constrain(view):
        return Seen()

    graph = from_model(quantized)
    effort = Effort(strengths=(1e9,), steps=0)  # so strong a pull that nothing else counts
    settle(graph, Reference(from_model(model)), [{"x": data(model, 1)}], constrain, effort=effort)
    for name, integers in stored(to_model(graph)).items():
        assert np.array_equal(integers, stored(quantized)[name])
    float_weights = networks.weights(model)
    assert np.allclose(seen[0][0, :-1], float_weights["w1"].reshape(8, 3).T, atol=1e-6)


class Worse(Unconstrained):
    """A constraint that nothing good can keep."""

    def __call__(self, ideal, hessian):
        return ideal + 1


def test_what_is_not_better_on_held_out_places_is_not_taken():
    random = np.random.default_rng(0)
    x = np.concatenate([random.standard_normal((1, 200, 4)), np.ones((1, 200, 1))], axis=2).astype(np.float32)
    start = random.standard_normal((1, 5, 3))
    sample = Sample(x, (x @ start).astype(np.float32), None, np.arange(200) >= 150)
    found = fit_constrained(sample, start, start, Worse(), Effort((1e-3,), 0))
    assert np.array_equal(found.weights, start)
    assert found.before == found.after


def test_what_is_left_alone_and_why():
    body = """
    a = Conv (x, w, b) r = Relu (a) c = Conv <pads=[0,0,0,0]> (r, v) d = Conv (c, v) e = Conv (d, u)
    y = Conv (e, z)
    """
    weights = {"w": (3, 3, 1, 1), "b": (3,), "v": (3, 3, 1, 1), "u": (3, 3, 1, 1), "z": (3, 3, 1, 1)}
    model = named(build("float[N,3,6,6] x", "float[N,3,6,6] y", body, weights))
    quantized = rounded(model)
    quantized.graph.node[-1].name = quantized.graph.node[-1].output[0] = "elsewhere"
    quantized.graph.output[0].name = "elsewhere"
    x = data(model, 1)
    graph = from_model(quantized)
    found = round_again(graph, Reference(from_model(model)), [{"x": x}], excluded=lambda name: name == "n4")
    assert found.left == {
        "n2": "its weight is shared",
        "n3": "its weight is shared",
        "n4": "excluded",
        "elsewhere": "the original has no such operator",
    }
    after, before = stored(to_model(graph)), stored(quantized)
    assert all(np.array_equal(after[name], before[name]) for name in ("v/q", "u/q", "z/q"))


def test_threads_change_nothing_and_little_memory_is_enough():
    model = named(networks.mixed())
    quantized = rounded(model)
    x = networks.images(64)
    results = [again(model, quantized, x, threads=threads, limit_bytes=2**31, seed=3) for threads in (1, 2)]
    assert results[0][1].SerializeToString() == results[1][1].SerializeToString()
    assert results[0][0].spilled == 0
    small, _ = again(model, quantized, x, limit_bytes=1000)
    assert small.spilled > 0
