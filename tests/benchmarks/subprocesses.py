"""Programs that may crash, hang or fill the memory without ending the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        why: What went wrong, in a line, or None.
        output: What it wrote to standard output.
        seconds: How long it took.
        peak_mb: Its largest resident memory in megabytes; 0 where there is no /proc.
    """

    why: str | None
    output: str
    seconds: float
    peak_mb: int


def run(command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs a program to its end, or for so many seconds."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        # a group of its own, so that what it has started ends with it
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
        late, peak = False, 0
        while process.poll() is None:
            peak = max(peak, peak_megabytes(process.pid))
            if not late and time.perf_counter() - started > timeout:
                late = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        why = f"stopped after {timeout:.0f} s" if late else reason(int(process.returncode), errors.read())
        return Ended(why, output.read(), seconds, peak)


def peak_megabytes(process: int) -> int:
    """The largest resident memory of a running program so far (its own: what a parent had before does not count)."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:  # it has just ended, or this is not Linux
        return 0
    lines = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) // 1024 if lines else 0


def reason(code: int, errors: str) -> str | None:
    """Why a program failed, in a line; None if it did not."""
    if code == 0:
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    spoken = [line for line in lines if "error" in line.lower()] or lines
    return spoken[-1][:300] if spoken else f"ended with exit code {code}"
