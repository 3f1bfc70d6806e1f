"""Attention as onnxruntime fuses it (com.microsoft): with its projection, packed, grouped, with caches."""

from __future__ import annotations

from surgeon.axes import Atom, Axis, Concat, product
from surgeon.ops.attention import Heads, biased, heads_of, rotate, scored
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule

DOMAIN = "com.microsoft"


@rule("Attention", domain=DOMAIN)
def attention(
    op: Op,
    input: Axes,  # noqa: A002  # named as onnxruntime names it
    weights: Axes,
    bias: Axes | None = None,
    mask_index: Axes | None = None,
    past: Axes | None = None,
    attention_bias: Axes | None = None,
    past_sequence_length: Axes | None = None,
) -> list[Axes]:
    """The input is projected to queries, keys and values, side by side in the columns of one weight."""
    del past_sequence_length
    sizes = op.attribute("qkv_hidden_sizes") or [weights[1].size // 3] * 3
    heads = _fused_heads(op, sizes, bound=past is not None or len(op.node.outputs) > 1)
    op.emit(lambda emitter: _emit_hidden_sizes(emitter, heads))
    op.zeros(terms=[1, 2])
    if mask_index is not None:
        op.pin(mask_index, "positions")
    outputs = project(op, heads, input, weights, (bias,), past)
    biased(op, attention_bias, heads.query, input[1])
    lengths = [op.refs(0, [1]), *([op.refs(4, [3])] if past is not None else [])]
    scored(op, heads, op.refs(0, [0, 1]), lengths)
    return outputs


def _fused_heads(op: Op, sizes: list[int], *, bound: bool) -> Heads:
    """Heads of a fused projection; where keys and values share a cache (``bound``) they have one ``head_dim``."""
    count = op.attribute("num_heads")
    if any(size % count for size in sizes) or sizes[0] != sizes[1]:
        raise Barrier(f"hidden sizes {sizes} do not fit {count} heads")
    dim: Axis = Atom(sizes[0] // count)
    if op.attribute("do_rotary", 0):
        dim = op.fixed(dim.size, "rotary positions computed in the kernel")
    heads = heads_of(op, count, count, dim, dim if bound else Atom(sizes[2] // count))
    op.resize_attribute("num_heads", heads.query)
    return heads


def _emit_hidden_sizes(emitter: Emitter, heads: Heads) -> None:
    sizes = [emitter.size(heads.hidden(part)) for part in ("query", "key", "value")]
    if "qkv_hidden_sizes" in emitter.node.attrs or len(set(sizes)) > 1:
        emitter.node.attrs["qkv_hidden_sizes"] = sizes


def project(
    op: Op, heads: Heads, x: Axes, weights: Axes, per_column: tuple[Axes | None, ...], past: Axes | None
) -> list[Axes]:
    """The input is contracted with ``[in, queries + keys + values]``; the cache is ``[2, batch, heads, length, dim]``."""
    columns = packed(heads)
    op.unify(x[-1], weights[0])
    op.unify(weights[1], columns)
    for vector in per_column:
        if vector and vector[-1].size == columns.size:
            op.unify(vector[-1], columns)
    op.contract(1, weights[0])
    op.multiply(op.refs(0), op.refs(1, [1]))
    op.pin(x[-2], "softmax axis")
    batch = x[0]
    if past is not None:
        for axis, known in zip((past[1], past[2], past[4]), (batch, heads.shared, heads.dim), strict=True):
            op.unify(axis, known)
    output = [*x[:-1], heads.hidden("output")]
    if len(op.node.outputs) == 1:
        return [output]
    cache = op.fixed_output("keys and values", 1)
    return [output, [cache[0], batch, heads.shared, cache[3], heads.dim]]


def packed(heads: Heads) -> Axis:
    """Queries, keys and values side by side."""
    return Concat([heads.hidden(part) for part in ("query", "key", "value")])


@rule("PackedAttention", domain=DOMAIN)
def packed_attention(
    op: Op,
    input: Axes,  # noqa: A002  # named as onnxruntime names it
    weights: Axes,
    bias: Axes,
    token_offset: Axes,
    cumulative_sequence_length: Axes,
    attention_bias: Axes | None = None,
) -> list[Axes]:
    """The same on the tokens of all sequences without their padding."""
    sizes = op.attribute("qkv_hidden_sizes") or [weights[1].size // 3] * 3
    heads = _fused_heads(op, sizes, bound=False)
    op.emit(lambda emitter: _emit_hidden_sizes(emitter, heads))
    op.pin((*token_offset, *cumulative_sequence_length), "positions")
    op.zeros(terms=[1, 2])
    outputs = project(op, heads, input, weights, (bias,), None)
    biased(op, attention_bias, heads.query)
    scored(op, heads, op.refs(0, [0]), [op.refs(3, [1])])
    return outputs


@rule("MultiHeadAttention", domain=DOMAIN)
def multi_head_attention(
    op: Op,
    query: Axes,
    key: Axes | None = None,
    value: Axes | None = None,
    bias: Axes | None = None,
    key_padding_mask: Axes | None = None,
    attention_bias: Axes | None = None,
    past_key: Axes | None = None,
    past_value: Axes | None = None,
    *rest: Axes | None,
) -> list[Axes]:
    """Queries, keys and values come projected, apart or packed in one tensor."""
    for axes in (key_padding_mask, *rest):
        op.pin(axes or (), "positions")
    past = (past_key, past_value)
    return _multi_head(op, query, key, value, bias, attention_bias, past, inputs=(3, 6, 7))


@rule("DecoderMaskedMultiHeadAttention", domain=DOMAIN)
def decoder_masked_multi_head_attention(
    op: Op,
    query: Axes,
    key: Axes | None = None,
    value: Axes | None = None,
    mask_index: Axes | None = None,
    attention_bias: Axes | None = None,
    past_key: Axes | None = None,
    past_value: Axes | None = None,
    past_sequence_length: Axes | None = None,
    beam_width: Axes | None = None,
    cache_indirection: Axes | None = None,
    bias: Axes | None = None,
) -> list[Axes]:
    """The same for a single new position."""
    for axes in (mask_index, past_sequence_length, beam_width, cache_indirection):
        op.pin(axes or (), "positions")
    past = (past_key, past_value)
    return _multi_head(op, query, key, value, bias, attention_bias, past, inputs=(10, 5, 6))


def _multi_head(
    op: Op,
    query: Axes,
    key: Axes | None,
    value: Axes | None,
    bias: Axes | None,
    attention_bias: Axes | None,
    past: tuple[Axes | None, Axes | None],
    inputs: tuple[int, int, int],
) -> list[Axes]:
    if len(query) != 3 or (key is not None and (value is None or len(key) not in (3, 4))):
        raise Barrier(
            "heads, queries, keys and values are packed in one axis each, which no CPU kernel reads"
        )
    count = op.attribute("num_heads")
    dim = Atom(query[2].size // count // (3 if key is None else 1))
    states = past[0] is not None or any(tensor.name for tensor in op.node.outputs[1:3])
    own = value is not None and len(value) == 3 and not states  # the kernel wants caches of one size
    heads = heads_of(op, count, count, dim, Atom(value[-1].size // count) if own and value else dim)
    op.resize_attribute("num_heads", heads.query)
    batch = query[0]
    if key is None or value is None:
        op.unify(query[2], packed(heads))
    else:
        op.unify(query[2], heads.hidden("query"))
        for part, axes in (("key", key), ("value", value)):
            if len(axes) == 3:
                op.unify(axes[2], heads.hidden(part))
            else:
                op.unify(axes[1], heads.shared)
                op.unify(axes[3], heads.dim if part == "key" else heads.value_dim)
            op.pin(axes[-2], "softmax axis")
    op.pin(query[1], "positions")
    if bias is not None:
        op.unify(bias[0], packed(heads))
    biased(op, attention_bias, heads.query, query[1])
    for cache, size in zip(past, (heads.dim, heads.value_dim), strict=True):
        if cache is not None:
            for axis, known in zip((cache[0], cache[1], cache[3]), (batch, heads.shared, size), strict=True):
                op.unify(axis, known)
    for index in (0, 1) if key is not None else (0,):
        op.contract(index, heads.dim)
    lengths = [op.refs(0, [1]) if key is None else op.refs(1, [1 if len(key) == 3 else 2])]
    lengths += [op.refs(inputs[1], [2])] if past[0] is not None else []
    scored(op, heads, op.refs(0, [0, 1]), lengths)
    op.zeros(terms=[0 if key is None else 2, inputs[0], inputs[2]], output=0)
    op.carry(inputs[1], 1)
    op.carry(inputs[2], 2)
    return [[*query[:2], heads.hidden("output")], *_caches(op, heads, batch)]


def _caches(op: Op, heads: Heads, batch: Axis) -> list[Axes]:
    """Keys and values so far and the scores, as far as the node gives them."""
    result: list[Axes] = []
    for index, dim in ((1, heads.dim), (2, heads.value_dim)):
        if index < len(op.node.outputs):
            named = bool(op.node.outputs[index].name)
            result.append([batch, heads.shared, op.fixed_output("positions", index)[2], dim] if named else [])
    if len(op.node.outputs) > 3:
        result.append([batch, heads.query, *op.fixed_output("positions", 3)[2:]])
    return result


@rule("PackedMultiHeadAttention", domain=DOMAIN)
def packed_multi_head_attention(
    op: Op,
    query: Axes,
    key: Axes | None,
    value: Axes | None,
    bias: Axes | None,
    token_offset: Axes,
    cumulative_sequence_length: Axes,
    attention_bias: Axes | None = None,
) -> list[Axes]:
    """The same on the tokens of all sequences without their padding; packed it is ``[tokens, heads, 3, head_dim]``."""
    count = op.attribute("num_heads")
    if key is None or value is None:
        dim: Axis = Atom(query[3].size)
        heads = heads_of(op, count, count, dim, dim)
        op.unify(query[1], heads.query)
        op.pin(query[2], "queries, keys and values")
        op.unify(query[3], dim)
    else:
        dim = Atom(query[1].size // count)
        heads = heads_of(op, count, count, dim, Atom(value[1].size // count))
        for part, axes in (("query", query), ("key", key), ("value", value)):
            op.unify(axes[1], heads.hidden(part))
            op.pin(axes[0], "softmax axis")
    op.resize_attribute("num_heads", heads.query)
    if bias is not None:
        op.unify(bias[0], packed(heads))
    op.pin((query[0], *token_offset, *cumulative_sequence_length), "positions")
    biased(op, attention_bias, heads.query)
    op.contract(0, dim)
    scored(op, heads, op.refs(0, [0]), [op.refs(4, [1])])
    op.zeros(terms=[0 if key is None else 2, 3])
    return [[query[0], heads.hidden("output")]]


@rule("GroupQueryAttention", domain=DOMAIN)
def group_query_attention(
    op: Op,
    query: Axes,
    key: Axes | None,
    value: Axes | None,
    past_key: Axes | None,
    past_value: Axes | None,
    seqlens_k: Axes,
    total_sequence_length: Axes,
    *rest: Axes | None,
) -> list[Axes]:
    """Heads shared by several queries; the kernel wants blocks of 8, with rotary of 16, and norms them if told to."""
    queries, shared = op.attribute("num_heads"), op.attribute("kv_num_heads")
    names = ("cos", "sin", "position_ids", "bias", "head_sink", "k_scale", "v_scale", "q_norm", "k_norm")
    given = dict(zip(names, rest, strict=False))
    size = query[2].size // (queries if key is not None else queries + 2 * shared)
    dim = _cached_dim(op, size, given)
    heads = heads_of(op, queries, shared, dim, dim)
    op.resize_attribute("num_heads", heads.query)
    op.resize_attribute("kv_num_heads", heads.shared)
    if key is None or value is None:
        op.unify(query[2], packed(heads))
    else:
        for part, axes in (("query", query), ("key", key), ("value", value)):
            op.unify(axes[2], heads.hidden(part))
            op.pin(axes[1], "positions")
    op.pin((query[1], *seqlens_k, *total_sequence_length, *(given.get("position_ids") or ())), "positions")
    for past in (past_key, past_value):
        if past is not None:
            for axis, known in zip((past[0], past[1], past[3]), (query[0], heads.shared, dim), strict=True):
                op.unify(axis, known)
    biased(op, given.get("bias"), heads.query, query[1])
    for sink in given.get("head_sink") or ():
        op.unify(sink, heads.query)
    for name in ("k_scale", "v_scale"):
        op.pin(given.get(name) or (), "scales of a quantized cache")
    op.contract(0, dim)
    lengths = [op.refs(0, [1]), *([op.refs(3, [2])] if past_key is not None else [])]
    scored(op, heads, op.refs(0, [0, 1]), lengths)
    op.zeros(terms=[0 if key is None else 2, 4], output=0)
    op.carry(3, 1)
    op.carry(4, 2)
    return [[*query[:2], heads.hidden("output")], *_caches(op, heads, query[0])]


def _cached_dim(op: Op, size: int, given: dict[str, Axes | None]) -> Axis:
    """``head_dim`` in blocks as the kernel wants them; statistics or a partial rotation keep it whole."""
    cos, sin = given.get("cos"), given.get("sin")
    if cos is None or sin is None:
        if given.get("q_norm") is None and size % 8 == 0:
            return product(Atom(size // 8), op.fixed(8, "blocks of 8, as the kernel wants"))
        return op.fixed(size, "statistics of each head")
    op.pin((cos[0], sin[0]), "positions")
    if given.get("q_norm") is not None or 2 * cos[1].size != size or size % 16:
        op.pin((cos[1], sin[1]), "statistics of each head, or only part of it is rotated")
        return op.fixed(size, "statistics of each head, or only part of it is rotated")
    half = product(Atom(size // 16), op.fixed(8, "blocks of 8, as the kernel wants"))
    op.unify(cos[1], half)
    op.unify(sin[1], half)
    return (
        product(half, op.fixed(2, "pairs")) if op.attribute("rotary_interleaved", 0) else Concat((half, half))
    )


@rule("RotaryEmbedding", domain=DOMAIN)
def rotary_embedding(
    op: Op,
    input: Axes,  # noqa: A002  # named as onnxruntime names it
    position_ids: Axes,
    cos_cache: Axes,
    sin_cache: Axes,
) -> list[Axes]:
    """As the standard operator, with positions second; without ``num_heads`` the caches say how large a head is."""
    return rotate(op, input, cos_cache, sin_cache, position_ids, op.attribute("num_heads", 0))


@rule("LinearAttention", domain=DOMAIN)
@rule("LinearAttention", since=27)
def linear_attention(
    op: Op,
    query: Axes,
    key: Axes,
    value: Axes,
    past_state: Axes | None = None,
    decay: Axes | None = None,
    beta: Axes | None = None,
) -> list[Axes]:
    """A recurrence over a state ``[batch, heads, key dim, value dim]``; only equal counts of heads are followed."""
    count = op.attribute("kv_num_heads")
    if count != op.attribute("q_num_heads") or op.attribute("state_window", 0):
        raise Barrier("heads shared by queries, or a window of states")
    heads = heads_of(op, count, count, Atom(query[2].size // count), Atom(value[2].size // count))
    for part, axes in (("query", query), ("key", key), ("value", value)):
        op.unify(axes[2], heads.hidden(part))
        op.pin(axes[1], "positions")
    for gate in (decay, beta):
        if gate is not None and gate[2].size != 1:
            op.unify(gate[2], heads.shared if gate[2].size == count else heads.hidden("key"))
    state = [query[0], heads.shared, heads.dim, heads.value_dim]
    for axis, known in zip(past_state or (), state, strict=False):
        op.unify(axis, known)
    op.carry(3, 1)
    op.resize_attribute("q_num_heads", heads.shared)
    op.resize_attribute("kv_num_heads", heads.shared)
    op.contract(0, heads.dim)
    for _ in range(2):
        op.multiply(op.refs(0, [0, 1]), [heads.shared, heads.dim, heads.value_dim])
    return [[*query[:2], heads.hidden("output")], state]
