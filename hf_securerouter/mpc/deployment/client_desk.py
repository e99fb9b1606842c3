# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A party's end of its clients' connections: each has a thread that checks queries, queues them, and sends answers.

Whatever a client sends gets an answer, an error at least. It is the last one after what is no whole message, or comes
too early. Nothing that a client does can delay the party's own thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...errors import SecureRouterError
from ..models.manifest import Manifest
from ..net.channel import (
    SMALL_HEADER,
    Channel,
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
    SlowFrame,
    UnreadableFrame,
)
from ..net.counted_log import CountedLog
from ..net.socket_stream import TlsStream
from ..net.sockets import HANDSHAKE
from ..protocols.masked.layout import input_bytes
from ..protocols.masked.roles import MaskedParty
from .audit import Audit, Request
from .limits import AGAIN, REFUSALS, Accounts, Busy, Connection
from .query_queue import FRAME, Query, QueryQueue, failure


_BEAT = 1.0  # seconds between two looks at whether a waiting client is still there


class ClientDesk:
    """Serves clients at one party.

    Args:
        party (`MaskedParty`): Knows what a share of a query has to be.
        manifest (`Manifest`): The model's manifest.
        queue (`QueryQueue`): Where queries wait.
        accounts (`Accounts`): What the clients may use, and what they use.
        timeout (`float`): Seconds until an idle connection is closed, and for each row of a query to begin.
        log (callable): Takes a line; what clients cause is written once and counted.
        audit (`Audit`): Logs who asked.
    """

    def __init__(
        self,
        party: MaskedParty,
        manifest: Manifest,
        queue: QueryQueue,
        accounts: Accounts,
        timeout: float,
        log: Callable[[str], None],
        audit: Audit,
    ) -> None:
        self._party, self._manifest, self._queue, self._timeout = party, manifest, queue, timeout
        self._audit, self._accounts, self._log = audit, accounts, CountedLog(log)
        self._most = (input_bytes(manifest, manifest.largest_batch) if party.rank == 0 else 0) + SMALL_HEADER

    def close(self) -> None:
        """End all connections."""
        self._accounts.hang_up()

    def serve(self, stream: TlsStream) -> None:
        """Serve one client until it leaves."""
        channel = Channel(stream, "the client", self._most, SMALL_HEADER)
        try:
            connection = self._accounts.connect(stream.name, channel)
        except Busy as busy:
            self._tell(channel, stream.name, busy)
            channel.close()
            return
        try:
            while self._serve_one(connection, stream):
                pass
            channel.finish(HANDSHAKE)
        except (ChannelClosed, ChannelTimeout):
            pass  # the client left, was idle for long, or took no answer
        except ChannelError as error:
            self._end(channel, stream.name, error)
        except SecureRouterError as error:
            self._log(f"A connection of client {stream.name} is closed: {error}")
        except Exception as error:
            self._end(channel, stream.name, SecureRouterError(f"The message is invalid ({type(error).__name__})."))
        finally:
            self._accounts.disconnect(connection)
            channel.close()

    def _serve_one(self, connection: Connection, stream: TlsStream) -> bool:
        """Answer one message; False if the connection ends with it."""
        held = 0

        def admit(size: int) -> None:
            nonlocal held
            self._accounts.take(connection.name, size)
            held = size

        try:
            return self._receive_and_answer(connection, stream, admit)
        finally:
            self._accounts.give_back(connection.name, held)

    def _receive_and_answer(self, connection: Connection, stream: TlsStream, admit: Callable[[int], None]) -> bool:
        channel = connection.channel
        before = channel.bytes_sent + channel.bytes_received
        header: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        fault: SecureRouterError | None = None
        whole = True  # so that the next message can be received
        try:
            header, tensors = channel.receive(self._timeout, FRAME, admit)
        except (UnreadableFrame, Busy) as error:
            fault = error
        except (ChannelClosed, ChannelTimeout):
            raise
        except SlowFrame as error:
            fault, whole = SecureRouterError(f"{error} Ask for fewer texts at a time, or over a faster line."), False
        except ChannelError as error:
            fault, whole = error, False
        if header.get("kind") == "hello":
            self._greet(channel)
            return True
        try:
            self._audit.settle()
        except SecureRouterError as error:
            self._log(f"A message of client {connection.name} is refused: {error}")
            channel.send(failure("The server cannot note who asks; try again later.", AGAIN), timeout=HANDSHAKE)
            return whole
        with self._audit.request(stream, channel, header.get("batch"), before) as request:
            if fault is not None:
                return self._refuse(connection, request, fault) and whole
            return self._answer(connection, header, tensors, request)

    def _answer(
        self, connection: Connection, header: dict[str, Any], tensors: dict[str, Tensor], request: Request
    ) -> bool:
        channel = connection.channel
        try:
            query = self._read(header, tensors, connection.name)
            self._accounts.begin(connection, query.batch)
        except SecureRouterError as error:
            return self._refuse(connection, request, error)
        except Exception as error:
            invalid = SecureRouterError(f"The message is invalid ({type(error).__name__}).")
            return self._refuse(connection, request, invalid)
        try:
            self._queue.add(query)
            self._await(query, channel)
            channel.send(*query.response, timeout=FRAME)
            request.outcome = "answered" if query.response[0]["kind"] == "result" else "failed"
            return True
        except ChannelError:
            self._queue.withdraw(query)
            raise
        except SecureRouterError as error:
            return self._refuse(connection, request, error)
        finally:
            self._accounts.end(connection)

    def _greet(self, channel: Channel) -> None:
        """Tell a client how many rows a query may have, as soon as the roles have agreed on it.

        Raises:
            `ChannelError`: The client left, or sent another message before it had its answer.
        """
        deadline = time.monotonic() + self._timeout
        while (most := self._queue.most(_BEAT)) is None:
            _expect_nothing(channel)
            if time.monotonic() > deadline:
                text = f"The servers did not meet within {self._timeout:g} seconds; try again later."
                channel.send(failure(text, AGAIN), timeout=HANDSHAKE)
                return
        channel.send({"kind": "hello", "batch": most}, timeout=HANDSHAKE)

    def _refuse(self, connection: Connection, request: Request, error: SecureRouterError) -> bool:
        """Tell a client why its message is refused; False if it was refused too often, and its connection ends."""
        count, left = self._accounts.refuse(connection.name)
        request.outcome = "refused"
        if count > REFUSALS:
            request.outcome = "closed" if count == REFUSALS + 1 else None
            if not isinstance(error, Busy):  # which says when to come again
                error = Busy(f"{REFUSALS} refused messages of a client a minute", left)
        self._tell(connection.channel, connection.name, error)
        return count <= REFUSALS

    def _end(self, channel: Channel, name: str, error: SecureRouterError) -> None:
        """Tell a client why its connection ends."""
        with contextlib.suppress(ChannelError):
            self._tell(channel, name, error)
            channel.finish(HANDSHAKE)

    def _tell(self, channel: Channel, name: str, error: SecureRouterError) -> None:
        self._log(f"A message of client {name} is refused: {error}")
        header = failure(str(error), error.again, busy=True) if isinstance(error, Busy) else failure(str(error))
        channel.send(header, timeout=HANDSHAKE)

    def _read(self, header: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Query:
        """The query of a message.

        Raises:
            `SecureRouterError`: It is none, or its tensors are not the share of one.
        """
        identity, batch = header.get("id"), header.get("batch")
        if header.get("kind") != "query" or not isinstance(identity, str) or type(batch) is not int:
            raise SecureRouterError("The message is not a query.")
        if len(identity) != 32 or set(identity) - set("0123456789abcdef") or not int(identity, 16):
            raise SecureRouterError("A query's id has 32 hex digits, not all 0.")
        if not 0 < batch <= self._manifest.largest_batch:
            raise SecureRouterError(f"A query has 1 to {self._manifest.largest_batch} rows, not {batch}.")
        self._party.check(batch, tensors)
        return Query(identity, name, batch, tensors)

    def _await(self, query: Query, channel: Channel) -> None:
        """Wait until a query is done or its client leaves.

        Raises:
            `ChannelError`: The client left, or sent another message before it had its answer.
        """
        deadline = time.monotonic() + self._timeout * query.batch
        while not query.done.wait(_BEAT):
            _expect_nothing(channel)
            if time.monotonic() > deadline and self._queue.withdraw(query):
                query.fail(f"The query did not begin within {self._timeout * query.batch:g} seconds.")


def _expect_nothing(channel: Channel) -> None:
    """Check that a client that waits is still there."""
    try:
        channel.receive_into(bytearray(1), timeout=0.0)
    except ChannelTimeout:
        return
    raise ChannelError("The client sent something before it had its answer.")
