"""Work beside the engine: summaries, the filter and the index, which ask no model.

Few threads, so that the engine keeps its cores; a bounded queue, so that tokenising never waits behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from kogpt.server.refusals import Refused

THREADS = 2
Answer = TypeVar("Answer")


class Aside:
    """A few threads and the queue before them."""

    def __init__(self, limit: int) -> None:
        """limit: requests that are worked on or wait; more are refused with 429."""
        self._limit = limit
        self.n_open = 0  # requests that are worked on or wait
        self._threads = ThreadPoolExecutor(THREADS, "kogpt-aside")

    async def run(self, http: HttpRequest, work: Callable[[], Answer]) -> Answer:
        """Do work in a thread; if the client leaves while it waits, it is not begun. Raises Refused."""
        if self.n_open >= self._limit:
            message = f"{self.n_open} requests of this kind are open, the limit is {self._limit}"
            headers = {"Retry-After": "1"}
            raise Refused(f"{message}: try again later", status=429, code="queue_full", headers=headers)
        self.n_open += 1
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
            answer: Answer = await while_connected(http, future)
            return answer
        finally:
            self.n_open -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def while_connected(http: HttpRequest, work: Any) -> Any:
    """Await work; cancel it when the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(http.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused("the client left", status=408)
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def disconnected(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
