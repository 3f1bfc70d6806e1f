"""What weights take, against the same counted by hand."""

from __future__ import annotations

import gzip

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper as nh
from onnx import parser

import surgeon
from surgeon.graph.load import from_model
from surgeon.sizes import TensorSize, of_weights, weigh

RANDOM = np.random.default_rng(0)


def some(*shape, kind="f"):
    """Numbers of which about a half are zero."""
    values = RANDOM.integers(-9, 10, shape) * RANDOM.integers(0, 2, shape)
    return (values / 3 if kind == "f" else values).astype(kind)


def model(text, opset=21, **constants):
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    proto = parser.parse_model(head + text)
    for name, values in constants.items():
        proto.graph.initializer.append(
            values if isinstance(values, onnx.TensorProto) else nh.from_array(values, name)
        )
    return proto


def sizes_of(proto):
    return {each.name: each for each in of_weights(from_model(proto))}


def by_hand(name, numbers, zero, *stored):
    """The same from the numbers, what is zero, and the arrays in the file."""
    raw = b"".join(each.tobytes() for each in stored)
    return TensorSize(
        name=name,
        elements=numbers.size,
        nonzeros=sum(int(a) != int(b) if numbers.dtype.kind in "iu" else a != b
                     for a, b in zip(numbers.flat, np.broadcast_to(zero, numbers.shape).flat, strict=True)),
        distinct_values=len(set(numbers.flat)),
        bytes=len(raw),
        gzip_bytes=len(gzip.compress(raw, 9, mtime=0)),
    )  # fmt: skip


PLAIN = """
g (float["N",4,8,8] x, float[3,"N",5] s) => (float y, float z)
{
  c = Conv (x, w_conv, bias)
  t = ConvTranspose (c, w_transposed)
  f = Flatten (t)
  g = Gemm (f, w_gemm, bias2)
  y = MatMul (w_left, g)
  all1, h = LSTM <hidden_size = 6> (s, w_lstm, r_lstm, bias_lstm)
  all2, i = GRU <hidden_size = 6> (h, w_gru, r_gru)
  all3, z = RNN <hidden_size = 6> (i, w_rnn, r_rnn)
}
"""
WEIGHTS = {
    "w_conv": (6, 4, 3, 3), "w_transposed": (6, 2, 3, 3), "w_gemm": (128, 7), "w_left": (5, 2),
    "w_lstm": (1, 24, 5), "r_lstm": (1, 24, 6), "w_gru": (1, 18, 6), "r_gru": (1, 18, 6), "w_rnn": (1, 6, 6),
    "r_rnn": (1, 6, 6),
}  # fmt: skip
OTHERS = {"bias": (6,), "bias2": (7,), "bias_lstm": (1, 48)}


def test_every_weight_of_every_kind_and_nothing_else():
    weights = {name: some(*shape) for name, shape in WEIGHTS.items()}
    found = weigh(from_model(model(PLAIN, **weights, **{name: some(*s) for name, s in OTHERS.items()})))
    assert list(found.tensors) == [by_hand(name, values, 0.0, values) for name, values in weights.items()]
    assert found.total.elements == sum(values.size for values in weights.values())
    assert found.total.nonzeros == sum(int((values != 0).sum()) for values in weights.values())
    assert found.total.distinct_values == len({float(x) for values in weights.values() for x in values.flat})
    assert found.total.bytes == 4 * found.total.elements
    assert found.total.gzip_bytes == sum(each.gzip_bytes for each in found.tensors)
    assert found.total.sparsity == pytest.approx(1 - found.total.nonzeros / found.total.elements)


def test_as_json():
    found = weigh(
        from_model(
            model("g (float[1,2] x) => (float y) { y = MatMul (x, w) }", w=np.float32([[1, 0, 3], [0, 0, 0]]))
        )
    )
    facts = {"elements": 6, "nonzeros": 2, "sparsity": 2 / 3, "distinct_values": 3, "bytes": 24}
    facts["gzip_bytes"] = len(gzip.compress(np.float32([1, 0, 3, 0, 0, 0]).tobytes(), 9))
    assert found.to_json() == {"tensors": [{"name": "w", **facts}], "total": facts}


def test_no_weights_are_no_error():
    found = weigh(from_model(model("g (float[1,2] x) => (float y) { y = Relu (x) }")))
    assert found.to_json()["total"] == {
        "elements": 0, "nonzeros": 0, "sparsity": 0.0, "distinct_values": 0, "bytes": 0, "gzip_bytes": 0,
    }  # fmt: skip


def test_negative_zero_is_zero():
    values = np.float32([[0.0, -0.0], [1.0, -0.0]])
    found = sizes_of(model("g (float[1,2] x) => (float y) { y = MatMul (x, w) }", w=values))["w"]
    assert (found.nonzeros, found.distinct_values) == (1, 2)


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_floats_of_other_widths(kind):
    number = getattr(onnx.TensorProto, kind)
    dtype = oh.tensor_dtype_to_np_dtype(number)
    values = some(3, 4).astype(dtype)
    text = f"g ({kind.lower()}[1,3] x) => ({kind.lower()} y) {{ y = MatMul (x, w) }}"
    found = sizes_of(model(text, w=nh.from_array(values, "w")))["w"]
    assert found == by_hand("w", values.astype(np.float64), 0.0, values)


def test_integer_products_of_sizes_are_no_weights():
    text = "g (int64[1,2] x) => (int64 y) { y = MatMul (x, w) }"
    assert of_weights(from_model(model(text, w=some(2, 3, kind="int64")))) == []


def test_dequantized_weights_count_as_their_integers():
    text = """
    g (float["N",4,8,8] x) => (float y)
    {
      w = DequantizeLinear <axis = 0> (q, scale, zero)
      turned = Transpose <perm = [0, 1, 3, 2]> (w)
      y = Conv (x, turned, b)
    }
    """
    q, scale, zero = some(6, 4, 3, 2, kind="uint8"), np.float32([0.1] * 6), np.uint8([0, 1, 2, 3, 128, 0])
    found = sizes_of(model(text, q=q, scale=scale, zero=zero, b=some(6)))
    expected = by_hand("q", q, zero.reshape(6, 1, 1, 1), q, scale, zero)
    assert found == {"q": expected}


def test_four_bits_in_blocks():
    text = """
    g (float["N",8] x) => (float y)
    {
      w = DequantizeLinear <axis = 0, block_size = 4> (q, scale, zero)
      y = MatMul (x, w)
    }
    """
    q, zero = RANDOM.integers(0, 16, (8, 3)), RANDOM.integers(0, 16, (2, 3))
    packed = [oh.make_tensor(name, onnx.TensorProto.UINT4, values.shape, values.ravel())
              for name, values in (("q", q), ("zero", zero))]  # fmt: skip
    scale = np.ones((2, 3), np.float32)
    found = sizes_of(model(text, q=packed[0], scale=scale, zero=packed[1]))["q"]
    assert found.elements == 24
    assert found.nonzeros == int((q != np.repeat(zero, 4, axis=0)).sum())
    assert found.distinct_values == len(set(q.flat))
    assert found.bytes == 12 + 24 + 3


@pytest.mark.parametrize("shifted", [False, True])
def test_stored_integers_that_are_scaled(shifted):
    steps = "a = Cast <to = 1> (q) b = Sub (a, zero) w = Mul (b, scale)"
    steps = steps if shifted else "a = Cast <to = 1> (q) w = Mul (a, scale)"
    text = f"g (float['N',4] x) => (float y) {{ {steps} y = MatMul (x, w) }}".replace("'", '"')
    q, scale, zero = some(4, 3, kind="int8"), np.float32([1, 2, 3]), np.float32([0, 1, -1])
    constants = {"q": q, "scale": scale, **({"zero": zero} if shifted else {})}
    found = sizes_of(model(text, **constants))
    assert found["q"].nonzeros == int((q != (zero if shifted else 0)).sum())
    assert found["q"].distinct_values == len(set(q.flat))
    assert found["q"].bytes == sum(each.nbytes for each in constants.values())


def test_weights_in_a_table_count_as_what_is_found_there():
    text = """
    g (float["N",6] x) => (float y)
    {
      i = Cast <to = 6> (indices)
      w = Gather (table, i)
      y = MatMul (x, w)
    }
    """
    indices, table = RANDOM.integers(0, 3, (6, 50)).astype("uint8"), np.float32([0, 0.5, -2, 7])
    found = sizes_of(model(text, indices=indices, table=table))
    assert found == {"w": by_hand("w", table[indices], 0.0, indices, table)}
    assert found["w"].distinct_values == 3


def test_a_table_of_integers_that_are_dequantized():
    text = """
    g (float["N",6] x) => (float y)
    {
      i = Cast <to = 6> (indices)
      q = Gather (table, i)
      w = DequantizeLinear (q, scale, zero)
      y = MatMul (x, w)
    }
    """
    indices, table = RANDOM.integers(0, 4, (6, 50)).astype("uint8"), np.int8([0, 5, -2, 7])
    scale, zero = np.float32(0.1), np.int8(5)
    found = sizes_of(model(text, indices=indices, table=table, scale=scale, zero=zero))["w"]
    assert (found.nonzeros, found.distinct_values) == (int((indices != 1).sum()), 4)


INTEGER = {
    "q = ConvInteger (u, w, xz, wz) y = Cast <to = 1> (q)": ((6, 4, 3, 3), (6,), (6, 1, 1, 1)),
    "q = QLinearConv (u, xs, xz, w, ws, wz, ys, xz) y = Cast <to = 1> (q)": (
        (6, 4, 3, 3),
        (6,),
        (6, 1, 1, 1),
    ),
    "q = MatMulInteger (u, w, xz, wz) y = Cast <to = 1> (q)": ((8, 6), (6,), (6,)),
    "q = QLinearMatMul (u, xs, xz, w, ws, wz, ys, xz) y = Cast <to = 1> (q)": ((8, 6), (6,), (6,)),
    "y = com.microsoft.MatMulIntegerToFloat (u, w, xs, ws, xz, wz)": ((8, 6), (6,), (6,)),
    "y = com.microsoft.DynamicQuantizeMatMul (x, w, ws, wz)": ((8, 6), (6,), (6,)),
}


@pytest.mark.parametrize("text", INTEGER)
def test_operators_on_integers(text):
    shape, parameters, spread = INTEGER[text]
    w, wz = some(*shape, kind="uint8"), some(*parameters, kind="uint8")
    known = {
        "w": w,
        "wz": wz,
        "ws": np.ones(parameters, "f"),
        "xs": np.float32(1),
        "ys": np.float32(1),
        "xz": np.uint8(0),
    }
    used = {name: values for name, values in known.items() if f" {name}," in text or f" {name})" in text}
    start = "u = Cast <to = 2> (x)" if "(u," in text else ""
    proto = model(f'g (float["N",4,8,8] x) => (float y) {{ {start} {text} }}', **used)
    assert sizes_of(proto) == {"w": by_hand("w", w, wz.reshape(spread), w)}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bits=st.sampled_from([2, 4, 8]), rows=st.integers(1, 5), length=st.integers(1, 70), zeros=st.booleans()
)
def test_blocks_of_few_bits(bits, rows, length, zeros):
    block, random = 16, np.random.default_rng(rows * length)
    blocks = -(-length // block)
    numbers, points = (random.integers(0, 2**bits, (rows, size)) for size in (blocks * block, blocks))
    points = points if zeros else np.full((rows, blocks), 2 ** (bits - 1))

    def packed(values):
        lines = ["".join(f"{value:0{bits}b}"[::-1] for value in row) for row in values]
        padded = [line + "0" * (-len(line) % 8) for line in lines]
        return np.uint8([[int(line[k : k + 8][::-1], 2) for k in range(0, len(line), 8)] for line in padded])

    constants = {"w": packed(numbers).reshape(rows, blocks, -1), "s": np.ones((rows, blocks), "f")}
    if zeros:
        constants["z"] = packed(points)
    inputs = "x, w, s, z" if zeros else "x, w, s"
    attributes = f"K = {length}, N = {rows}, bits = {bits}, block_size = {block}"
    proto = model(
        f'g (float["N",{length}] x) => (float y) {{ y = com.microsoft.MatMulNBits <{attributes}> ({inputs}) }}',
        **constants,
    )
    found = sizes_of(proto)["w"]
    assert found.elements == rows * length
    used = numbers[:, :length]
    assert found.nonzeros == int((used != np.repeat(points, block, axis=1)[:, :length]).sum())
    assert found.distinct_values == len(set(used.flat))
    assert found.bytes == sum(each.nbytes for each in constants.values())


def test_a_shared_weight_counts_once():
    text = """
    g (float["N",4] x) => (float y)
    {
      a = MatMul (x, w)
      t = Transpose (w)
      y = MatMul (a, t)
    }
    """
    w = some(4, 3)
    assert sizes_of(model(text, w=w)) == {"w": by_hand("w", w, 0.0, w)}


BRANCHES = """
g (bool c, float["N",4] x) => (float["N",3] y)
{
  y = If (c) <
    then_branch = a () => (float["N",3] p) { v = Gather (table, i) p = MatMul (x, v) },
    else_branch = b () => (float["N",3] q) { u = Gather (table, i) n = Neg (x) q = MatMul (n, u) }
  >
}
"""


def test_a_weight_that_both_branches_compute_counts_once():
    table, i = np.float32([0, 1, 2]), RANDOM.integers(0, 3, (4, 3))
    found = of_weights(from_model(model(BRANCHES, table=table, i=i)))
    assert found == [by_hand("v", table[i], 0.0, table, i)]


def test_slices_of_one_constant_are_weights_of_their_own():
    text = """
    g (float["N",4] x) => (float y, float z)
    {
      v, u = Split <axis = 1, num_outputs = 2> (w)
      y = MatMul (x, v)
      z = MatMul (x, u)
    }
    """
    w = some(4, 6)
    found = weigh(from_model(model(text, w=w)))
    assert [(each.name, each.elements) for each in found.tensors] == [("v", 12), ("u", 12)]
    assert found.total.nonzeros == int((w != 0).sum())
    assert found.total.bytes == w.nbytes


def test_weights_in_a_file_of_their_own(tmp_path):
    w = some(300, 400)
    proto = model("g (float[1,300] x) => (float y) { y = MatMul (x, w) }", w=w)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    graph = surgeon.load(tmp_path / "m.onnx")
    assert of_weights(graph) == [by_hand("w", w, 0.0, w)]
    assert type(vars(graph.tensors()["w"])["_values"]).__name__ == "StoredValues"


def test_a_sparse_initializer_takes_what_is_in_the_file():
    values = some(20, 30) * (RANDOM.random((20, 30)) < 0.1)
    values = values.astype("f")
    places = nh.from_array(np.flatnonzero(values), "places")
    proto = model("g (float[1,20] x) => (float y) { y = MatMul (x, w) }")
    sparse = oh.make_sparse_tensor(nh.from_array(values[values != 0], "w"), places, values.shape)
    proto.graph.sparse_initializer.append(sparse)
    found = sizes_of(proto)["w"]
    assert (found.elements, found.nonzeros) == (600, int((values != 0).sum()))
    assert found.bytes == len(sparse.SerializeToString(deterministic=True)) < 600 * 4
