"""Convolutions and transposed convolutions as matrix products.

Both multiply, at every place of the output, what each kernel tap sees of the input there; they differ in where a tap
looks. A place is a sample and a position of the output; the inputs of the product are input channel times tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.stats.bias import Bias
from surgeon.stats.weight import weight_shape

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.ops import Op
    from surgeon.stats.linear import Read

    Array = NDArray[Any]
    Places = NDArray[np.int64]

MANY = 2  # below, fetching pixels channel by channel takes less time than laying out all of them


@dataclass(frozen=True)
class Convolution:
    """Conv of any rank with any number of groups, strides, dilations and pads."""

    op: Op
    weight = 1
    channel_axis = 1
    group_axes = ()

    @property
    def output(self) -> str:
        """The convolution's own output."""
        return str(self.op.node.outputs[0].name)

    @property
    def bias(self) -> Bias:
        """The optional third input."""
        return Bias(self.output, 2)

    @property
    def reads(self) -> tuple[str, ...]:
        """The data."""
        return (str(self.op.node.inputs[0].name),)

    @property
    def target_reads(self) -> tuple[str, ...]:
        """The output."""
        return (self.output,)

    def groups(self, node: gs.Node) -> int:
        """The attribute."""
        return int(node.attrs.get("group", 1))

    def bias_shape(self, node: gs.Node) -> tuple[int, ...]:
        """``[G*O]``."""
        return weight_shape(node.inputs[1])[:1]

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """``[G*O, I, taps]`` to ``[G, I*taps, O]``."""
        groups = self.groups(node)
        return values.reshape(groups, values.shape[0] // groups, -1).transpose(0, 2, 1)

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """``[G, I*taps, O]`` to ``[G*O, I, taps]``."""
        return matrices.transpose(0, 2, 1).reshape(shape)

    def count(self, read: Read) -> int:
        """Samples times output positions."""
        x = read(self.reads[0])
        return int(x.shape[0] * np.prod([len(table) for table in self._tables(x.shape[2:])]))

    def rows(self, node: gs.Node, read: Read, places: Places) -> Array:
        """What the taps see at ``places``."""
        x = read(node.inputs[0].name)
        return _patches(x, self._tables(x.shape[2:]), places, self.groups(node))

    def target(self, node: gs.Node, read: Read, places: Places) -> Array:
        """The output at ``places``."""
        return self.results(read(self.output), places, self.groups(node))

    def results(self, y: Array, places: Places, groups: int) -> Array:
        """Output channels at ``places``."""
        where = np.unravel_index(places, (y.shape[0], *y.shape[2:]))
        flat: Array = np.moveaxis(y, 1, -1)[tuple(where)]
        return flat.reshape(len(places), groups, y.shape[1] // groups).transpose(1, 0, 2)

    def _tables(self, sizes: tuple[int, ...]) -> list[Places]:
        """Per spatial axis the input position of each tap at each output position ``[out, taps]``, -1 for padding."""
        result = []
        for k, (size, taps) in enumerate(zip(sizes, self._kernel(), strict=True)):
            stride, dilation = self._each("strides", k), self._each("dilations", k)
            span = (taps - 1) * dilation + 1
            mode = self.op.attribute("auto_pad", "NOTSET")
            if mode in ("SAME_UPPER", "SAME_LOWER"):
                out = -(-size // stride)
                low = _head(max((out - 1) * stride + span - size, 0), upper=mode == "SAME_UPPER")
            else:
                low, high = self._pads(k)
                out = (size + low + high - span) // stride + 1
            seen = np.arange(out)[:, None] * stride + np.arange(taps) * dilation - low
            result.append(np.where((seen >= 0) & (seen < size), seen, -1))
        return result

    def _kernel(self) -> tuple[int, ...]:
        return self.op.dims(1)[2:]

    def _each(self, name: str, axis: int, default: int = 1) -> int:
        values = self.op.attribute(name)
        return int(values[axis]) if values else default

    def _pads(self, axis: int) -> tuple[int, int]:
        if self.op.attribute("auto_pad", "NOTSET") != "NOTSET":
            return 0, 0
        return self._each("pads", axis, 0), self._each("pads", axis + len(self._kernel()), 0)


@dataclass(frozen=True)
class TransposedConvolution(Convolution):
    """ConvTranspose: a tap sees an input only where the stride has put one."""

    def bias_shape(self, node: gs.Node) -> tuple[int, ...]:
        """``[G*O]``."""
        return (self.groups(node) * weight_shape(node.inputs[1])[1],)

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """``[G*I, O, taps]`` to ``[G, I*taps, O]``."""
        groups = self.groups(node)
        inner, outputs, taps = values.shape[0] // groups, values.shape[1], int(np.prod(values.shape[2:]))
        split = values.reshape(groups, inner, outputs, taps)
        return split.transpose(0, 1, 3, 2).reshape(groups, inner * taps, outputs)

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """``[G, I*taps, O]`` to ``[G*I, O, taps]``."""
        taps = int(np.prod(shape[2:]))
        split = matrices.reshape(len(matrices), shape[0] // len(matrices), taps, shape[1])
        return split.transpose(0, 1, 3, 2).reshape(shape)

    def _tables(self, sizes: tuple[int, ...]) -> list[Places]:
        """As https://onnx.ai/onnx/operators/onnx__ConvTranspose.html has it: input ``i`` goes to ``i*stride + tap``."""
        mode, wanted = self.op.attribute("auto_pad", "NOTSET"), self.op.attribute("output_shape")
        result = []
        for k, (size, taps) in enumerate(zip(sizes, self._kernel(), strict=True)):
            stride, dilation = self._each("strides", k), self._each("dilations", k)
            full = (size - 1) * stride + self._each("output_padding", k, 0) + (taps - 1) * dilation + 1
            if wanted or mode in ("SAME_UPPER", "SAME_LOWER"):
                out = int(wanted[k - len(sizes)]) if wanted else size * stride
                low = _head(max(full - out, 0), upper=mode == "SAME_UPPER")
                out = out if wanted else min(out, full)
            else:
                low, high = self._pads(k)
                out = full - low - high
            offset = np.arange(out)[:, None] + low - np.arange(taps) * dilation
            seen = offset // stride
            inside = (offset % stride == 0) & (seen >= 0) & (seen < size)
            result.append(np.where(inside, seen, -1))
        return result


def _head(total: int, *, upper: bool) -> int:
    """How much of the padding comes first; with ``upper`` the odd one comes last."""
    return total // 2 if upper else total - total // 2


def _patches(x: Array, tables: list[Places], places: Places, groups: int) -> Array:
    """Gathers ``[groups, places, channels * taps]`` from ``[N, groups * channels, spatial]``.

    Padding is zeros.
    """
    samples, channels, *sizes = x.shape
    first, *where = np.unravel_index(places, (samples, *map(len, tables)))
    index, inside = first[:, None], np.ones((len(places), 1), bool)
    for table, at, size in zip(tables, where, sizes, strict=True):
        here, taps = table[at][:, None, :], index.shape[1] * table.shape[1]
        index = (index[:, :, None] * size + here).reshape(len(places), taps)
        inside = (inside[:, :, None] & (here >= 0)).reshape(len(places), taps)
    seen = _pixels(x.reshape(samples, channels, -1), index, inside)
    split = seen.reshape(len(places), index.shape[1], groups, channels // groups)
    return split.transpose(2, 0, 3, 1).reshape(groups, len(places), channels // groups * index.shape[1])


def _pixels(x: Array, index: Places, inside: NDArray[np.bool_]) -> Array:
    """All channels ``[places, taps, channels]`` of pixels of ``x [samples, channels, positions]``, zeros where they are outside.

    A few pixels are fetched channel by channel. For many, all become rows of all channels first, so that each is one copy;
    what is outside is one more row.
    """
    samples, channels, positions = x.shape
    total = samples * positions
    if MANY * index.size < total:
        sample, position = np.divmod(np.where(inside, index, 0), positions)
        found = x[sample, :, position]
        found[~inside] = 0
        return found
    pixels = np.zeros((total + 1, channels), x.dtype)
    pixels[:-1].reshape(samples, positions, channels)[...] = np.moveaxis(x, 1, -1)
    return np.asarray(pixels[np.where(inside, index, total)])
