# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Connections between the roles of one machine: the dealer takes ranks 0 and 1, once each, and nothing else."""

import threading

import pytest

from hf_securerouter.mpc.net.loopback import RendezvousError, accept_parties, connect_dealer


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
