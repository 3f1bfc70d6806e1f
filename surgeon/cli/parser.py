"""The command line's grammar: every command and flag, with errors that suggest what was meant."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from surgeon import __version__
from surgeon.errors import UsageError
from surgeon.suggest import did_you_mean

_EPILOG = """exit codes: 0 done and all gates met; 1 ran, but a gate failed (target, accuracy, proof, nothing to do) and
nothing was written; 2 bad usage, unreadable or unsupported model or data; 3 internal error."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageError, with the nearest known flag or command as a hint."""

    def __init__(self, **keywords: Any) -> None:
        self.flags: list[str] = []
        # an abbreviated flag would change its meaning when a longer one is added
        super().__init__(**{"allow_abbrev": False, **keywords})

    def add_argument(self, *names: Any, **keywords: Any) -> argparse.Action:
        """Adds an argument and remembers its flags."""
        self.flags += [name for name in names if isinstance(name, str) and name.startswith("-")]
        return super().add_argument(*names, **keywords)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses; unknown flags are an error of the command they were given to."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command: Parser = getattr(parsed, "parser", self)
            flag = unknown[0].split("=")[0]
            hint = did_you_mean(flag, command.flags) if flag.startswith("-") else None
            hint = hint if hint and hint.startswith("did") else f"see {command.prog} --help"
            raise UsageError(f"unexpected argument {unknown[0]!r}", where=command.prog, hint=hint)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raises UsageError in place of printing the usage and exiting."""
        choice = re.match(r"argument \S+: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[2])
            raise UsageError(f"no such command: {choice[1]}", hint=did_you_mean(choice[1], known))
        raise UsageError(message, where=self.prog, hint=f"see {self.prog} --help")


def build_parser() -> Parser:
    """Builds the whole grammar; imports nothing heavy."""
    parser = Parser(
        prog="surgeon",
        description="Makes trained ONNX models smaller and faster, without their training code, and proves what it cut.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"surgeon {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_run(commands)
    _add_plan(commands)
    _add_apply(commands)
    _add_inspect(commands)
    _add_explain(commands)
    _add_bench(commands)
    _add_size(commands)
    _add_verify(commands)
    _add_passes(commands)
    return parser


def _command(commands: Any, name: str, text: str) -> Parser:
    command: Parser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(parser=command)
    command.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    command.add_argument(
        "--debug", action="store_true", help="show tracebacks and check the graph after every pass"
    )
    return command


def _add_run(commands: Any) -> None:
    command = _command(commands, "run", "make a model smaller: run passes, prove, measure, write")
    add = command.add_argument
    add("model", metavar="MODEL", help="the ONNX file; never modified")
    add("-o", "--output", metavar="OUT", help="where to write; default MODEL with .surgeon.onnx")
    _add_passes_to_run(command)
    _add_measuring(command)
    add("--no-latency", action="store_true", help="do not measure latency")
    _add_force(command)
    _add_sizes(command)
    add("--report", metavar="DIR", help="also write a readable report into this folder")


def _add_plan(commands: Any) -> None:
    command = _command(
        commands, "plan", "run passes, and write only what they removed, for other checkpoints of the model"
    )
    add = command.add_argument
    add("model", metavar="MODEL", help="the ONNX file; never modified")
    add("-o", "--output", metavar="PLAN", help="where to write; default MODEL with .plan.json")
    _add_passes_to_run(command)
    _add_measuring(command)
    _add_force(command)


def _add_apply(commands: Any) -> None:
    command = _command(commands, "apply", "remove from another checkpoint of a model what a plan removes")
    add = command.add_argument
    add("model", metavar="MODEL", help="the other checkpoint; never modified")
    add("--plan", metavar="PLAN", required=True, help="the plan of surgeon plan, or beside the output of run")
    add("-o", "--output", metavar="OUT", help="where to write; default MODEL with .surgeon.onnx")
    _add_measuring(command)
    add("--no-latency", action="store_true", help="do not measure latency")
    _add_sizes(command)
    add("--report", metavar="DIR", help="also write a readable report into this folder")


def _add_passes_to_run(command: Parser) -> None:
    add = command.add_argument
    add(
        "--passes",
        metavar="P1,P2",
        help="what runs, in order: prune{macs=0.5 score=l2},quantize; default prune",
    )
    add("--recipe", metavar="R.toml", help="start from a recipe file, such as a run leaves beside its output")
    add("--set", metavar="pass.option=value", action="append", default=[], help="set one option; repeatable")
    add("--target", metavar="KEY=FRACTION", action="append", default=[],
        help="at most this fraction of the original: macs, params, size, latency; repeatable")  # fmt: skip
    add("--max-drop", metavar="X",
        help="largest accepted loss of the metric: 0.01; without a target, prune finds the smallest model within it")  # fmt: skip
    add("--confidence", metavar="P",
        help="the chance with which --max-drop has to hold on other data, as far as passes look for it; default 0.9, 0.5 takes what was measured")  # fmt: skip
    add(
        "--exclude",
        metavar="PATTERN",
        action="append",
        help="leave nodes and tensors alone; wildcards; repeatable",
    )
    add("--no-clean", action="store_true", help="do not run clean first; tensor names stay those of MODEL")


def _add_measuring(command: Parser) -> None:
    add = command.add_argument
    add("--data", metavar="D", help="calibration data: .npz, folder of .npy or of images, file.py[:name]")
    add(
        "--eval",
        metavar="E",
        help="data to measure the metric on; default: a held-out tenth of --data, if labelled or with --max-drop",
    )
    add("--preprocess", metavar="SPEC", help="how images become arrays: size=224,mean=0.5:0.5:0.5,scale=255")
    add(
        "--metric",
        metavar="NAME",
        help="metric, or file.py:function; default top1 with labels, else agreement",
    )
    add("--seed", metavar="N", help="seed of everything random; default 0")
    add("--threads", metavar="N", help="threads of onnxruntime; results do not depend on it")


def _add_force(command: Parser) -> None:
    command.add_argument(
        "--force",
        action="store_true",
        help="write a quantized model even if it is slower here than MODEL; it is not measured for that then",
    )


def _add_sizes(command: Parser) -> None:
    command.add_argument(
        "--sizes",
        action="store_true",
        help="measure compressed sizes, zeros and different values, even if no pass asks for it; about a second for 3 MB",
    )


def _add_inspect(commands: Any) -> None:
    command = _command(
        commands, "inspect", "show channel groups, cost, what could be removed, and what is pinned and why"
    )
    command.add_argument("model", metavar="MODEL", help="the ONNX file")


def _add_explain(commands: Any) -> None:
    command = _command(
        commands, "explain", "say why something can or cannot shrink, or how two things are coupled"
    )
    command.add_argument("model", metavar="MODEL", help="the ONNX file")
    command.add_argument("name", metavar="NAME", help="a node, a tensor, or tensor:axis")
    command.add_argument(
        "name2", metavar="NAME2", nargs="?", help="show the path that couples NAME with this"
    )


def _add_bench(commands: Any) -> None:
    command = _command(commands, "bench", "measure latency side by side, interleaved")
    command.add_argument(
        "models", metavar="MODEL", nargs="+", help="ONNX files; ratios are against the first"
    )
    command.add_argument(
        "--threads", metavar="N", default="1", help="threads of onnxruntime; default 1, the steadiest"
    )
    command.add_argument("--rounds", metavar="N", help="how often each model runs; default 30")
    command.add_argument("--seconds", metavar="S", help="how long to measure, instead of a number of rounds")
    command.add_argument(
        "--warm-up", metavar="N", default="3", help="runs before that, which do not count; default 3"
    )
    command.add_argument(
        "--batch", metavar="N", default="1", help="samples per run where the model leaves it open"
    )
    command.add_argument(
        "--size",
        metavar="DIM=N",
        action="append",
        default=[],
        help="size of another dimension that the model leaves open, by name; default 8; repeatable",
    )
    command.add_argument("--data", metavar="D", help="real inputs, as for run; default: seeded random ones")
    command.add_argument("--preprocess", metavar="SPEC", help="how images become arrays")
    command.add_argument("--seed", metavar="N", default="0", help="seed of random inputs")


def _add_size(commands: Any) -> None:
    command = _command(
        commands,
        "size",
        "show what models take: bytes, gzip, zstd, parameters, zeros, MACs, different values",
    )
    command.add_argument("models", metavar="MODEL", nargs="+", help="ONNX files")
    command.add_argument("--tensors", action="store_true", help="also show every weight")


def _add_verify(commands: Any) -> None:
    command = _command(commands, "verify", "check again that a cut model equals the masked original")
    command.add_argument("before", metavar="A", help="the original ONNX file")
    command.add_argument("after", metavar="B", help="the cut ONNX file")
    command.add_argument("--plan", metavar="PLAN", required=True, help="the plan file written beside B")


def _add_passes(commands: Any) -> None:
    command = _command(commands, "passes", "list the installed passes and their options")
    command.add_argument("name", metavar="NAME", nargs="?", help="show one pass in full")
