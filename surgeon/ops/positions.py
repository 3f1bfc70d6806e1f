"""Operators for which positions have a meaning: they stay whole, as far as the operator looks at them."""

from __future__ import annotations

import numpy as np

from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule

WHOLE = {
    "NonMaxSuppression": "boxes are chosen by their position",
    "Unique": "equal slices are merged",
    "Multinomial": "classes are drawn by their position",
    "Bernoulli": "other random numbers would be drawn",
    "RandomNormal": "other random numbers would be drawn",
    "RandomNormalLike": "other random numbers would be drawn",
    "RandomUniform": "other random numbers would be drawn",
    "RandomUniformLike": "other random numbers would be drawn",
    "NegativeLogLikelihoodLoss": "classes are chosen by their position",
    "SoftmaxCrossEntropyLoss": "classes are chosen by their position",
    "EyeLike": "rows and columns that meet",
    "HannWindow": "a window",
    "HammingWindow": "a window",
    "BlackmanWindow": "a window",
    "MelWeightMatrix": "a table of frequencies",
    "TfIdfVectorizer": "words are counted by their position",
}

# what a rule cannot say anything about, and why
UNKNOWN = {
    "ImageDecoder": "an encoded image is a string of bytes",
    "StringConcat": "strings",
    "StringNormalizer": "strings",
    "StringSplit": "strings",
    "RegexFullMatch": "strings",
    "SequenceMap": "a sequence of tensors",
    **dict.fromkeys(
        [
            *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
            *("SequenceLength", "SplitToSequence", "ConcatFromSequence"),
        ],
        "a sequence of tensors, each of which may have a shape of its own",
    ),
    **dict.fromkeys(["Optional", "OptionalGetElement", "OptionalHasElement"], "a tensor that may be missing"),
}


@rule(*WHOLE)
def whole(op: Op, *inputs: Axes | None) -> list[Axes]:
    """Nothing of it can go."""
    why = WHOLE[op.node.op]
    for axes in inputs:
        op.pin(axes or (), why)
    return [
        op.fixed_output(why, index) if tensor.name else [] for index, tensor in enumerate(op.node.outputs)
    ]


@rule(*UNKNOWN, needs_shapes=False)
def unknown(op: Op, *inputs: Axes | None) -> list[Axes]:
    """A barrier that says why it is one."""
    del inputs
    raise Barrier(UNKNOWN[op.node.op])


@rule("Det")
def det(op: Op, x: Axes) -> list[Axes]:
    """One number for each matrix in the last two axes."""
    op.pin(x[-2:], "rows and columns of a matrix")
    return [x[:-2]]


@rule("DFT")
def dft(op: Op, x: Axes, dft_length: Axes | None = None, axis: Axes | None = None) -> list[Axes]:
    """One axis, before the last, is transformed; the last holds real and imaginary parts."""
    del dft_length, axis
    given = op.value(2) if op.has(2) else np.asarray(op.attribute("axis", -2))
    if given is None:
        raise Barrier("the transformed axis is computed while the model runs")
    place = int(given.item()) % len(x)
    op.pin((x[place], x[-1]), "a signal")
    out = op.fixed_output("a signal")
    op.zeros(factors=[0])
    return [[out[k] if k in (place, len(x) - 1) else known for k, known in enumerate(x)]]


@rule("STFT")
def stft(op: Op, signal: Axes, *frames: Axes | None) -> list[Axes]:
    """Frames of a signal and their frequencies."""
    op.pin(signal[1:], "a signal")
    for axes in frames:
        op.pin(axes or (), "a window")
    return [[signal[0], *op.fixed_output("a signal")[1:]]]


@rule("ReverseSequence")
def reverse_sequence(op: Op, x: Axes, sequence_lens: Axes) -> list[Axes]:
    """The first positions of the time axis are turned around, as many as the batch axis says."""
    batch, time = op.attribute("batch_axis", 1), op.attribute("time_axis", 0)
    op.unify(x[batch], sequence_lens[0])
    op.pin(x[time], "positions in time")
    op.zeros(factors=[0])
    return [x]


@rule("Compress")
def compress(op: Op, x: Axes, condition: Axes) -> list[Axes]:
    """Flags select positions of ``axis``, or of the flat tensor; how many is known when the model runs."""
    axis = op.attribute("axis")
    chosen = range(len(x)) if axis is None else [axis % len(x)]
    op.pin((*condition, *(x[k] for k in chosen)), "selected by flags")
    out = op.fixed_output("selected by flags")
    op.zeros(factors=[0])
    return [out if axis is None else [out[k] if k in chosen else known for k, known in enumerate(x)]]


@rule("TensorScatter", since=24)
def tensor_scatter(op: Op, past_cache: Axes, update: Axes, write_indices: Axes | None = None) -> list[Axes]:
    """Positions of ``axis`` are written, from an index for each sample on."""
    axis = op.attribute("axis", -2) % len(past_cache)
    for k, (whole_axis, written) in enumerate(zip(past_cache, update, strict=True)):
        if k == axis:
            op.pin((whole_axis, written), "written by index")
        else:
            op.unify(whole_axis, written)
    for index in write_indices or ():
        op.unify(index, past_cache[0])
    op.zeros(terms=[0, 1])
    return [past_cache]
