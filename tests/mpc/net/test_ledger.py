# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Counts by gate, phases, and the cost of a query over all roles."""

import json
import resource
import time

import pytest

from hf_securerouter.mpc.net.cost import Cost
from hf_securerouter.mpc.net.ledger import Ledger, peak_rss_bytes


def filled(sent, received, rounds, dealer):
    ledger = Ledger()
    with ledger.phase("online"), ledger.gate("softmax"):
        ledger.sent(sent)
        ledger.received(received)
        for _ in range(rounds):
            ledger.round()
    ledger.dealer(dealer)
    return ledger


def test_counts_go_to_the_innermost_gate():
    ledger = Ledger()
    ledger.sent(1)
    with ledger.gate("linear"):
        ledger.sent(2)
        with ledger.gate("rescale"):
            ledger.sent(4)
            ledger.round()
        ledger.sent(8)
    assert {name: count.sent for name, count in ledger.gates.items()} == {"other": 1, "linear": 10, "rescale": 4}
    assert ledger.total("sent") == 15 and ledger.total("rounds") == 1 and ledger.total("received") == 0


def test_seconds_of_nested_gates_are_not_counted_twice():
    ledger = Ledger()
    start = time.perf_counter()
    with ledger.gate("outer"):
        time.sleep(0.02)
        with ledger.gate("inner"):
            time.sleep(0.05)
        time.sleep(0.02)
    elapsed = time.perf_counter() - start
    outer, inner = (ledger.gates[name].seconds for name in ("outer", "inner"))
    assert outer >= 0.04 and inner >= 0.05
    assert outer + inner <= elapsed


def test_a_gate_that_raises_is_closed():
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.gate("linear"):
        raise KeyError
    ledger.sent(3)
    assert ledger.gates["other"].sent == 3


def test_phases_add_up_and_reset():
    ledger = Ledger()
    for _ in range(2):
        with ledger.phase("dealer"):
            time.sleep(0.01)
    assert ledger.phases["dealer"] >= 0.02 and ledger.phases["online"] == 0
    ledger.reset()
    assert ledger.phases["dealer"] == 0 and not ledger.gates


def test_peak_memory_is_that_of_the_kernel():
    assert peak_rss_bytes() == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05)


def test_cost_over_all_roles():
    ledgers = {
        "party0": filled(100, 90, 3, 40).to_dict(),
        "party1": filled(90, 100, 3, 8).to_dict(),
        "dealer": filled(0, 0, 0, 48).to_dict() | {"phases": dict.fromkeys(Ledger().phases, 0.0) | {"dealer": 1.5}},
    }
    ledgers["party0"]["phases"] |= {"online": 2.0, "preprocess": 0.25}
    ledgers["party1"]["phases"] |= {"online": 3.0}
    ledgers["dealer"]["peak_rss_bytes"] = 7
    cost = Cost.from_ledgers(json.loads(json.dumps(ledgers)), client_bytes=11, setup_seconds=4.0)
    assert (cost.online_bytes, cost.rounds, cost.dealer_bytes, cost.client_bytes) == (190, 3, 48, 11)
    assert (cost.online_seconds, cost.preprocess_seconds, cost.dealer_seconds) == (3.0, 0.25, 1.5)
    assert cost.setup_seconds == 4.0
    assert cost.peak_rss_bytes["dealer"] == 7 and cost.peak_rss_bytes["client"] > 0
    gates = {gate["gate"]: gate for gate in cost.by_gate}
    assert gates["softmax"]["online_bytes"] == 190 and gates["other"]["dealer_bytes"] == 48
    assert "by_gate" not in cost.to_dict() and cost.to_dict(by_gate=True)["by_gate"] == cost.by_gate


def test_costs_of_queries_add_up():
    ledgers = {"party0": filled(100, 90, 3, 40).to_dict(), "party1": filled(90, 100, 3, 8).to_dict()}
    one = Cost.from_ledgers(ledgers, client_bytes=11, setup_seconds=4.0)
    total = Cost.total([one, one])
    assert (total.online_bytes, total.rounds, total.dealer_bytes, total.client_bytes) == (380, 6, 96, 22)
    assert total.setup_seconds == 4.0
    assert total.online_seconds == pytest.approx(2 * one.online_seconds)
    assert total.peak_rss_bytes == one.peak_rss_bytes
    assert {gate["gate"]: gate["rounds"] for gate in total.by_gate} == {"softmax": 6, "other": 0}
    assert one.online_bytes == 190
