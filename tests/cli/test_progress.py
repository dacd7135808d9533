"""The progress bar shows itself on a terminal only."""

from __future__ import annotations

import io

import pytest

from kogpt.cli import progress
from kogpt.cli.progress import Progress
from kogpt.errors import columns


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stderr_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    return terminal


def test_counts_and_erases_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    with Progress(4) as bar:
        bar.advance()
        assert "[#######.......................] 1/4" in stderr.getvalue()
        assert stderr.getvalue().endswith("s left")
    assert stderr.getvalue().endswith("\r\x1b[K")


def test_makes_room_for_text_on_the_same_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    monkeypatch.setattr("sys.stdout", stderr)
    with Progress(2) as bar, bar.hidden():
        assert stderr.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with Progress(2) as bar, bar.hidden():
        assert not stderr.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("case", ["pipe", "dumb", "single"])
def test_is_silent_elsewhere(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    stderr = stderr_terminal(monkeypatch)
    if case == "pipe":
        monkeypatch.setattr(stderr, "isatty", lambda: False)
    if case == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with Progress(1 if case == "single" else 3) as bar:
        bar.advance()
        with bar.hidden():
            pass
    assert stderr.getvalue() == ""


def test_a_label_begins_a_new_bar_and_counts_what_this_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    with Progress() as bar:
        bar.show("nsmc", 50, 100)
        assert "nsmc [###############...............] 50/100" in stderr.getvalue()
        assert "left" not in stderr.getvalue(), "50 are from an earlier run: nobody knows their speed"
        bar.show("nsmc", 60, 100)
        assert stderr.getvalue().endswith("80 s left")  # 10 in 20 s, 40 to go
        bar.show("ynat", 0, 10)
        assert stderr.getvalue().endswith("ynat [..............................] 0/10")


def test_labels_are_said_once_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    monkeypatch.setattr(stderr, "isatty", lambda: False)
    with Progress() as bar:
        for done in range(3):
            bar.show("nsmc", done, 3)
    assert stderr.getvalue() == "kogpt: nsmc\n"


@pytest.mark.parametrize("n_columns", [20, 40, 80])
def test_a_line_never_wraps(monkeypatch: pytest.MonkeyPatch, n_columns: int) -> None:
    stderr = stderr_terminal(monkeypatch)
    monkeypatch.setattr(progress, "_terminal_columns", lambda: n_columns)
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    with Progress() as bar:
        bar.show("kobest-hellaswag 예시 5개, 시드 2 (3/12, 약 12분 남음)", 0, 12_345)
        bar.advance(7)
    lines = [line for line in stderr.getvalue().split("\r\x1b[K") if line]
    assert lines and all(columns(line) < n_columns for line in lines)
    assert n_columns < 80 or all("/12345" in line for line in lines)
