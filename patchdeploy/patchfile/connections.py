"""Connections of the server of patches: how long one may take, and how many there may be.

In: connections that a stranger opens. Out: uvicorn's HTTP protocol, in which a connection has so
long to send a request and so long to take the answer, and where there are too many the one that has
kept the server waiting longest is ended, so that a client that opens many and sends nothing shuts
no other out. Who opens more of them than a request takes still can: a content delivery network
belongs in front of a public server.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 64


class BoundedProtocol(H11Protocol):
    """One connection.

    Attributes:
        request_seconds: until a request is here, from the beginning or the answer before it.
        answer_seconds: until its answer has been sent, from then on.
        most: connections at once.
    """

    request_seconds = 10.0
    answer_seconds = 120.0
    most = MAX_CONNECTIONS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._answered: object = None
        """The last request that this connection has had its time for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count; make room first where there are too many."""
        others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        super().connection_made(transport)
        self._allow(self.request_seconds)
        if len(others) >= self.most:
            longest = min(others, key=lambda one: (one._is_served, one._began))
            longest.transport.abort()

    @property
    def _is_served(self) -> bool:
        """Whether a whole request is here and its answer is not."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """As uvicorn; a new request gets the time that an answer may take."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """As uvicorn, which may take the next request from what is here already."""
        super().on_response_complete()
        self._look()
        if not self._is_served and self.transport.get_write_buffer_size() == 0:
            self._allow(self.request_seconds)  # else what is not sent yet has the answer's time

    def connection_lost(self, exc: Exception | None) -> None:
        """No deadline any more."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.cycle is not None and self.cycle is not self._answered:
            self._answered = self.cycle
            self._allow(self.answer_seconds)

    def _allow(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._began = self.loop.time()
        self._deadline = self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        """End it without waiting for what the other side does not take."""
        if self.transport is not None:
            self.transport.abort()
