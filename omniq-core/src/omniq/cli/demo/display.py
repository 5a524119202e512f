"""What the demo shows: a bar, its workers and its numbers, redrawn on a terminal; a line each second elsewhere."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Mapping, Sequence

from omniq.cli.demo.team import LEASE, Member
from omniq.cli.demo.watching import Snapshot
from omniq.cli.terminal import Screen
from omniq.cli.wording import plural

__all__ = ["Display"]

BAR = 44
"""Characters of the bar, where there is room for what stands beside it."""
BESIDE_BAR = 46
RATE_OVER = 3.0
"""Seconds over which the rate is an average."""


class Display:
    """Shows how the demo goes.

    :param screen: where to.
    :param total: how many tasks there are.
    """

    def __init__(self, screen: Screen, total: int) -> None:
        self._screen = screen
        self._total = total
        self._began = time.monotonic()
        self._shown_at = float("-inf")
        self._history: deque[tuple[float, int]] = deque()
        fancy = screen.can_show("━─●✗")
        self._full, self._empty = ("━", "─") if fancy else ("#", "-")
        self._dot, self._cross = ("●", "✗") if fancy else ("*", "x")

    def title(self, store: str, workers: int) -> None:
        """Say what is about to happen."""
        style = self._screen.styled
        version = platform.python_version().rpartition(".")[0]
        modules = f"{self._total:,} modules of Python {version}'s standard library"
        self._screen.say(f"{style('OmniQ demo', 'bold')}  {modules}, one task each")
        self._screen.say(style(f"            (all but its package test), {workers} worker processes, on", "dim"))
        self._screen.say(style(f"            {store}", "dim"))
        self._screen.say()

    def prepare(self, members: Sequence[Member]) -> None:
        """Show that the workers are starting."""
        if self._screen.is_terminal:
            self._screen.draw(["", *(self._member(member, {}) for member in members)])

    def begin(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def event(self, text: str, *styles: str) -> None:
        """Say that something happened."""
        self._screen.say(f"  {self._screen.styled(self._clock(), 'dim')}  {self._screen.styled(text, *styles)}")

    def show(self, snapshot: Snapshot, members: Sequence[Member]) -> None:
        """Show how things stand now."""
        now = time.monotonic()
        self._note_rate(now, snapshot.ended)
        if now - self._shown_at < (0.1 if self._screen.is_terminal else 1.0):
            return
        self._shown_at = now
        if self._screen.is_terminal:
            self._screen.draw(self._picture(snapshot, members))
        else:
            self._screen.say(self._line(snapshot))

    def last(self, snapshot: Snapshot, members: Sequence[Member]) -> None:
        """Show how things stand in the end, and leave it there."""
        self._shown_at = float("-inf")
        self.show(snapshot, members)
        self._screen.keep()

    def check(self, done: int) -> None:
        """Show how far the check has come."""
        if self._screen.is_terminal:
            style = self._screen.styled
            self._screen.draw(["", f"  {self._bar(done)}  {style('checking against a plain loop', 'dim')}"])

    def erase(self) -> None:
        """Remove what is redrawn."""
        self._screen.erase()

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02}"

    def _note_rate(self, now: float, ended: int) -> None:
        self._history.append((now, ended))
        while now - self._history[0][0] > RATE_OVER:
            self._history.popleft()

    @property
    def _rate(self) -> float:
        (began, first), (now, last) = self._history[0], self._history[-1]
        return (last - first) / (now - began) if now > began else 0.0

    def _bar(self, done: int) -> str:
        width = max(10, min(BAR, self._screen.width - BESIDE_BAR))
        full = width * done // self._total
        return self._screen.styled(self._full * full, "green") + self._screen.styled(
            self._empty * (width - full), "dim"
        )

    def _line(self, snapshot: Snapshot) -> str:
        share = 100 * snapshot.ended // self._total
        return (
            f"  {self._clock()}  {snapshot.ended}/{self._total} done ({share} %), {self._rate:.0f} tasks/s, "
            f"{snapshot.running} running, {snapshot.retried} retried, {snapshot.recovered} recovered"
        )

    def _picture(self, snapshot: Snapshot, members: Sequence[Member]) -> list[str]:
        style = self._screen.styled
        share = 100 * snapshot.ended // self._total
        count = style(f"{snapshot.ended:,}/{self._total:,}", "bold")
        bar = f"  {self._bar(snapshot.ended)}  {count}  {share:3} %  {self._rate:4.0f} tasks/s  {self._clock()}"
        states = f"ready {snapshot.ready:<6} running {snapshot.running:<5} scheduled {snapshot.scheduled:<5}"
        retried = style(f"retried {snapshot.retried:<5}", "yellow") if snapshot.retried else "retried 0    "
        recovered = style(f"recovered {snapshot.recovered}", "cyan") if snapshot.recovered else "recovered 0"
        return [
            "",
            bar,
            "",
            *(self._member(member, snapshot.holding) for member in members),
            "",
            f"  {states} {retried} {recovered}",
            *self._wait(snapshot, members),
        ]

    def _member(self, member: Member, holding: Mapping[int, int]) -> str:
        style = self._screen.styled
        name = f"  worker {member.number}   pid {member.pid:<8}"
        if member.killed:
            held = plural(member.caught, "task")
            return f"{name} {style(f'{self._cross} killed (SIGKILL), it held {held}', 'red')}"
        if member.pid not in holding:
            return f"{name} {style(f'{self._dot} starting', 'dim')}"
        running = holding[member.pid]
        holds = f"holds {plural(running, 'task')}" if running else "idle"
        return f"{name} {style(self._dot, 'green')} {holds}"

    def _wait(self, snapshot: Snapshot, members: Sequence[Member]) -> list[str]:
        caught = sum(member.caught for member in members)
        left = self._total - snapshot.ended
        if not 0 < left <= caught or snapshot.recovered >= caught:
            return []
        text = f"  only the killed worker's tasks are left; their lease ({LEASE} s) has to run out first"
        return [self._screen.styled(text, "dim")]
