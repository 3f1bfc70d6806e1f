"""Progress and warnings on a terminal, and their absence elsewhere."""

from __future__ import annotations

import io
import sys
import time

import pytest

from surgeon.cli import monitor
from surgeon.cli.monitor import TerminalMonitor


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pretend(monkeypatch: pytest.MonkeyPatch, patience: float) -> Terminal:
    """Makes stderr a terminal; not a fixture, since pytest puts its own stderr back between set-up and test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(monitor, "_PATIENCE_SECONDS", patience)
    return stream


def test_nothing_but_warnings_without_a_terminal(capsys):
    with TerminalMonitor() as shown, shown.progress("prune", 3) as advance:
        advance(1)
        shown.warn("two\nlines")
    assert capsys.readouterr().err == "surgeon: warning: two lines\n"


def test_nothing_is_shown_for_what_is_quick(monkeypatch):
    terminal = pretend(monkeypatch, 30.0)
    with TerminalMonitor() as shown, shown.progress("prune", 3) as advance:
        advance(1)
    assert "prune" not in terminal.getvalue()


def test_bars_and_warnings_share_the_terminal(monkeypatch):
    terminal = pretend(monkeypatch, 0.01)
    with TerminalMonitor() as shown, shown.progress("prune", None), shown.progress("fit [x]", 2) as advance:
        time.sleep(0.3)
        advance(2)
        shown.warn("careful [bold]")
    text = terminal.getvalue()
    assert "prune" in text
    assert "surgeon: warning: careful [bold]" in text
    assert "fit [x]" in text


def test_the_display_ends_with_an_error(monkeypatch):
    terminal = pretend(monkeypatch, 0.0)

    def fail() -> None:
        with TerminalMonitor() as shown, shown.progress("prune", 1):
            time.sleep(0.1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    before = len(terminal.getvalue())
    time.sleep(0.3)
    assert before > 0
    assert len(terminal.getvalue()) == before
