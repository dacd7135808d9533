"""The one thread that drives the model, and the queues between it and the event loop.

A request joins at the next step, leaves when its client does, and everybody's pieces of one step reach the
event loop in one call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kogpt.request import Request
from kogpt.server.refusals import Refused
from kogpt.session import Piece, Session

logger = logging.getLogger(__name__)
EVENTS = 1000  # a second, of all streams together
LONGEST_PACE = 0.032  # seconds between two events of a stream; 30 a second are read as a steady flow


class Aborted(Exception):
    """The server shut down before the answer was finished."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One HTTP request's requests to the model, while they are worked on. Belongs to the event loop."""

    requests: Sequence[Request]
    left: int  # answers that are not finished
    began: float = field(default_factory=time.perf_counter)
    pieces: deque[tuple[int, Piece]] = field(default_factory=deque)  # (index of the request, piece)
    told: bool = False  # a piece has come
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    broken: Refused | Aborted | None = None  # why no more pieces come

    def put(self, pieces: Sequence[tuple[int, Piece]]) -> bool:
        """Take in what a step gave. True if the client should see it at once: the first text, or an end."""
        urgent = not self.told
        self.told = True
        self.pieces.extend(pieces)
        for _, piece in pieces:
            if piece.finish_reason is not None:
                self.left -= 1
                urgent = True
        return urgent

    def abort(self) -> None:
        """End what is unfinished: the server goes away."""
        self.broken = Aborted()
        self.woken.set()

    async def batches(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """The pieces as they come, all that are there at a time, until every answer is finished."""
        while self.left or self.pieces:
            while not self.pieces and self.broken is None:
                self.woken.clear()
                await self.woken.wait()
            if self.broken is not None:
                raise self.broken
            batch = list(self.pieces)
            self.pieces.clear()
            yield batch


class Pacer:
    """Wakes the tickets whose pieces have come, all at a time. Belongs to the event loop.

    An event costs as much processor time as a small model takes for a tenth of a token. Where many quick
    streams would have more events a second than EVENTS, several steps' pieces become one event; the first
    piece of an answer and its end never wait.
    """

    def __init__(self) -> None:
        self._held: set[Ticket] = set()
        self._last = 0.0  # when tickets were woken
        self._timer: asyncio.TimerHandle | None = None

    def hand_out(self, batches: Mapping[Ticket, Sequence[tuple[int, Piece]]]) -> None:
        """Give each ticket its pieces of a step, and wake those that need not wait for more."""
        for ticket, pieces in batches.items():
            if ticket.put(pieces):
                ticket.woken.set()
                self._held.discard(ticket)
            else:
                self._held.add(ticket)
        if not self._held:
            return
        pace = min(len(self._held) / EVENTS, LONGEST_PACE)
        waited = time.monotonic() - self._last
        if waited >= pace:
            self._wake()
        elif self._timer is None:  # the next step may be a long one
            self._timer = asyncio.get_running_loop().call_later(2 * pace - waited, self._wake)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._last = time.monotonic()
        for ticket in self._held:
            ticket.woken.set()
        self._held.clear()


@dataclass(slots=True, eq=False)
class _Home:
    """Where the pieces of one request of the session go."""

    ticket: Ticket
    index: int  # of the request in its ticket
    left: int  # answers that are not finished


class Worker:
    """Drives a session in a thread of its own; `submit` and `cancel` belong to the event loop."""

    def __init__(self, session: Session, capacity: int) -> None:
        """capacity: answers that may be written or wait; more are refused with 429."""
        self.session = session
        self.capacity = capacity
        self.dead: BaseException | None = None
        self.tickets: set[Ticket] = set()
        self._mailbox = session.mailbox()
        self._homes: dict[int, _Home] = {}  # by the session's number
        self._inbox: deque[Callable[[], None]] = deque()
        self._bell = threading.Condition()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pacer = Pacer()
        self._thread = threading.Thread(target=self._run, name="kogpt-engine", daemon=True)

    @property
    def n_open(self) -> int:
        """Answers that are written or wait."""
        return sum(ticket.left for ticket in self.tickets)

    def start(self) -> None:
        """Begin; called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is unfinished is dropped."""
        self._call(self._stop)
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Queue the requests of one client. Raises Refused where the queue is full."""
        n_answers = sum(request.n_samples for request in requests)
        if self.dead is not None:
            raise failed()
        if self.tickets and self.n_open + n_answers > self.capacity:
            message = f"{self.n_open} answers are open, the limit is {self.capacity}: try again later"
            raise Refused(message, status=429, code="queue_full", headers={"Retry-After": "1"})
        ticket = Ticket(requests, n_answers)
        self.tickets.add(ticket)
        self._call(lambda: self._add(ticket))
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The client is served, or gone: drop what is unfinished."""
        self.tickets.discard(ticket)
        if ticket.left:
            ticket.left = 0
            self._call(lambda: self._drop(ticket))

    def _call(self, command: Callable[[], None]) -> None:
        """Have the thread run a command before its next step."""
        with self._bell:
            self._inbox.append(command)
            self._bell.notify()

    # What follows runs in the thread.

    def _run(self) -> None:
        name_thread("kogpt-engine")
        try:
            while not self._stopping:
                self._obey()
                if not self._mailbox.idle:
                    self.session.step()
                    self._deliver()
        except BaseException as error:
            logger.exception("the engine stopped")
            self.dead = error
            self._on_loop(self._break)
            raise
        finally:
            with self._mailbox:
                pass  # cancels what is unfinished

    def _obey(self) -> None:
        """Run the commands that came; wait for one where there is nothing else to do."""
        with self._bell:
            while not self._inbox and self._mailbox.idle:
                self._bell.wait()
            commands = list(self._inbox)
            self._inbox.clear()
        for command in commands:
            command()

    def _add(self, ticket: Ticket) -> None:
        for index, request in enumerate(ticket.requests):
            self._homes[self._mailbox.add(request)] = _Home(ticket, index, request.n_samples)

    def _drop(self, ticket: Ticket) -> None:
        for number in [number for number, home in self._homes.items() if home.ticket is ticket]:
            del self._homes[number]
            self.session.cancel(number)

    def _deliver(self) -> None:
        """Hand the pieces of a step to their tickets, in one call to the event loop."""
        batches: dict[Ticket, list[tuple[int, Piece]]] = {}
        while self._mailbox.ready:
            number, piece = self._mailbox.take()
            if (home := self._homes.get(number)) is None:
                continue
            batches.setdefault(home.ticket, []).append((home.index, piece))
            home.left -= piece.finish_reason is not None
            if not home.left:
                del self._homes[number]
        if batches:
            self._on_loop(lambda: self._pacer.hand_out(batches))

    def _on_loop(self, call: Callable[[], object]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call)

    def _break(self) -> None:
        for ticket in self.tickets:
            ticket.broken = failed()
            ticket.woken.set()

    def _stop(self) -> None:
        self._stopping = True


def failed() -> Refused:
    """The refusal of every request once the thread has died."""
    return Refused("the model has failed; the server restarts", status=503, code="failed")


def name_thread(name: str) -> None:
    """Name this thread as `top -H` and bench/load.py see it; Python before 3.14 names it for itself alone."""
    with suppress(OSError):  # no Linux
        Path("/proc/thread-self/comm").write_text(name, encoding="ascii")
