# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What clients are told of a batch that failed, and what the server's log says."""

from types import SimpleNamespace

import pytest

from hf_securerouter.mpc.deployment.party_server import PartyServer
from hf_securerouter.mpc.deployment.query_queue import Query
from hf_securerouter.mpc.net.link import LinkError
from hf_securerouter.mpc.tuples.dealer_client import SupplyError


LATE = "No tuples for `experts.2/3` within 600 seconds."


@pytest.mark.parametrize(
    "error, gone, told",
    [
        (SupplyError(LATE), None, "a batch failed; they connect again."),
        (RuntimeError(LATE), None, "a batch failed; they connect again."),
        (LinkError(LATE), "party1", "party1 is gone; waiting for it."),
    ],
    ids=["late", "unforeseen", "lost"],
)
def test_clients_learn_no_detail_of_a_batch_that_failed(error, gone, told):
    query, lines = Query("ab" * 16, "ada", 1, {}), []
    server = SimpleNamespace(_party=SimpleNamespace(gone=lambda error: gone), _log=lines.append, _taken=[query, None])
    PartyServer._fail(server, error)
    assert query.response[0]["error"] == f"The servers could not answer: {told}" and query.response[0]["again"] > 0
    assert len(lines) == 1 and ("RuntimeError" if isinstance(error, RuntimeError) else LATE) in lines[0]
    assert gone is None or f"{gone} is gone; waiting for it." in lines[0]
    assert server._taken == []
