# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Connections between the roles of one machine: the dealer takes ranks 0 and 1, once each, and nothing else; a
stranger who connects first does not keep the parties apart."""

import json
import socket
import threading
import time

import pytest

from hf_securerouter.mpc.net import loopback
from hf_securerouter.mpc.net.ledger import Ledger
from hf_securerouter.mpc.net.loopback import RendezvousError, accept_parties, connect_dealer, connect_parties


LIMIT = 10.0


def accepted(folder, ranks):
    """The dealer's channels, where processes connect with these ranks, one after another."""
    threads = [threading.Thread(target=connect_dealer, args=(folder, rank, LIMIT), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    try:
        return accept_parties(folder, LIMIT)
    finally:
        for thread in threads:
            thread.join(LIMIT)


def test_channels_come_in_the_order_of_the_ranks(tmp_path):
    assert [channel.peer for channel in accepted(tmp_path, [1, 0])] == ["party0", "party1"]


@pytest.mark.parametrize("rank", [True, False, 1.0, 0.0, 2, -1, "0", None, [0]])
def test_what_is_no_rank_is_refused(tmp_path, rank):
    with pytest.raises(RendezvousError, match="is no rank or is connected"):
        accepted(tmp_path, [rank])


def test_a_rank_connects_once(tmp_path):
    with pytest.raises(RendezvousError, match="as party 1, which is no rank or is connected"):
        accepted(tmp_path, [1, 1])


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n" * 10, None])
def test_a_stranger_who_comes_first_does_not_keep_the_parties_apart(tmp_path, monkeypatch, sent):
    """Anybody on this machine can connect: a stranger who leaves, sends nonsense, or is silent."""
    monkeypatch.setattr(loopback, "HANDSHAKE", 0.3)
    links = {}

    def meet(rank):
        links[rank] = connect_parties(tmp_path, rank, Ledger(), LIMIT)

    threads = [threading.Thread(target=meet, args=(rank,), daemon=True) for rank in (0, 1)]
    threads[0].start()
    deadline = time.monotonic() + LIMIT
    while not (tmp_path / "parties.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    address = json.loads((tmp_path / "parties.json").read_text())["address"]
    with socket.create_connection(address) as stranger:
        if sent is not None:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
        threads[1].start()
        for thread in threads:
            thread.join(LIMIT)
    exchange = threading.Thread(target=lambda: links[1].exchange([b"b"]), daemon=True)
    exchange.start()
    assert bytes(links[0].exchange([b"a"])[0]) == b"b" and links[0].timeout == LIMIT
    exchange.join(LIMIT)
    for link in links.values():
        link.close()
