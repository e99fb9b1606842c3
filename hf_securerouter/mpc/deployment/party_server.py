# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A computing party as a server on a machine of its own, from its folder of shares.

Party 1 connects to party 0, and both connect to the dealer. Then party 0 picks one batch after another among the
queries of which both parties hold a valid share: a client that leaves or sends invalid shares delays nobody. When
anything fails between the roles, each role closes its links, drops the sets of tuples that came over them, and
connects again.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...errors import SecureRouterError
from ..models.manifest import PARTIES
from ..net.channel import SMALL_HEADER, Channel, ChannelError
from ..net.counted_log import never_failing
from ..net.ledger import Ledger
from ..net.link import Link, LinkError
from ..net.peer_watch import PeerWatch
from ..net.signs_of_life import SignsOfLife
from ..net.socket_stream import TlsStream
from ..net.sockets import HANDSHAKE, Address, MeetingError, check_seconds, format_address
from ..net.tls import connect
from ..net.tls_listener import PendingConnections, TlsListener
from ..protocols.masked.layout import SEED, input_bytes
from ..protocols.masked.memory import fit_batch
from ..protocols.masked.roles import MaskedParty
from ..tuples.dealer_client import SILENCE
from .audit import Audit
from .client_desk import ClientDesk
from .dealer_server import Log
from .key_watch import KeyWatch
from .limits import Accounts, Limits, room_for_queries
from .query_queue import MAX_WAITING, Query, QueryQueue, packed, unpacked
from .role_folder import RoleFolder


BEAT = 1.0  # seconds between two keep-alives on the parties' link


MAX_WAIT = 0.02  # seconds for which a batch waits to be filled


_PICK = 0.02  # seconds between two looks at queries that wait for their other half, or for company


_PAUSE = 0.5  # seconds between two attempts to connect


class PartyServer:
    """Computes for clients together with the other party until it is stopped.

    Args:
        folder (`RoleFolder`): The party's folder.
        listen (`tuple[str, int]`): The address at which clients connect, and at party 0 also party 1.
        dealer (`tuple[str, int]`): The dealer's address.
        peer (`tuple[str, int]`, *optional*): Party 0's address; only party 1 takes it.
        timeout (`float`): Seconds to wait for another role to connect, for a set of tuples, and for a query to begin
            (the last for each of its inputs).
        log (callable): Takes a line of progress; never a secret.
        silence (`float`): Seconds without a sign of life from another role after which it counts as hung.
        memory (`int`, *optional*): Bytes that the server may take, by which it limits the batches that it answers, and
            beside them the queries that wait; by default half of what is free.
        limits (`Limits`, *optional*): Of each client.
        max_wait (`float`): Seconds for which a batch that is not full waits for more queries; party 0's counts.
        audit (`Path`, *optional*): The file to which a line is added for each query of a client, see `Audit`.

    Raises:
        `MeetingError`: `peer` is missing at party 1, or given at party 0.
        `SecureRouterValueError`: Not even the smallest batch fits into `memory`; `audit` cannot be opened, or can be
            read by others; or `timeout`, `silence` or `max_wait` is no time to wait.
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
        memory: int | None = None,
        limits: Limits | None = None,
        max_wait: float = MAX_WAIT,
        audit: Path | None = None,
    ) -> None:
        timeout = check_seconds("timeout", timeout)
        self._silence = check_seconds("silence", silence)
        self._max_wait = check_seconds("max_wait", max_wait, least=0)
        self._identity, self._manifest = folder.identity, folder.manifest
        self.rank = PARTIES.index(folder.identity.role)
        if (self.rank == 1) != (peer is not None):
            raise MeetingError("Party 1 connects to party 0, and not the other way round: only party 1 takes `peer`.")
        self._listen, self._dealer, self._peer = listen, dealer, peer
        log = never_failing(log)
        self._timeout, self._log = timeout, log
        self._watch = KeyWatch(self._identity, log)
        self._pending, self._queue, self._ledger = PendingConnections(), QueryQueue(self.rank), Ledger()
        self._taken: Sequence[Query | None] = []  # the batch that is under way
        fitting = fit_batch(self._manifest, self._manifest.largest_batch, memory, [folder.identity.role])
        self._own_batch = self._batch = fitting.batch
        self._party = MaskedParty(self.rank, folder.manifest, self._ledger, ahead=fitting.ahead)
        book = Audit(audit, self._identity.role)
        room = room_for_queries(memory, input_bytes(self._manifest, fitting.batch) + SMALL_HEADER)
        accounts = Accounts(limits or Limits(), room)
        self._desk = ClientDesk(self._party, self._manifest, self._queue, accounts, timeout, log, book)
        self._party.receive_weights({SEED: next(value for name, value in folder.tensors() if name == SEED)})
        for name, value in folder.tensors():
            if name != SEED:
                self._party.receive_weights({name: value})

    def run(self) -> NoReturn:
        """Serve until stopped.

        Anything that fails between the roles ends their meeting, and not the server.

        Raises:
            `MeetingError`: Another role did not connect within `timeout` seconds, or has no key of this sharing.
        """
        callers = ("party1", "client") if self.rank == 0 else ("client",)
        listening = TlsListener(self._identity, self._listen, callers, self._enter, self._log)
        with self._watch, listening as listener, contextlib.closing(self._desk):
            self._log(f"{self._identity.role} listens at {format_address(listener.address)}.")
            while True:
                link = self._meet()
                try:
                    self._log("All roles are here.")
                    self._serve(link)
                except Exception as error:
                    self._fail(error)
                finally:
                    self._queue.limit(None)
                    self._party.leave()

    # Connecting the roles.

    def _enter(self, role: str, stream: TlsStream) -> None:
        if role == "client":
            with self._watch.connected(stream):
                self._desk.serve(stream)
        else:
            self._pending.put(role, "", stream)

    def _meet(self) -> Link:
        deadline = time.monotonic() + self._timeout
        while True:
            stream = self._peer_wire(deadline)
            try:
                left = max(deadline - time.monotonic(), _PAUSE)
                link = Link(stream, self.rank, ledger=self._ledger, timeout=left, hello=self._identity.facts)
                self._meet_dealer(link, stream, deadline)
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

    def _meet_dealer(self, link: Link, stream: TlsStream, deadline: float) -> None:
        """Connect to the dealer with an id from both parties, so that it never joins parties that share no link."""
        own = secrets.token_bytes(16)
        theirs = bytes(link.exchange([own])[0])
        with PeerWatch(stream.sock) as other:  # while this party waits for the dealer, the other one may be restarted

            def check() -> None:
                if other.gone.is_set():
                    raise LinkError("The other party left before the dealer was there.")

            dealer = connect(self._dealer, "dealer", self._identity, deadline, check)
            other.end_with_it(dealer.sock)
            channel = Channel(dealer, "the dealer", max_payload=SMALL_HEADER, max_header=SMALL_HEADER)
            try:
                meeting = (own if self.rank == 0 else theirs).hex()
                channel.send({"kind": "hello", "meeting": meeting}, timeout=HANDSHAKE)
                welcome, _ = channel.receive(timeout=max(deadline - time.monotonic(), _PAUSE))
                self._agree_on_batch(link, welcome)
                # This returns when the other party has connected too.
                self._party.meet(channel, link, self._timeout, self._silence)
            except BaseException:
                channel.close()
                check()
                raise

    def _agree_on_batch(self, link: Link, welcome: dict[str, Any]) -> None:
        """Take the smallest of the largest batches that the dealer and the two parties have memory for."""
        dealt = welcome.get("batch")
        if welcome.get("kind") != "welcome" or not isinstance(dealt, int):
            raise ChannelError("The dealer did not say which batches it deals for.")
        own = min(self._own_batch, dealt)
        theirs = int.from_bytes(link.exchange([own.to_bytes(4, "big")])[0], "big")
        self._batch = min(own, theirs)
        self._queue.limit(self._batch)

    # Queries.

    def _serve(self, link: Link) -> NoReturn:
        link.timeout = self._silence
        with SignsOfLife(link):
            while True:
                self._party.check_dealer()
                self._taken = self._next(link)
                if self._taken:
                    self._take_up(self._taken)

    def _next(self, link: Link) -> list[Query]:
        """Agree on the queries of the next batch, which party 0 picks; none if none is due."""
        if self.rank == 0 and not self._taken:  # after a batch, the next one may be complete already
            self._queue.wait(BEAT, _PICK)
        # Both have to hold a query: half a one is not begun, and is dropped after a while.
        theirs = unpacked(bytes(link.exchange([packed(self._queue.held(), MAX_WAITING)])[0]))
        self._queue.drop_halves(theirs)
        picked = self._queue.pick(theirs, self._batch, self._max_wait) if self.rank == 0 else []
        choice = unpacked(bytes(link.exchange([packed(picked, self._batch)])[0]))
        chosen = picked if self.rank == 0 else list(choice.items())
        if not chosen:
            return []
        # A client may have left meanwhile, or have sent a query of the same id and other rows: both parties take up
        # what has the picked rows. All else of a share follows from its rows and the manifest, and was checked.
        taken = self._taken = self._queue.take(chosen)
        have = bytes(query is not None for query in taken)
        both = [own and other for own, other in zip(have, bytes(link.exchange([have])[0]), strict=True)]
        for query, complete in zip(taken, both, strict=True):
            if query is not None and not complete:
                query.fail("The other server lost its share of this query.")
        return [query for query, complete in zip(taken, both, strict=True) if query is not None and complete]

    def _take_up(self, queries: list[Query]) -> None:
        self._ledger.reset()
        start = time.monotonic()
        shares = [self._party.inputs(query.batch, query.tensors) for query in queries]
        inputs = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
        answers = self._party.answer(inputs, [query.batch for query in queries])
        # The counts of a batch whose size is not public would tell its users about each other.
        public = len(queries) == 1 or self._manifest.batch is not None
        counts = self._ledger.counts() if public else {"gates": {}}
        for query, (header, tensors) in zip(queries, answers, strict=True):
            query.reply({"ledger": counts, **header}, tensors)
        total = self._ledger.total
        self._log(
            f"Answered {sum(query.batch for query in queries)} texts of {len(queries)} queries in "
            f"{time.monotonic() - start:.2f} s: {total('sent') + total('received')} bytes and {total('rounds')} "
            "rounds with the other party."
        )

    def _fail(self, error: Exception) -> None:
        """Log why this party has to meet the others again, and fail the queries of the batch that was begun.

        Their clients may ask again. They learn which role is lost, and no detail: a program's name would tell those
        who share a batch how many of its rows went to an expert.
        """
        reason, told = f"A batch failed ({type(error).__name__}).", "a batch failed; they connect again."
        if isinstance(error, SecureRouterError):
            reason = f"{error}"
            if (gone := self._party.gone(error)) is not None:
                told = f"{gone} is gone; waiting for it."
                reason = f"{told} ({error})"
        self._log(f"The roles have to connect again: {reason}")
        for query in self._taken:
            if query is not None:
                query.fail(f"The servers could not answer: {told}")
        self._taken = []
