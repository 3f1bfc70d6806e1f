"""Networks of every shape that blocks have to be found in, small, as ONNX text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from ops.oracle import build

SAME = "<pads=[1,1,1,1]>"
KERNEL = (4, 4, 3, 3)
IMAGE = "float[N,4,8,8]"


def chain(length: int = 7) -> onnx.ModelProto:
    body = "\n".join(f"c{k} = Conv {SAME} (r{k}, w{k})\nr{k + 1} = Relu (c{k})" for k in range(length))
    body = f"r0 = Identity (x)\n{body}\ny = Identity (r{length})"
    return build(f"{IMAGE} x", f"{IMAGE} y", body, {f"w{k}": KERNEL for k in range(length)})


def residual(length: int = 4) -> onnx.ModelProto:
    body = "\n".join(
        f"a{k} = Conv {SAME} (s{k}, v{k})\nb{k} = Relu (a{k})\nc{k} = Conv {SAME} (b{k}, w{k})\n"
        f"d{k} = Add (c{k}, s{k})\ns{k + 1} = Relu (d{k})"
        for k in range(length)
    )
    body = f"s0 = Conv (x, w)\n{body}\ny = Identity (s{length})"
    return build(
        f"{IMAGE} x",
        f"{IMAGE} y",
        body,
        {"w": (4, 4, 1, 1)} | {f"{n}{k}": KERNEL for k in range(length) for n in ("v", "w")},
    )


def squeezed(length: int = 3) -> onnx.ModelProto:
    """Bottlenecks whose middle is scaled by what two products make of its mean."""
    body, weights = ["s0 = Conv (x, w)"], {"w": (4, 4, 1, 1)}
    for k in range(length):
        body.append(f"""
        a{k} = Conv (s{k}, u{k})
        b{k} = Relu (a{k})
        c{k} = Conv {SAME} (b{k}, v{k})
        g{k} = GlobalAveragePool (c{k})
        e{k} = Conv (g{k}, p{k})
        f{k} = Relu (e{k})
        h{k} = Conv (f{k}, q{k})
        i{k} = Sigmoid (h{k})
        j{k} = Mul (c{k}, i{k})
        l{k} = Conv (j{k}, w{k})
        s{k + 1} = Add (l{k}, s{k})""")
        weights |= {
            f"u{k}": (3, 4, 1, 1), f"v{k}": (3, 3, 3, 3), f"p{k}": (2, 3, 1, 1), f"q{k}": (3, 2, 1, 1),
            f"w{k}": (4, 3, 1, 1),
        }  # fmt: skip
    body.append(f"y = Identity (s{length})")
    return build(f"{IMAGE} x", f"{IMAGE} y", "\n".join(body), weights)


def transformer(length: int = 2, *, padded: bool = False) -> onnx.ModelProto:
    """Pre-norm, with heads cut out by the sizes that arrive; perhaps with a mask of minus infinities for all layers."""
    body: list[str] = ["s0 = MatMul (x, w)"]
    if padded:
        body.append(
            "gap = Sub (one, real)\ngaps = Unsqueeze (gap, middle)\nis = Greater (gaps, half)\nmask = Where (is, never, zero)"
        )
    weights: dict[str, Any] = {
        "heads": np.array([2, 4]), "flat": np.array([8]), "first": np.array([0]), "third": np.array([2]),
        "scale": np.float32(0.5), "w": (8, 8),
    }  # fmt: skip
    for k in range(length):
        body.append(f"""
        z{k} = Shape (s{k})
        front{k} = Slice (z{k}, first, third)
        split{k} = Concat <axis=0> (front{k}, heads)
        join{k} = Concat <axis=0> (front{k}, flat)
        n{k} = LayerNormalization (s{k}, g{k})
        q{k} = MatMul (n{k}, wq{k})
        k{k} = MatMul (n{k}, wk{k})
        v{k} = MatMul (n{k}, wv{k})
        qr{k} = Reshape (q{k}, split{k})
        kr{k} = Reshape (k{k}, split{k})
        vr{k} = Reshape (v{k}, split{k})
        qt{k} = Transpose <perm=[0,2,1,3]> (qr{k})
        kt{k} = Transpose <perm=[0,2,3,1]> (kr{k})
        vt{k} = Transpose <perm=[0,2,1,3]> (vr{k})
        qk{k} = MatMul (qt{k}, kt{k})
        sb{k} = Mul (qk{k}, scale)
        sc{k} = {"Add (sb" + str(k) + ", mask)" if padded else "Identity (sb" + str(k) + ")"}
        p{k} = Softmax (sc{k})
        o{k} = MatMul (p{k}, vt{k})
        ot{k} = Transpose <perm=[0,2,1,3]> (o{k})
        oj{k} = Reshape (ot{k}, join{k})
        op{k} = MatMul (oj{k}, wo{k})
        t{k} = Add (s{k}, op{k})
        m{k} = LayerNormalization (t{k}, h{k})
        u{k} = MatMul (m{k}, wu{k})
        ub{k} = Add (u{k}, bu{k})
        r{k} = Relu (ub{k})
        d{k} = MatMul (r{k}, wd{k})
        s{k + 1} = Add (t{k}, d{k})""")
        weights |= {f"{n}{k}": (8, 8) for n in ("wq", "wk", "wv", "wo")}
        weights |= {f"g{k}": (8,), f"h{k}": (8,), f"wu{k}": (8, 12), f"bu{k}": (12,), f"wd{k}": (12, 8)}
    body.append(f"y = Identity (s{length})")
    if not padded:
        return build("float[N,T,8] x", "float[N,T,8] y", "\n".join(body), weights)
    numbers = {"one": 1, "half": 0.5, "never": -np.inf, "zero": 0}
    weights |= {name: np.float32(number) for name, number in numbers.items()} | {"middle": np.array([1, 2])}
    return build("float[N,T,8] x, float[N,T] real", "float[N,T,8] y", "\n".join(body), weights)


def padded() -> onnx.ModelProto:
    return transformer(padded=True)


def unet() -> onnx.ModelProto:
    body = f"""
    a = Conv {SAME} (x, w1)
    b = Relu (a)
    c = Conv {SAME} (b, w2)
    d = Relu (c)
    e = MaxPool <kernel_shape=[2,2], strides=[2,2]> (d)
    f = Conv {SAME} (e, w3)
    g = Relu (f)
    h = Conv {SAME} (g, w4)
    i = Relu (h)
    j = ConvTranspose <strides=[2,2]> (i, w5)
    k = Concat <axis=1> (j, d)
    l = Conv {SAME} (k, w6)
    m = Relu (l)
    y = Conv {SAME} (m, w7)
    """
    weights = {f"w{k}": KERNEL for k in range(1, 8)} | {"w5": (4, 4, 2, 2), "w6": (4, 8, 3, 3)}
    return build(f"{IMAGE} x", f"{IMAGE} y", body, weights)


def dense(length: int = 5) -> onnx.ModelProto:
    body, weights = ["k0 = Identity (x)"], {}
    for k in range(length):
        body.append(
            f"c{k} = Conv {SAME} (k{k}, w{k})\nr{k} = Relu (c{k})\nk{k + 1} = Concat <axis=1> (k{k}, r{k})"
        )
        weights[f"w{k}"] = (2, 4 + 2 * k, 3, 3)
    body.append(f"t = Conv (k{length}, wt)\ny = Conv {SAME} (t, wy)")
    weights |= {"wt": (4, 4 + 2 * length, 1, 1), "wy": KERNEL}
    return build(f"{IMAGE} x", f"{IMAGE} y", "\n".join(body), weights)


def two_inputs() -> onnx.ModelProto:
    """A picture and a vector of another leading size, which meet late."""
    body = f"""
    a = Conv {SAME} (x, w1)
    b = Relu (a)
    c = Conv {SAME} (b, w2)
    g = GlobalAveragePool (c)
    f = Flatten (g)
    h = MatMul (v, w3)
    i = Relu (h)
    j = MatMul (i, w4)
    k = Add (f, j)
    l = MatMul (k, w5)
    y = MatMul (l, w6)
    """
    weights = {"w1": KERNEL, "w2": KERNEL, "w3": (5, 6), "w4": (6, 4), "w5": (4, 4), "w6": (4, 2)}
    return build(f"{IMAGE} x, float[1,5] v", "float[N,2] y", body, weights)


def detector() -> onnx.ModelProto:
    """A backbone whose features at two scales go into heads; one output lies in the middle of the graph."""
    body = f"""
    a = Conv {SAME} (x, w1)
    b = Relu (a)
    c = Conv {SAME} (b, w2)
    p1 = Relu (c)
    d = Conv <pads=[1,1,1,1], strides=[2,2]> (p1, w3)
    e = Relu (d)
    f = Conv {SAME} (e, w4)
    p2 = Relu (f)
    b1 = Conv (p1, h1)
    l1 = Conv (p1, h2)
    b2 = Conv (p2, h3)
    l2 = Conv (p2, h4)
    boxes = Sigmoid (b1)
    """
    weights = {f"w{k}": KERNEL for k in range(1, 5)} | {f"h{k}": (2, 4, 1, 1) for k in range(1, 5)}
    outputs = (
        "float[N,2,8,8] boxes, float[N,2,8,8] l1, float[N,2,4,4] b2, float[N,2,4,4] l2, float[N,4,4,4] p2"
    )
    return build(f"{IMAGE} x", outputs, body, weights)


def masked(length: int = 5) -> onnx.ModelProto:
    """Token numbers, and integers made of floats that blocks far apart read."""
    body, weights = ["s0 = Gather (table, ids)"], {"table": (9, 6), "far": np.float32(0.1)}
    for k in range(length):
        body.append(f"a{k} = MatMul (s{k}, v{k})\nb{k} = Relu (a{k})\nc{k} = MatMul (b{k}, w{k})")
        # the first is made of what a block puts out; and read again two blocks later
        if k == 1:
            body.append("top = ArgMax <axis=2, keepdims=1> (s1)")
        near = f"f{k} = Cast <to=1> (top)\ng{k} = Mul (f{k}, far)" if k in (1, 3) else f"g{k} = Relu (s{k})"
        body.append(f"{near}\ns{k + 1} = Add (c{k}, g{k})")
        weights |= {f"v{k}": (6, 6), f"w{k}": (6, 6)}
    body.append(f"y = Identity (s{length})")
    return build("int64[N,T] ids", "float[N,T,6] y", "\n".join(body), weights)


EVERY = {
    "chain": chain, "residual": residual, "squeezed": squeezed, "transformer": transformer, "padded": padded, "unet": unet,
    "dense": dense, "two_inputs": two_inputs, "detector": detector, "masked": masked,
}  # fmt: skip


def feeds(model: onnx.ModelProto, samples: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    result = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        sizes = {"N": samples, "T": 5}
        shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
        whole = kind.elem_type == onnx.TensorProto.INT64
        drawn = random.integers(0, 9, shape) if whole else random.standard_normal(shape).astype(np.float32)
        result[value.name] = drawn
    if "real" in result:
        result["real"] = (np.abs(result["real"]) < 1).astype(np.float32)
        result["real"][:, 0] = 1
    return result
