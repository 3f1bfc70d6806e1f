"""Networks on which other structural pruners stop, break the model, or do nothing and say nothing.

Each test is one such defect, on the smallest network that shows it: what must go goes, the proof is exact, and the
result runs at every batch size.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ops.oracle import build, images, ints, reasons, solved

import surgeon
from surgeon.graph.sessions import run as run_session
from surgeon.graph.sessions import session
from surgeon.ops.registry import RULES


def prune(model, ratio: float = 0.5, **options):
    """Half of every axis goes; both factors of products where asked for."""
    settings = "".join(f" {name}={value}" for name, value in options.items())
    return surgeon.run(model, [f"prune{{ratio={ratio}{settings}}}"], clean=False)


def fraction(result) -> float:
    return result.report["after"]["params"] / result.report["before"]["params"]


def outputs(model: onnx.ModelProto, **feeds) -> list[np.ndarray]:
    return run_session(session(model), feeds)


def assert_pruned(result, most: float, status: str = "exact") -> None:
    """The proof holds, no more than ``most`` of the parameters are left, and onnxruntime runs it."""
    certificate = result.report["certificate"]
    assert certificate["status"] == status
    assert certificate["probes"] >= 1
    assert fraction(result) <= most, result.report["groups"]
    onnx.checker.check_model(result.model)


def test_a_bias_shared_by_two_layers():
    """Exporters merge equal biases; cutting one layer must not change the other."""
    model = build(
        "float[N,3,8,8] x",
        "float[N,5,8,8] y",
        """
        a = Conv <pads=[1,1,1,1]> (x, w1, shared)
        b = Relu (a)
        c = Conv <pads=[1,1,1,1]> (b, w2, shared)
        d = Relu (c)
        e = Conv (d, w3, shared)
        f = Relu (e)
        y = Conv (f, w4)
        """,
        {
            "w1": (16, 3, 3, 3),
            "w2": (16, 16, 3, 3),
            "w3": (16, 16, 1, 1),
            "w4": (5, 16, 1, 1),
            "shared": (16,),
        },
    )
    result = prune(model)
    assert_pruned(result, 0.35)
    biases = {tuple(t.dims) for t in result.model.graph.initializer if len(t.dims) == 1}
    assert biases == {(8,)}
    assert result.report["groups"]["cut"] == 3


def test_a_bias_shared_by_a_layer_that_is_cut_and_one_that_is_not():
    model = build(
        "float[N,3,8,8] x",
        "float[N,16,8,8] y",
        "a = Conv (x, w1, shared)\nb = Relu (a)\ny = Conv (b, w2, shared)",
        {"w1": (16, 3, 1, 1), "w2": (16, 16, 1, 1), "shared": (16,)},
    )
    result = prune(model)
    assert_pruned(result, 0.65)
    (out,) = outputs(result.model, x=np.ones((2, 3, 8, 8), np.float32))
    assert out.shape == (2, 16, 8, 8)


def test_batch_normalization_that_is_not_folded():
    body = """
    n = BatchNormalization (a, s, o, m, v)
    r = Relu (n)
    c = Conv <pads=[1,1,1,1]> (r, w)
    k = BatchNormalization (c, s2, o2, m2, v2)
    b = Relu (k)
    """
    weights = {"w": (24, 12, 3, 3)}
    for suffix, size in (("", 12), ("2", 24)):
        weights |= {f"{name}{suffix}": (size,) for name in "som"}
        weights[f"v{suffix}"] = np.linspace(0.5, 2, size, dtype=np.float32)
    result = prune(images(body, 24, weights))
    assert_pruned(result, 0.35)
    assert [n.op_type for n in result.model.graph.node].count("BatchNormalization") == 2


def vision_transformer() -> onnx.ModelProto:
    """One block, exported with an open batch: shapes are read while the model runs."""
    return build(
        "float[N,3,8,8] x",
        "float[N,5] y",
        """
        p = Conv <kernel_shape=[4,4], strides=[4,4]> (x, w_patch, b_patch)
        ps = Shape (p)
        n0 = Gather (ps, i0)
        n = Unsqueeze (n0, zero)
        flat_shape = Concat <axis=0> (n, width, minus)
        flat = Reshape (p, flat_shape)
        t = Transpose <perm=[0,2,1]> (flat)
        cls_shape = Concat <axis=0> (n, one, width)
        cls = Expand (token, cls_shape)
        seq = Concat <axis=1> (cls, t)
        pos = Add (seq, positions)
        ln1 = LayerNormalization (pos, g1, h1)
        qkv = MatMul (ln1, w_qkv)
        qs = Shape (qkv)
        n1 = Gather (qs, i0)
        t1 = Gather (qs, i1)
        n2 = Unsqueeze (n1, zero)
        t2 = Unsqueeze (t1, zero)
        split = Concat <axis=0> (n2, t2, three, heads, each)
        five = Reshape (qkv, split)
        turned = Transpose <perm=[2,0,3,1,4]> (five)
        q = Gather <axis=0> (turned, i0)
        k = Gather <axis=0> (turned, i1)
        v = Gather <axis=0> (turned, i2)
        kt = Transpose <perm=[0,1,3,2]> (k)
        s = MatMul (q, kt)
        sc = Mul (s, scale)
        pr = Softmax <axis=-1> (sc)
        o = MatMul (pr, v)
        ot = Transpose <perm=[0,2,1,3]> (o)
        join = Concat <axis=0> (n2, t2, width)
        oj = Reshape (ot, join)
        out = MatMul (oj, w_out)
        r1 = Add (pos, out)
        ln2 = LayerNormalization (r1, g2, h2)
        m1 = MatMul (ln2, w_up)
        m2 = Add (m1, b_up)
        m3 = Gelu (m2)
        m4 = MatMul (m3, w_down)
        r2 = Add (r1, m4)
        first = Gather <axis=1> (r2, i0)
        y = Gemm <transB=1> (first, w_head, b_head)
        """,
        {
            "w_patch": (12, 3, 4, 4),
            "b_patch": (12,),
            "token": (1, 1, 12),
            "positions": (1, 5, 12),
            "i0": np.int64(0),
            "i1": np.int64(1),
            "i2": np.int64(2),
            "zero": ints(0),
            "one": ints(1),
            "width": ints(12),
            "minus": ints(-1),
            "three": ints(3),
            "heads": ints(2),
            "each": ints(6),
            "g1": (12,),
            "h1": (12,),
            "g2": (12,),
            "h2": (12,),
            "scale": np.float32(0.4),
            "w_qkv": (12, 36),
            "w_out": (12, 12),
            "w_up": (12, 48),
            "b_up": (48,),
            "w_down": (48, 12),
            "w_head": (5, 12),
            "b_head": (5,),
        },
    )


@pytest.mark.parametrize(("structural", "most"), [(False, 0.75), (True, 0.45)])
def test_a_vision_transformer_with_an_open_batch(structural, most):
    """Heads, head dimensions and the hidden layer go exactly; the normalised stream only when asked for."""
    result = prune(vision_transformer(), allow_structural=str(structural).lower())
    assert_pruned(result, most, "structural" if structural else "exact")
    for batch in (1, 3):
        (out,) = outputs(result.model, x=np.ones((batch, 3, 8, 8), np.float32))
        assert out.shape == (batch, 5)
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_grouped_query_attention_with_rotary_positions():
    body = """
    q0 = MatMul (x, wq)
    k0 = MatMul (x, wk)
    v0 = MatMul (x, wv)
    q1 = Reshape (q0, four)
    k1 = Reshape (k0, two)
    v1 = Reshape (v0, two)
    q2 = Transpose <perm=[0,2,1,3]> (q1)
    k2 = Transpose <perm=[0,2,1,3]> (k1)
    v2 = Transpose <perm=[0,2,1,3]> (v1)
    qa, qb = Split <axis=3> (q2, halves)
    qn = Neg (qb)
    qr = Concat <axis=3> (qn, qa)
    qc = Mul (q2, cosine)
    qs = Mul (qr, sine)
    q3 = Add (qc, qs)
    ka, kb = Split <axis=3> (k2, halves)
    kn = Neg (kb)
    kr = Concat <axis=3> (kn, ka)
    kc = Mul (k2, cosine)
    ks = Mul (kr, sine)
    k3 = Add (kc, ks)
    ku = Unsqueeze (k3, axis2)
    ke = Expand (ku, repeat)
    k4 = Reshape (ke, whole)
    vu = Unsqueeze (v2, axis2)
    ve = Expand (vu, repeat)
    v4 = Reshape (ve, whole)
    kt = Transpose <perm=[0,1,3,2]> (k4)
    s = MatMul (q3, kt)
    p = Softmax <axis=-1> (s)
    o = MatMul (p, v4)
    ot = Transpose <perm=[0,2,1,3]> (o)
    oj = Reshape (ot, join)
    y = MatMul (oj, wo)
    """
    weights = {
        "wq": (10, 32),
        "wk": (10, 16),
        "wv": (10, 16),
        "wo": (32, 10),
        "four": ints(0, 0, 4, 8),
        "two": ints(0, 0, 2, 8),
        "halves": ints(4, 4),
        "axis2": ints(2),
        "repeat": ints(1, 1, 2, 1, 1),
        "whole": ints(0, 4, -1, 8),
        "join": ints(0, 0, -1),
        "cosine": (7, 8),
        "sine": (7, 8),
    }
    result = prune(build("float[N,7,10] x", "float[N,7,10] y", body, weights))
    assert_pruned(result, 0.6)
    (out,) = outputs(result.model, x=np.ones((3, 7, 10), np.float32))
    assert out.shape == (3, 7, 10)


def test_external_data_by_path(tmp_path):
    body = "c = Conv (a, w)\nb = Relu (c)"
    source, target = tmp_path / "model.onnx", tmp_path / "small.onnx"
    onnx.save(
        images(body, 64, {"w": (64, 12, 1, 1)}),
        str(source),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "weights.bin" in before
    result = surgeon.run(source, ["prune{ratio=0.5}"], destination=target)
    assert_pruned(result, 0.35)
    assert run_session(session(target), {"x": np.ones((2, 5, 8, 6), np.float32)})[0].shape == (2, 3, 8, 6)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_shuffled_groups():
    """ShuffleNet: grouped 1x1, shuffle, depthwise, grouped 1x1, joined to the shortcut."""
    body = """
    c1 = Conv <group=2> (a, w1, v1)
    r1 = Relu (c1)
    s1 = Reshape (r1, split)
    s2 = Transpose <perm=[0,2,1,3,4]> (s1)
    s3 = Reshape (s2, join)
    c2 = Conv <group=16, pads=[1,1,1,1]> (s3, w2, v2)
    c3 = Conv <group=2> (c2, w3, v3)
    sum = Add (c3, a)
    b = Relu (sum)
    """
    weights = {
        "w1": (16, 8, 1, 1),
        "v1": (16,),
        "w2": (16, 1, 3, 3),
        "v2": (16,),
        "w3": (16, 8, 1, 1),
        "v3": (16,),
        "split": ints(0, 2, 8, 8, 6),
        "join": ints(0, 16, 8, 6),
    }
    result = prune(images(body, 16, weights, channels=16))
    assert_pruned(result, 0.6)


def test_shuffled_halves():
    """ShuffleNet V2: split, one half runs on, concat, shuffle — several units in a row."""
    units, previous, weights = (
        [],
        "a",
        {"halves": ints(8, 8), "split": ints(0, 2, 8, 8, 6), "join": ints(0, 16, 8, 6)},
    )
    for k in range(3):
        weights |= {f"w{k}a": (8, 8, 1, 1), f"w{k}b": (8, 1, 3, 3), f"w{k}c": (8, 8, 1, 1)}
        units.append(f"""
        p{k}, q{k} = Split <axis=1> ({previous}, halves)
        c{k} = Conv (q{k}, w{k}a)
        r{k} = Relu (c{k})
        d{k} = Conv <group=8, pads=[1,1,1,1]> (r{k}, w{k}b)
        e{k} = Conv (d{k}, w{k}c)
        f{k} = Relu (e{k})
        j{k} = Concat <axis=1> (p{k}, f{k})
        s{k} = Reshape (j{k}, split)
        t{k} = Transpose <perm=[0,2,1,3,4]> (s{k})
        u{k} = Reshape (t{k}, join)
        """)
        previous = f"u{k}"
    result = prune(images("\n".join([*units, f"b = Relu ({previous})"]), 16, weights, channels=16))
    assert_pruned(result, 0.65)


def test_cross_stage_blocks():
    """YOLO's C2f, whose split exporters write as slices with computed bounds."""
    body = """
    c0 = Conv (a, w0, v0)
    r0 = Relu (c0)
    s = Shape (r0)
    c = Gather (s, one)
    h = Div (c, two)
    p = Slice (r0, zero, h, one)
    q = Slice (r0, h, c, one)
    c1 = Conv <pads=[1,1,1,1]> (q, w1)
    r1 = Relu (c1)
    c2 = Conv <pads=[1,1,1,1]> (r1, w2)
    s1 = Add (q, c2)
    d = Concat <axis=1> (p, q, s1)
    e = Conv (d, w3)
    b = Relu (e)
    """
    weights = {
        "w0": (16, 12, 1, 1),
        "v0": (16,),
        "w1": (8, 8, 3, 3),
        "w2": (8, 8, 3, 3),
        "w3": (20, 24, 1, 1),
        "zero": ints(0),
        "one": ints(1),
        "two": ints(2),
    }
    result = prune(images(body, 20, weights))
    assert_pruned(result, 0.3)


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_two_bidirectional_recurrent_layers(op, gates):
    body = f"""
    h1 = {op} <hidden_size=8, direction="bidirectional"> (x, w1, r1, v1)
    t1 = Transpose <perm=[0,2,1,3]> (h1)
    f1 = Reshape (t1, join)
    h2 = {op} <hidden_size=8, direction="bidirectional"> (f1, w2, r2, v2)
    t2 = Transpose <perm=[0,2,1,3]> (h2)
    f2 = Reshape (t2, join)
    y = MatMul (f2, w)
    """
    weights = {"join": ints(0, 0, -1), "w": (16, 3)}
    for layer, inner in ((1, 5), (2, 16)):
        weights |= {
            f"w{layer}": (2, gates * 8, inner),
            f"r{layer}": (2, gates * 8, 8),
            f"v{layer}": (2, gates * 16),
        }
    result = prune(build("float[T,N,5] x", "float[T,N,3] y", body, weights))
    assert_pruned(result, 0.4)
    assert [a.i for n in result.model.graph.node for a in n.attribute if a.name == "hidden_size"] == [4, 4]


def test_global_response_normalisation():
    """ConvNeXt V2: the statistic over channels is rescaled, or the group says why it stays."""
    body = """
    t = Transpose <perm=[0,2,3,1]> (a)
    u = MatMul (t, w_up)
    p = Gelu (u)
    n = ReduceL2 <keepdims=1> (p, space)
    m = ReduceMean <keepdims=1> (n, last)
    e = Add (m, epsilon)
    r = Div (n, e)
    g = Mul (p, r)
    h = Mul (g, gamma)
    k = Add (h, beta)
    q = Add (k, p)
    d = MatMul (q, w_down)
    b = Transpose <perm=[0,3,1,2]> (d)
    """
    weights = {
        "w_up": (12, 48),
        "w_down": (48, 12),
        "gamma": (48,),
        "beta": (48,),
        "space": ints(1, 2),
        "last": ints(-1),
        "epsilon": np.float32(1e-3),
    }
    result = prune(images(body, 12, weights))
    assert_pruned(result, 0.35)


def test_instance_normalization():
    body = "n = InstanceNormalization (a, s, o)\nr = Relu (n)\nc = Conv (r, w)\nb = InstanceNormalization (c, s2, o2)"
    weights = {"s": (12,), "o": (12,), "w": (24, 12, 1, 1), "s2": (24,), "o2": (24,)}
    assert_pruned(prune(images(body, 24, weights)), 0.4)


def test_group_normalization():
    body = "n = GroupNormalization <num_groups=4> (a, s, o)\nr = Relu (n)\nb = Conv <pads=[1,1,1,1]> (r, w)"
    weights = {"s": (16,), "o": (16,), "w": (24, 16, 3, 3)}
    assert_pruned(prune(images(body, 24, weights, channels=16)), 0.35)


def test_nothing_to_remove_is_said():
    """No silent success: every axis is pinned here, and the error says what kind of thing pins it."""
    model = build("float[N,8] x", "float[N,4] y", "y = MatMul (x, w)", {"w": (8, 4)})
    with pytest.raises(surgeon.GateError) as caught:
        prune(model)
    assert "nothing" in str(caught.value).lower()


def test_nothing_to_remove_behind_an_unknown_operator_names_it(monkeypatch):
    model = build(
        "float[N,5] x",
        "float[N,3] y",
        "a = MatMul (x, w1)\nr = Softsign (a)\nb = Add (a, r)\ny = MatMul (b, w2)",
        {"w1": (5, 12), "w2": (12, 3)},
    )
    monkeypatch.delitem(RULES._rules, ("", "Softsign"))
    with pytest.raises(surgeon.GateError, match="nothing to do"):
        prune(model)
    assert "12: Softsign r: no rule for this operator" in reasons(solved(model))


def test_every_group_left_whole_has_a_reason():
    result = prune(vision_transformer())
    assert result.report["groups"]["whole"]
    for entry in result.report["groups"]["whole"]:
        assert entry["reason"]


def test_a_target_out_of_reach_is_said():
    with pytest.raises(surgeon.GateError, match="out of reach"):
        surgeon.run(vision_transformer(), ["prune{params=0.001}"])


def test_the_same_run_gives_the_same_bytes():
    first, second = (
        prune(vision_transformer()).model.SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second
