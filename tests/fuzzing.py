"""Broken model files: a mutator of bytes and of fields, and a worker process that shows what surgeon makes of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from surgeon.errors import InternalError, SurgeonError

try:
    import resource
except ImportError:  # not on Windows
    resource = None

MEMORY = 2**33
SECONDS = 60  # a mutant takes a fraction of one; the rest is for slow machines
ODD_NUMBERS = (
    -(2**63),
    -(2**31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    7,
    16,
    64,
    1000,
    2**20,
    2**31 - 1,
    2**31,
    2**40,
    2**63 - 1,
)
ODD_TEXTS = (
    "",
    "x",
    "y",
    "N",
    "Conv",
    "Relu",
    "Add",
    "MatMul",
    "If",
    "Loop",
    "Reshape",
    "com.microsoft",
    "ä\n",
)

Random = random.Random


def mutant(content: bytes, others: list[bytes], seed: int) -> bytes:
    """One mutation, or a few, of a model file; the same for the same seed."""
    chance = Random(seed)
    if chance.random() < 0.3:
        return chance.choice((_flip, _truncate, _splice))(content, others, chance)
    model = onnx.load_from_string(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(FIELD_MUTATIONS)(model, chance)
    return bytes(model.SerializeToString())


def _flip(content: bytes, others: list[bytes], chance: Random) -> bytes:
    changed = bytearray(content)
    # weights fill most of a file: half of the flips go where its structure is dense
    reach = chance.choice((len(changed), min(len(changed), 2000)))
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, others: list[bytes], chance: Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _splice(content: bytes, others: list[bytes], chance: Random) -> bytes:
    other = chance.choice(others)
    return content[: chance.randrange(len(content))] + other[chance.randrange(len(other)) :]


def _messages(message: Message) -> list[Message]:
    """All messages inside one, itself included."""
    found, pending = [], [message]
    while pending:
        each = pending.pop()
        found.append(each)
        for field, value in each.ListFields():
            if field.message_type is not None:
                pending += [value] if isinstance(value, Message) else list(value)
    return found


def _any_field(model: onnx.ModelProto, chance: Random) -> None:
    """Change any field of any message: clear it, or give it an odd value."""
    message = chance.choice(_messages(model))
    fields = [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = chance.choice(fields)
    value = getattr(message, field.name)
    many = not isinstance(value, Message | int | float | str | bytes)
    if field.message_type is not None or chance.random() < 0.2:
        if many and len(value) and chance.random() < 0.8:
            del value[chance.randrange(len(value))]
        else:
            message.ClearField(field.name)
        return
    new = _odd(field, value, chance)
    try:
        if not many:
            setattr(message, field.name, new)
        elif len(value) and chance.random() < 0.7:
            value[chance.randrange(len(value))] = new
        else:
            value.append(new)
    except (ValueError, TypeError):  # the number is none this field can hold
        message.ClearField(field.name)


def _odd(field: FieldDescriptor, value: object, chance: Random) -> object:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = chance.choice(ODD_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return chance.choice((0.0, -1.0, 1e38, float("inf"), float("nan")))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice([each.number for each in field.enum_type.values])
    small = isinstance(value, int) and chance.random() < 0.3
    return value + chance.choice((-1, 1)) if small else chance.choice(ODD_NUMBERS)


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [each for each in _messages(model.graph) if isinstance(each, onnx.NodeProto)]


def _dims(model: onnx.ModelProto, chance: Random) -> None:
    tensors = [each for each in _messages(model.graph) if isinstance(each, onnx.TensorProto) and each.dims]
    shapes = [each for each in _messages(model.graph) if isinstance(each, onnx.TensorShapeProto) and each.dim]
    if chance.random() < 0.5 and tensors:
        tensor = chance.choice(tensors)
        if chance.random() < 0.4:  # as many values, in another shape
            chance.shuffle(dims := list(tensor.dims))
            tensor.dims[:] = dims
        else:
            tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(ODD_NUMBERS)
    elif shapes:
        dim = chance.choice(chance.choice(shapes).dim)
        if chance.random() < 0.7:
            dim.dim_value = chance.choice(ODD_NUMBERS)
        else:
            dim.dim_param = chance.choice(ODD_TEXTS)


def _attribute(model: onnx.ModelProto, chance: Random) -> None:
    attributes = [each for each in _messages(model.graph) if isinstance(each, onnx.AttributeProto)]
    if not attributes:
        return
    attribute = chance.choice(attributes)
    kind = chance.randrange(5)
    if kind == 0:
        attribute.type = chance.choice(onnx.AttributeProto.AttributeType.values())
    elif kind == 1:
        attribute.name = chance.choice(attributes).name
    elif kind == 2:
        attribute.i = chance.choice(ODD_NUMBERS)
    elif kind == 3 and attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(ODD_NUMBERS)
    elif kind == 3:
        attribute.ints.append(chance.choice(ODD_NUMBERS))
    else:
        attribute.ParseFromString(chance.choice(attributes).SerializeToString())  # it may hold the other


def _names(model: onnx.ModelProto, chance: Random) -> None:
    """Rewire one end of an edge to another tensor of the model."""
    nodes = _nodes(model)
    names = [name for node in nodes for name in (*node.input, *node.output)]
    if not names:
        return
    node = chance.choice(nodes)
    ends = chance.choice((node.input, node.output))
    if ends and chance.random() < 0.8:
        ends[chance.randrange(len(ends))] = chance.choice((*names, ""))
    else:
        ends.append(chance.choice(names))


def _operator(model: onnx.ModelProto, chance: Random) -> None:
    schemas = onnx.defs.get_all_schemas()
    node = chance.choice(_nodes(model))
    others = [each.op_type for each in _nodes(model)]
    node.op_type = chance.choice([*others, schemas[chance.randrange(len(schemas))].name])


def _order(model: onnx.ModelProto, chance: Random) -> None:
    nodes = list(model.graph.node)
    chance.shuffle(nodes)
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    kind = chance.randrange(3)
    del model.graph.node[:]
    model.graph.node.extend(copies if kind == 0 else copies[1:] if kind == 1 else [*copies, copies[0]])


def _versions(model: onnx.ModelProto, chance: Random) -> None:
    if model.opset_import and chance.random() < 0.8:
        chance.choice(model.opset_import).version = chance.choice((*range(1, 30), *ODD_NUMBERS))
    else:
        model.ir_version = chance.choice((*range(15), 2**31))


FIELD_MUTATIONS: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    _any_field,
    _any_field,
    _dims,
    _attribute,
    _names,
    _operator,
    _order,
    _versions,
)  # any field comes twice: it reaches what the others do not


def attempt(path: Path) -> str:
    """What is wrong with how surgeon takes a file; nothing, or one line."""
    import surgeon
    from surgeon.inspect import inspect

    def say(step: str, error: BaseException) -> str:
        cause = error.__cause__ or error
        place, trace = "", cause.__traceback__
        while trace:
            place, trace = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}", trace.tb_next
        return f"{step}: {type(error).__name__} at {place}: {error}"

    folder = Path(tempfile.mkdtemp(prefix="surgeon-fuzz-"))
    try:
        for step in ("load", "inspect", "prune"):
            try:
                if step == "load":
                    graph = surgeon.load(path)
                elif step == "inspect":
                    inspect(graph)
                else:
                    surgeon.run(path, "prune{ratio=0.5}", destination=folder / "out.onnx", threads=1)
                    surgeon.load(folder / "out.onnx")
            except SurgeonError as error:
                inside = isinstance(error, InternalError) or "failed inside" in error.message
                if inside or "\n" in str(error) or not error.message:
                    return say(step, error)
                if any(folder.iterdir()):
                    return (
                        f"{step}: left {sorted(each.name for each in folder.iterdir())} behind after {error}"
                    )
                if step == "load":
                    return ""
            except Exception as error:  # noqa: BLE001 - whatever comes out is what is looked for
                return say(step, error)
    finally:
        shutil.rmtree(folder)
    return ""


def _work(pipe: Connection) -> None:
    if resource is not None:  # impossible sizes have to fail here, and not to fill the machine
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(EOFError):  # the parent has gone
        while True:
            pipe.send(attempt(pipe.recv()))


class Worker:
    """A process that attempts files one after the other, and is replaced where one hangs or crashes it."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def attempt(self, path: Path) -> str:
        """What is wrong with how surgeon takes a file, crashes and hangs included."""
        self._pipe.send(path)
        try:
            if self._pipe.poll(SECONDS):
                return str(self._pipe.recv())
            wrong = f"takes more than {SECONDS} seconds"
        except EOFError:
            self._process.join()
            wrong = f"ends the process with code {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        return wrong
