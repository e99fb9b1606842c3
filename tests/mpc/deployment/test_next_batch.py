# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Both parties take up the same rows, whatever clients do between the parties' lists and the batch."""

from types import SimpleNamespace

import pytest

from hf_securerouter.mpc.deployment.party_server import PartyServer
from hf_securerouter.mpc.deployment.query_queue import Query, QueryQueue
from tests.support.two_parties import at_both


SWAPPED, OTHER = "a" * 32, "b" * 32


class Swapping(QueryQueue):
    """A queue in which a client replaces its query as soon as the party has listed it."""

    rows = 0  # of the new query; 0 while nothing is to be replaced

    def held(self):
        listed = super().held()
        if self.rows:
            self.withdraw(self._waiting[SWAPPED])
            self.add(Query(SWAPPED, "mallory", self.rows, {}))
        return listed


def next_batches(swapping, rows):
    """The batches of two parties, at one of which a query of one row is replaced, and what is left at that one."""
    queues = [Swapping(rank) for rank in (0, 1)]
    for queue in queues:
        queue.add(Query(SWAPPED, "mallory", 1, {}))
        queue.add(Query(OTHER, "victim", 2, {}))
    lost = queues[1 - swapping]._waiting[SWAPPED]
    queues[swapping].rows = rows

    def work(rank, link):
        party = SimpleNamespace(rank=rank, _queue=queues[rank], _taken=[], _batch=6, _max_wait=0.0)
        return [(query.identity, query.batch) for query in PartyServer._next(party, link)]

    return at_both(work), lost, queues[swapping]


def test_a_query_that_was_replaced_at_party_1_is_no_part_of_the_batch():
    batches, lost, queue = next_batches(1, rows=3)
    assert batches == [[(OTHER, 2)], [(OTHER, 2)]]
    assert "other server lost its share" in lost.response[0]["error"] and lost.response[0]["again"] > 0
    queue.rows = 0
    assert queue.held() == [(SWAPPED, 3)]


@pytest.mark.parametrize("swapping", [0, 1])
def test_a_query_that_was_replaced_by_one_of_as_many_rows_is_answered(swapping):
    batches, _, _ = next_batches(swapping, rows=1)
    assert batches[0] == batches[1] and sorted(batches[0]) == [(SWAPPED, 1), (OTHER, 2)]
