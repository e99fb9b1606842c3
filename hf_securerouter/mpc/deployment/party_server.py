# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A computing party as a server on a machine of its own, from its folder of shares.

Party 1 connects to party 0, and both connect to the dealer. Then party 0 takes up one query after another, and the
parties check that both hold a valid share of the query before either computes: a client that leaves or sends invalid
shares costs them nothing. When anything fails between the roles, each role closes its links, drops the sets of tuples
that came over them, and connects again.
"""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from ...errors import SecureRouterError
from ..models.manifest import PARTIES
from ..net.channel import Channel, ChannelError, ChannelTimeout
from ..net.ledger import Ledger
from ..net.link import Link, LinkError
from ..net.socket_stream import TlsStream
from ..net.sockets import HANDSHAKE, Address, MeetingError, format_address
from ..net.tls import connect
from ..net.tls_listener import PendingConnections, TlsListener
from ..protocols.masked.layout import SEED, input_bytes
from ..protocols.masked.roles import MaskedParty
from ..tuples.dealer_client import SILENCE
from .audit import Audit
from .dealer_server import Log
from .key_watch import KeyWatch
from .query_queue import Query, QueryQueue
from .role_folder import RoleFolder


BEAT = 1.0  # seconds between two keep-alives on the parties' link


MAX_CLIENTS = 64  # connected at once


ARRIVAL = 5.0  # seconds that party 1 waits for its share of a query that party 0 has taken up


_NO_QUERY = bytes(16)  # in place of a query's id while no query is waiting


_PAUSE = 0.5  # seconds between two attempts to connect


_OTHER_BYTES = 1 << 16  # largest part of a frame that is no share


class PartyServer:
    """Computes for clients together with the other party until it is stopped.

    Args:
        folder (`RoleFolder`): The party's folder.
        listen (`tuple[str, int]`): The address at which clients connect, and at party 0 also party 1.
        dealer (`tuple[str, int]`): The dealer's address.
        peer (`tuple[str, int]`, *optional*): Party 0's address; only party 1 takes it.
        timeout (`float`): Seconds to wait for another role to connect, for a message from it during a query, and for
            a query to begin (the last for each of its inputs).
        log (callable): Takes a line of progress; never a secret.
        silence (`float`): Seconds without a sign of life from another role, while the dealer or no query is awaited,
            after which it counts as hung.
        audit (`Path`, *optional*): The file to which a line is added for each message of a client, see `Audit`.

    Raises:
        `MeetingError`: `peer` is missing at party 1, or given at party 0.
        `SecureRouterValueError`: `audit` cannot be opened, or can be read by others.
    """

    def __init__(
        self,
        folder: RoleFolder,
        listen: Address,
        dealer: Address,
        peer: Address | None,
        timeout: float,
        log: Log,
        silence: float = SILENCE,
        audit: Path | None = None,
    ) -> None:
        self._identity, self._manifest = folder.identity, folder.manifest
        self.rank = PARTIES.index(folder.identity.role)
        if (self.rank == 1) != (peer is not None):
            raise MeetingError("Party 1 connects to party 0, and not the other way round: only party 1 takes `peer`.")
        self._listen, self._dealer, self._peer = listen, dealer, peer
        self._timeout, self._log, self._silence = timeout, log, silence
        self._audit, self._watch = Audit(audit, self._identity.role), KeyWatch(self._identity, log)
        self._pending, self._queue, self._ledger = PendingConnections(), QueryQueue(), Ledger()
        self._clients = threading.BoundedSemaphore(MAX_CLIENTS)
        self._party = MaskedParty(self.rank, folder.manifest, self._ledger)
        self._party.receive_weights({SEED: next(value for name, value in folder.tensors() if name == SEED)})
        for name, value in folder.tensors():
            if name != SEED:
                self._party.receive_weights({name: value})

    def run(self) -> NoReturn:
        """Serve until stopped.

        Raises:
            `MeetingError`: Another role did not connect within `timeout` seconds, or has no key of this sharing.
        """
        callers = ("party1", "client") if self.rank == 0 else ("client",)
        enter, log = self._enter, self._log
        with self._watch, TlsListener(self._identity, self._listen, callers, enter, log) as listener:
            self._log(f"{self._identity.role} listens at {format_address(listener.address)}.")
            while True:
                link = self._meet()
                try:
                    self._log("All roles are here.")
                    self._serve(link)
                except SecureRouterError as error:
                    self._log(f"The roles have to connect again: {error}")
                finally:
                    self._party.leave()

    # Connecting the roles.

    def _enter(self, role: str, stream: TlsStream) -> None:
        if role == "client":
            with self._watch.connected(stream):
                self._serve_client(stream)
        else:
            self._pending.put(role, "", stream)

    def _meet(self) -> Link:
        deadline = time.monotonic() + self._timeout
        while True:
            stream = self._peer_wire(deadline)
            try:
                left = max(deadline - time.monotonic(), _PAUSE)
                link = Link(stream, self.rank, ledger=self._ledger, timeout=left, hello=self._identity.facts)
                self._meet_dealer(link, deadline)
                return link
            except BaseException as error:
                stream.sock.close()
                if not isinstance(error, (LinkError, ChannelError)):
                    raise
                if time.monotonic() + _PAUSE > deadline:
                    raise MeetingError(f"The roles did not meet within {self._timeout:g} seconds: {error}") from error
                self._log(f"Connecting to the other roles again: {error}")
                time.sleep(_PAUSE)

    def _peer_wire(self, deadline: float) -> TlsStream:
        if self._peer is not None:
            return connect(self._peer, "party0", self._identity, deadline)
        return self._pending.take(("party1",), deadline)[0]

    def _meet_dealer(self, link: Link, deadline: float) -> None:
        """Connect to the dealer with an id from both parties, so that it never joins parties that share no link."""
        own = secrets.token_bytes(16)
        theirs = bytes(link.exchange([own])[0])
        stream = connect(self._dealer, "dealer", self._identity, deadline)
        channel = Channel(stream, "the dealer")
        try:
            channel.send({"kind": "hello", "meeting": (own if self.rank == 0 else theirs).hex()}, timeout=HANDSHAKE)
            self._party.meet(
                channel, link, self._timeout, self._silence
            )  # returns when the other party has connected too
        except BaseException:
            channel.close()
            raise

    # Queries.

    def _serve(self, link: Link) -> NoReturn:
        while True:
            # While idle, both parties send keep-alives; in a query, a party may wait long for the other's computation.
            link.timeout = self._silence
            self._party.check_dealer()
            query = self._next(link)
            link.timeout = self._timeout
            if query is not None:
                self._take_up(query)

    def _next(self, link: Link) -> Query | None:
        """Agree on the next query (party 0 picks it). None if no query is waiting, or party 1 has no share of it."""
        query = self._queue.first(BEAT) if self.rank == 0 else None
        try:
            own = _NO_QUERY if query is None else bytes.fromhex(query.identity)
            theirs = bytes(link.exchange([own])[0])
            chosen = own if self.rank == 0 else theirs
            if chosen == _NO_QUERY:
                return None
            if self.rank == 1:
                query = self._queue.take(chosen.hex(), ARRIVAL)
            batch = 0 if query is None else query.batch
            other = int.from_bytes(link.exchange([batch.to_bytes(4, "big")])[0], "big")
        except BaseException:
            if query is not None:
                query.fail("The servers lost their connection to each other; try again.")
            raise
        if query is None or batch == other:
            return query
        query.fail("The other server did not get its share of this query.")
        return None

    def _take_up(self, query: Query) -> None:
        self._ledger.reset()
        try:
            header, tensors = self._party.answer(query.inputs)
            query.reply({"ledger": self._ledger.to_dict(), **header}, tensors)
        except SecureRouterError as error:
            query.fail(f"The servers could not answer: {error}")
            raise
        except BaseException as error:
            query.fail(f"The servers could not answer ({type(error).__name__}).")
            if isinstance(error, Exception):
                raise SecureRouterError(f"A query failed ({type(error).__name__}).") from error
            raise

    # Clients; each has a thread of its own.

    def _serve_client(self, stream: TlsStream) -> None:
        most = input_bytes(self._manifest, self._manifest.largest_batch) if self.rank == 0 else 0
        channel = Channel(stream, "the client", max_payload=most + _OTHER_BYTES)
        if not self._clients.acquire(blocking=False):
            channel.close()
            raise SecureRouterError(f"{MAX_CLIENTS} clients are connected already.")
        try:
            while True:
                before = channel.bytes_sent + channel.bytes_received
                header, tensors = channel.receive(timeout=self._timeout)
                with self._audit.request(stream, channel, header.get("batch"), before) as request:
                    try:
                        query = self._read(header, tensors)
                        self._queue.add(query)
                    except SecureRouterError as error:
                        request.outcome = "refused"
                        channel.send({"kind": "error", "error": str(error)}, timeout=self._timeout)
                        continue
                    self._await(query, channel)
                    channel.send(*query.response, timeout=self._timeout)
                    request.outcome = "answered" if query.response[0]["kind"] == "result" else "failed"
        except ChannelError:
            pass  # the client left, or sent an invalid frame
        finally:
            self._clients.release()
            channel.close()

    def _read(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> Query:
        identity, batch = header.get("id"), header.get("batch")
        if header.get("kind") != "query" or not isinstance(identity, str) or not isinstance(batch, int):
            raise SecureRouterError("The message is not a query.")
        if len(identity) != 32 or set(identity) - set("0123456789abcdef") or not int(identity, 16):
            raise SecureRouterError("A query's id has 32 hex digits, not all 0.")
        size = self._manifest.batch
        if not 0 < batch <= self._manifest.largest_batch or batch != (size or batch):
            raise SecureRouterError(f"A query has {size or f'1 to {self._manifest.largest_batch}'} rows, not {batch}.")
        return Query(identity, self._party.inputs(batch, tensors), batch)

    def _await(self, query: Query, channel: Channel) -> None:
        """Wait until a query is done or its client leaves.

        Raises:
            `ChannelError`: The client left, or sent another message before it had its answer.
        """
        deadline = time.monotonic() + self._timeout * query.batch
        while not query.done.wait(BEAT):
            try:
                channel.receive(timeout=0.0)
                raise ChannelError("The client sent something before it had its answer.")
            except ChannelTimeout:
                pass
            except ChannelError:
                self._queue.withdraw(query)
                raise
            if time.monotonic() > deadline and self._queue.withdraw(query):
                query.fail(f"The query did not begin within {self._timeout * query.batch:g} seconds.")
