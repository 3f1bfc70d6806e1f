"""Every error surgeon raises on purpose: what went wrong, where, and what to do about it."""

from __future__ import annotations


class SurgeonError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what the command line returns for it.

    Args:
        message: What went wrong, in one sentence.
        where: The node, operator, tensor, file or option it is about.
        hint: What the user can do.
    """

    exit_code = 3

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(_one_line(message))
        self.message = _one_line(message)
        self.where = None if where is None else _one_line(where)
        self.hint = None if hint is None else _one_line(hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(SurgeonError):
    """A wrong option, pass, pattern or path. Exit code 2."""

    exit_code = 2


class UnsupportedModelError(SurgeonError):
    """The file is not an ONNX model that can be read, checked and run. Exit code 2."""

    exit_code = 2


class DataError(SurgeonError):
    """Calibration or evaluation data that do not fit the model. Exit code 2."""

    exit_code = 2


class PluginError(SurgeonError):
    """A broken or duplicate plugin; ``where`` names its distribution. Exit code 2."""

    exit_code = 2


class GateError(SurgeonError):
    """The run worked but a gate was not met: target, accuracy, proof, or nothing to do. Exit code 1."""

    exit_code = 1


class PassError(SurgeonError):
    """A pass broke its contract or failed inside. Exit code 3."""


class InternalError(SurgeonError):
    """surgeon's own fault. Exit code 3."""


def _one_line(text: str) -> str:
    """Text as it is, but for line breaks: names in models may have them."""
    return "\\n".join(text.splitlines())
