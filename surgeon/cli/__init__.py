"""The ``surgeon`` command: turns errors into one line and an exit code. The only room that prints."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from surgeon.cli.parser import build_parser
from surgeon.errors import InternalError, SurgeonError

DONE, INTERRUPTED, TERMINATED, PIPE_CLOSED = 0, 130, 143, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0 done; 1 a gate failed, nothing written; 2 bad usage, model or data; 3 internal error; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_json, debug = "--json" in arguments, "--debug" in arguments
    _exit_cleanly_when_terminated()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except SystemExit as request:  # argparse, after --help or --version
        return request.code if isinstance(request.code, int) else DONE
    except KeyboardInterrupt:
        _complain("interrupted, nothing was written")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader went away; what is still buffered must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except SurgeonError as error:
        return _fail(error, wants_json=wants_json, debug=debug)
    except Exception as error:  # noqa: BLE001 - bugs have no known type: told as one, exit 3, cause kept for --debug
        wrapped = InternalError(f"internal error: {type(error).__name__}: {error}", hint="run with --debug")
        wrapped.__cause__ = error
        return _fail(wrapped, wants_json=wants_json, debug=debug)
    return code


def _run(arguments: list[str]) -> int:
    from surgeon.cli import commands

    parsed = build_parser().parse_args(arguments)
    handler = getattr(commands, f"{parsed.command}_command")
    return int(handler(parsed))


def _fail(error: SurgeonError, *, wants_json: bool, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    if wants_json:
        facts = {
            "kind": type(error).__name__,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
        }
        sys.stdout.write(json.dumps({"schema": 1, "error": {**facts, "exit_code": error.exit_code}}) + "\n")
        sys.stdout.flush()
    _complain(str(error))
    return error.exit_code


def _complain(text: str) -> None:
    sys.stderr.write(f"surgeon: error: {' '.join(text.split())}\n")
    sys.stderr.flush()


def _exit_cleanly_when_terminated() -> None:
    """Makes SIGTERM unwind like an exception, so that temporary folders are removed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise SystemExit(TERMINATED)

    try:
        signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: somebody else's program, whose signals are not ours
        return
