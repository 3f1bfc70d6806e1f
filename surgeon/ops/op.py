"""What a rule sees of its operator, and what it can state about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from surgeon.axes import ONE, Atom, Axis, Pin, normal, pin, unify
from surgeon.ops.operator import Barrier, Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_graphsurgeon as gs

    from surgeon.graph.shapes import Shapes
    from surgeon.ops.emit import Emitter

Axes: TypeAlias = "list[Axis]"
LONGEST = 1 << 24  # indices; the widest layers of known networks have a few hundred thousand
SolveBody: TypeAlias = "Callable[[Op, str, Sequence[Axes | None]], list[Axes | None]]"


@dataclass(frozen=True)
class Ref:
    """One axis of one tensor, by name: its size can be looked up in any table of shapes."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Reduction:
    """A statistic taken over an axis: exact after a cut only if what is removed is zero (``exact_on_zeros``)."""

    tensor: str
    axis: Axis
    why: str
    exact_on_zeros: bool


@dataclass(frozen=True)
class Quantized:
    """Where the meaning of an input's integers is: the inputs that hold its zero point (None: zero) and its scale.

    Either holds one value, one per position of ``axis``, or (with the input's rank) one per block.
    """

    zero_point: int | None
    scale: int | None
    axis: int


@dataclass(frozen=True)
class Zeros:
    """When an output is zero: where one of the ``factors`` is and all of the ``terms`` are (input indices).

    With ``parts`` the inputs lie side by side in the output instead; ``always`` it is zero whatever the inputs are.
    """

    factors: tuple[int, ...]
    terms: tuple[int, ...]
    parts: bool = False
    always: bool = False


@dataclass
class Facts:
    """Everything a rule stated that is needed after the axes are solved.

    Attributes:
        macs: Products of axes; the operator's multiply-accumulates are their sum. An axis that belongs to no tensor
            stands for itself.
        contracted: For each input that is contracted, the axes it is summed over.
        emit: How to re-emit the node once sizes are known.
        zeros: When the outputs are zero, or None when nothing is known.
        zeros_of: The same for single outputs that differ.
        reductions: Statistics over axes.
        barrier: Why every axis of the operator is pinned, or None.
        divisors: Inputs that must not be zeroed when channels are masked out, for the operator divides by them.
        quantized: Inputs that hold integers which stand for other numbers.
        kinds: Axes with the kind of group that runs along them, for operators that do more than one product.
        one_of: For outputs that are one of several tensors, inside or outside of bodies: which.
        repeats: How often bodies run, given shapes, or None where they run once or not at all.
        carries: Inputs that are state (a cache, what a recurrent layer remembers) and the outputs they live on in.
    """

    macs: list[list[Ref | Axis]] = field(default_factory=list)
    contracted: dict[int, Axes] = field(default_factory=dict)
    emit: list[Callable[[Emitter], None]] = field(default_factory=list)
    zeros: Zeros | None = None
    zeros_of: dict[int, Zeros] = field(default_factory=dict)
    reductions: list[Reduction] = field(default_factory=list)
    barrier: str | None = None
    divisors: tuple[int, ...] = ()
    quantized: dict[int, Quantized] = field(default_factory=dict)
    kinds: list[tuple[Axis, str]] = field(default_factory=list)
    one_of: dict[int, list[str]] = field(default_factory=dict)
    repeats: Callable[[Shapes], float] | None = None
    carries: dict[int, int] = field(default_factory=dict)


class Op(Operator):
    """One node during the analysis.

    Attributes:
        facts: What the rule stated.
        within: The operator whose body this one is in, and which of its bodies; None outside of all bodies.
    """

    def __init__(self, node: gs.Node, opset: int, shapes: Shapes, axes: dict[str, Axes | None]) -> None:
        super().__init__(node, opset, shapes)
        self.axes = axes
        self.facts = Facts()
        self.within: tuple[Op, str] | None = None
        self.solve_body: SolveBody | None = None

    # Bodies of control flow --------------------------------------------------------------------------------------

    def enter(self, name: str, inputs: Sequence[Axes | None]) -> list[Axes | None]:
        """Solve the body in attribute ``name``, given the axes of its inputs.

        Args:
            name: The attribute.
            inputs: Axes of the body's inputs; None where they are what shape inference says, and must not shrink.

        Returns:
            The axes of its outputs; None where not even the rank is known.

        Raises:
            Barrier: It has no such body, with so many inputs, or uses a name twice.
        """
        if self.solve_body is None or name not in self.node.attrs:
            raise Barrier(f"there is no body {name}")
        return self.solve_body(self, name, inputs)

    def body_input(self, index: int, name: str = "body") -> str:
        """The name of input ``index`` of a body."""
        return str(self.node.attrs[name].inputs[index].name)

    def body_outputs(self, name: str) -> list[str]:
        """The names of the outputs of a body."""
        return [tensor.name for tensor in self.node.attrs[name].outputs]

    def one_of(self, index: int, names: list[str]) -> None:
        """Output ``index`` is one of these tensors."""
        self.facts.one_of[index] = names

    def repeats(self, count: Callable[[Shapes], float]) -> None:
        """The body runs as often as ``count`` says, given shapes."""
        self.facts.repeats = count

    # What a rule states -------------------------------------------------------------------------------------------

    def unify(self, left: Axis, right: Axis) -> None:
        """The two axes index the same things."""
        unify(left, right, self.name)

    def pin(self, axes: Axis | Iterable[Axis], why: str) -> None:
        """The axes must not shrink."""
        for axis in (axes,) if isinstance(axes, Axis) else axes:
            pin(axis, Pin(self.name, why))

    def fixed(self, size: int, why: str) -> Axis:
        """A new axis that must not shrink."""
        return ONE if size == 1 else Atom(size, Pin(self.name, why))

    def free(self, size: int) -> Axis:
        """A new axis that may shrink, unless it is so long that flags for its positions would fill the memory."""
        return Atom(size) if size <= LONGEST else self.fixed(size, "too long for channels")

    def fixed_output(self, why: str, index: int = 0) -> Axes:
        """New axes that must not shrink, for output ``index``."""
        return [self.fixed(size, why) for size in self.out_dims(index)]

    def broadcast(self, *inputs: Axes) -> Axes:
        """Numpy broadcasting: axes aligned from the right are unified unless one has size 1."""
        rank = max(map(len, inputs))
        result: Axes = []
        for k in range(rank):
            here = [axes[k - rank + len(axes)] for axes in inputs if k - rank + len(axes) >= 0]
            wide = [axis for axis in here if axis.size != 1]
            for other in wide[1:]:
                self.unify(wide[0], other)
            result.append(wide[0] if wide else ONE)
        return result

    def multiply(self, *refs: Sequence[Ref | Axis]) -> None:
        """The operator costs the product of these axes in multiply-accumulates."""
        self.facts.macs.append([ref for group in refs for ref in group])

    def refs(self, index: int, axes: Iterable[int] | None = None) -> list[Ref]:
        """References to the axes of input ``index`` (all of them by default)."""
        name = self.node.inputs[index].name
        return [Ref(name, axis) for axis in (range(len(self.dims(index))) if axes is None else axes)]

    def out_refs(self, index: int = 0) -> list[Ref]:
        """References to all axes of output ``index``."""
        return [Ref(self.node.outputs[index].name, axis) for axis in range(len(self.out_dims(index)))]

    def contract(self, index: int, *axes: Axis) -> None:
        """Input ``index`` is summed over these axes."""
        self.facts.contracted[index] = list(axes)

    def zeros(
        self,
        factors: Sequence[int] = (),
        terms: Sequence[int] = (),
        *,
        parts: bool = False,
        always: bool = False,
        output: int | None = None,
    ) -> None:
        """The outputs, or one of them, are zero where one of the inputs ``factors`` is and all given ``terms`` are."""
        stated = Zeros(tuple(factors), tuple(k for k in terms if self.has(k)), parts, always)
        if output is None:
            self.facts.zeros = stated
        else:
            self.facts.zeros_of[output] = stated

    def carry(self, index: int, output: int) -> None:
        """Input ``index`` is state from an earlier call, which output ``output`` continues."""
        self.facts.carries[index] = output

    def divides_by(self, *indices: int) -> None:
        """These inputs are divisors, variances or scales: masking channels must leave them alone."""
        self.facts.divisors = indices

    def quantized(
        self, index: int, zero_point: int | None = None, axis: int = 0, *, scale: int | None = None
    ) -> None:
        """Input ``index`` is quantized: other inputs hold its zero point (none: zero) and scale, along ``axis``."""
        zero, step = (k if k is not None and self.has(k) else None for k in (zero_point, scale))
        self.facts.quantized[index] = Quantized(zero, step, axis)

    def kind(self, name: str, *axes: Axis) -> None:
        """Groups along these axes are of kind ``name``: channel, group, head, head_dim, hidden, expert or unit."""
        self.facts.kinds += [(axis, name) for axis in axes]

    def reduces(self, index: int, axis: Axis, why: str, *, exact_on_zeros: bool = False) -> None:
        """A statistic of input ``index`` runs over ``axis``."""
        self.facts.reductions.append(Reduction(self.node.inputs[index].name, axis, why, exact_on_zeros))

    def emit(self, action: Callable[[Emitter], None]) -> None:
        """Run ``action`` when the node is re-emitted after a cut."""
        self.facts.emit.append(action)

    def resize_attribute(self, name: str, axis: Axis | list[Axis]) -> None:
        """The attribute is the size of ``axis`` (or the list of sizes)."""
        self.emit(lambda emitter: emitter.set_attribute(name, axis))

    def resize_input(self, index: int, axes: Axes) -> None:
        """Input ``index`` holds the sizes of ``axes``."""
        self.emit(lambda emitter: emitter.set_sizes(index, axes))

    def is_whole(self, axis: Axis) -> bool:
        """Whether ``axis`` is pinned throughout."""
        from surgeon.axes import is_fixed

        return is_fixed(axis)

    def same(self, left: Axis, right: Axis) -> bool:
        """Whether two axes are one already."""
        return normal(left) is normal(right)
