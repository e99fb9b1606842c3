# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Sets of tuples from a live dealer: what each end receives, how far ahead, and how failures end."""

import errno
import os
import socket
import threading
import time
from dataclasses import replace
from operator import gt
from types import SimpleNamespace

import pytest
import torch

from hf_securerouter.mpc.net.channel import Channel
from hf_securerouter.mpc.net.link import LinkError
from hf_securerouter.mpc.protocols.masked.evaluator import Evaluator
from hf_securerouter.mpc.tuples import corrections as corrections_module
from hf_securerouter.mpc.tuples import dealer_service as supply
from hf_securerouter.mpc.tuples import plan as plan_module
from hf_securerouter.mpc.tuples.deal import deal_set
from hf_securerouter.mpc.tuples.dealer_client import DealerClient, SupplyError
from hf_securerouter.mpc.tuples.dealer_service import DealerService
from tests.support.two_parties import PROGRAM, at_both, expected, shared
from tests.support.waiting import until


PLAN = PROGRAM.plan()
OTHER_PLAN = replace(PLAN, gates=PLAN.gates[:1], correction_bytes=PLAN.correction_bytes[:1])
PLANS = {PROGRAM.name: PLAN, "other": OTHER_PLAN}
SILENCE = 2.0
PAUSE = 0.1  # seconds between two signs of life
LIMIT = 10.0


class Live:
    """A dealer and two parties' ends in this process."""

    def __init__(self, plan_of=PLANS.__getitem__):
        pairs = [socket.socketpair() for _ in range(2)]
        self.channels = tuple(Channel(theirs, f"party{rank}") for rank, (_, theirs) in enumerate(pairs))
        self.service = DealerService(self.channels, plan_of, timeout=20)
        self.ends = [
            DealerClient(Channel(own, "the dealer"), rank, timeout=20, silence=SILENCE)
            for rank, (own, _) in enumerate(pairs)
        ]

    def close(self):
        self.service.close()
        for end in self.ends:
            end.close()

    def take(self, name=PROGRAM.name, plan=PLAN):
        for end in self.ends:
            end.order(name, plan)
        return [end.take(name, plan) for end in self.ends]

    def hear(self, count):
        """Wait until each party has heard so many signs of life."""
        for _ in range(count):
            before = [end._heard for end in self.ends]
            until(lambda before=before: all(map(gt, (end._heard for end in self.ends), before)), "a sign of life")


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setattr(supply, "SIGN_OF_LIFE", PAUSE)
    found = Live()
    yield found
    found.close()


def test_roles_of_different_versions_have_different_plans(monkeypatch):
    own = PLAN.digest
    first, *others = PLAN.draws
    reordered = replace(PLAN, draws=(first[::-1], *others))  # another order of a gate's words
    assert len(first) > 1 and reordered.digest != own
    monkeypatch.setattr(plan_module, "FORMAT", "1")  # another public table
    assert PLAN.digest != own


def failure(action):
    """The text of the error that `action` raises within the limit."""
    start = time.monotonic()
    with pytest.raises(SupplyError) as caught:
        action()
    assert time.monotonic() - start < LIMIT
    return str(caught.value)


def test_gates_run_on_live_sets(live):
    values = torch.randn(*PROGRAM.inputs["x"].shape) * 3
    ledgers = []

    def evaluate(rank, link):
        evaluator = Evaluator(rank, link, live.ends[rank])
        results = []
        for words in inputs:
            results.append(evaluator.run(PROGRAM, {"x": words[rank]}))
        live.ends[rank].finished(evaluator.used)
        ledgers.append(link.ledger)
        return results

    inputs = [shared(values), shared(values)]
    first, second = at_both(evaluate)
    for results in zip(first, second, strict=True):
        assert (expected(results) - values.relu()).abs().max() < 2**-13
    seconds, sent = live.service.wait(10)
    assert 0 < seconds < 10
    assert sent == sum(ledger.total("dealer") for ledger in ledgers)
    assert 2 * PLAN.dealer_bytes < sent < 2 * PLAN.dealer_bytes + 4000


def test_corrections_go_to_party_0_and_only_seeds_to_party_1(live):
    first, second = live.take()
    assert first.label == second.label and first.label.plan == PLAN.digest
    assert first._seed != second._seed
    dealt = list(deal_set(PLAN, (first._seed, second._seed)))
    assert all(torch.equal(first._corrections(index), part) for index, part in enumerate(dealt))
    assert second._corrections is None and second.received < 600
    assert first.received - second.received > PLAN.dealer_bytes


def test_every_set_is_fresh_and_costs_the_same(live):
    sets = [live.take() for _ in range(12)]  # more than nine, so that numbers grow by a digit
    assert len({part.label.id for pair in sets for part in pair}) == 12
    assert len({part.label.nonce for pair in sets for part in pair}) == 12
    assert len({part._seed for pair in sets for part in pair}) == 24
    for rank in (0, 1):
        assert len({pair[rank].received for pair in sets}) == 1


def test_signs_of_life_are_not_counted(live):
    alone = live.take()[0].received
    live.hear(round(SILENCE / PAUSE) + 1)  # idle is not silent
    for end in live.ends:
        end.check()
        end.order(PROGRAM.name, PLAN)
    live.hear(5)
    assert live.take()[0].received == alone


def test_one_set_is_dealt_ahead_and_no_more(live):
    for end in live.ends:
        end.order(PROGRAM.name, PLAN)
        end.order(PROGRAM.name, PLAN)
    until(lambda: all(end._ready for end in live.ends), "a set that was ordered ahead")
    ahead = [next(iter(end._ready.values())) for end in live.ends]
    assert live.take() == ahead
    later, dealt = live.take(), live.service._costs  # in order: a second set ahead would come before this one
    until(lambda: later[0].label.id in dealt, "the cost of a set that was taken")
    assert list(dealt) == [ahead[0].label.id, later[0].label.id]


def test_what_was_ordered_ahead_in_vain_is_dropped(live):
    for end in live.ends:
        end.order("other", OTHER_PLAN)
    until(lambda: all(end._ready for end in live.ends), "a set that was ordered ahead")
    first, second = live.take()
    assert first.label == second.label and first.label.plan == PLAN.digest
    assert not any(end._ready or end._plans or end._ordered for end in live.ends)
    again = [part.label for part in live.take("other", OTHER_PLAN)]  # a fresh set
    assert again[0] == again[1] and again[0].plan == OTHER_PLAN.digest


def test_a_set_that_is_given_up_while_it_arrives_is_dropped(live, monkeypatch):
    go_on = threading.Event()

    def slow(*arguments):
        for corrections in deal_set(*arguments):
            yield corrections
            go_on.wait(10)

    monkeypatch.setattr(supply, "deal_set", slow)
    for end in live.ends:
        end.order("other", OTHER_PLAN)
    until(lambda: live.ends[0]._channel.bytes_received > 100, "the beginning of a set")
    for end in live.ends:
        end.order(PROGRAM.name, PLAN)
    go_on.set()
    first, second = live.take()
    assert first.label == second.label and first.label.plan == PLAN.digest
    assert not any(end._ready or end._plans for end in live.ends)


def test_parties_that_order_different_plans_are_both_told(live):
    live.ends[0].order(PROGRAM.name, PLAN)
    live.ends[1].order(PROGRAM.name, OTHER_PLAN)
    for end, plan in zip(live.ends, (PLAN, OTHER_PLAN), strict=True):
        text = failure(lambda end=end, plan=plan: end.take(PROGRAM.name, plan))
        assert f"the plans of `{PROGRAM.name}` differ between the parties and the dealer" in text
    assert "differ" in failure(lambda: live.service.wait(1))


def test_a_dealer_of_another_version_is_noticed_by_all():
    live = Live(plan_of=lambda name: OTHER_PLAN)
    live.ends[1].order(PROGRAM.name, PLAN)
    assert "differ" in failure(lambda: live.ends[0].take(PROGRAM.name, PLAN))
    assert "differ" in failure(lambda: live.ends[1].take(PROGRAM.name, PLAN))
    live.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_party_that_goes_ends_the_other_one(live, rank):
    live.ends[1 - rank].order(PROGRAM.name, PLAN)
    live.ends[rank].close()
    text = failure(lambda: live.ends[1 - rank].take(PROGRAM.name, PLAN))
    assert f"party{rank} closed the link" in text
    assert f"party{rank} closed the link" in failure(lambda: live.service.wait(1))
    assert live.ends[1 - rank].lost(LIMIT) == f"party{rank}"
    idle = failure(live.ends[1 - rank].check)
    assert f"party{rank} is gone" in idle and "dealer is gone" not in idle


def test_a_dealer_that_goes_ends_both(live):
    live.service.close()
    for end in live.ends:
        assert "closed" in failure(lambda end=end: end.take(PROGRAM.name, PLAN))
        assert end.lost(LIMIT) == "the dealer" and "The dealer is gone" in failure(end.check)


def test_a_full_disk_of_party_0_is_not_the_loss_of_the_dealer(live, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corrections_module, "os", SimpleNamespace(**{**vars(os), "posix_fallocate": no_room}))
    end = live.ends[0]
    live.ends[1].order(PROGRAM.name, PLAN)
    assert "No room for" in failure(lambda: end.take(PROGRAM.name, PLAN))
    assert end.lost(LIMIT) is None
    idle = failure(end.check)
    assert "set TMPDIR" in idle and "dealer" not in idle
    time.sleep(SILENCE)  # in which nobody listens
    assert end.lost(LIMIT) is None


def test_a_dealer_that_is_slow_but_lives_is_waited_for(live, monkeypatch):
    def slow(*arguments):
        time.sleep(2 * SILENCE)
        yield from deal_set(*arguments)

    monkeypatch.setattr(supply, "deal_set", slow)
    live.ends[1].order(PROGRAM.name, PLAN)
    assert live.ends[0].take(PROGRAM.name, PLAN).label == live.ends[1].take(PROGRAM.name, PLAN).label


def test_a_silent_dealer_is_given_up():
    own, theirs = socket.socketpair()
    end = DealerClient(Channel(own, "the dealer"), 0, timeout=20, silence=0.5)
    assert "the dealer was silent for 0.5 seconds" in failure(lambda: end.take(PROGRAM.name, PLAN))
    theirs.close()


def test_a_dealer_that_lives_but_deals_nothing_is_given_up_in_time():
    own, theirs = socket.socketpair()
    dealer = Channel(theirs, "party0")
    end = DealerClient(Channel(own, "the dealer"), 0, timeout=1.0, silence=0.5)
    over = threading.Event()

    def live():
        while not over.wait(0.1):
            dealer.send({"kind": "alive"})

    threading.Thread(target=live, daemon=True).start()
    assert "within 1 seconds" in failure(lambda: end.take(PROGRAM.name, PLAN))
    over.set()


SEED = {"seed": torch.zeros(32, dtype=torch.uint8)}
SET = {"kind": "set", "number": "0" * 10, "id": "a", "nonce": "b", "plan": PLAN.digest}


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([(SET | {"kind": "corrections"}, SEED)], "something else than a set"),
        ([(SET, {})], "something else than a set"),
        ([(SET, {"seed": torch.zeros(31, dtype=torch.uint8)})], "something else than a set"),
        ([(SET, {"seed": torch.zeros(32, dtype=torch.int64)})], "something else than a set"),
        ([(SET | {"plan": "0"}, SEED)], "a set for another plan"),
        ([(SET, SEED), ({"kind": "set"}, {})], "something else than corrections within a set"),
        ([(SET, SEED), ({"kind": "complete"}, {})], f"ended {PLAN.dealer_bytes} bytes before its plan"),
        ([({"kind": "error", "error": "the disk is full"}, {})], "the disk is full"),
        ([({"number": 3}, {})], "something else"),
    ],
)
def test_what_is_no_set_is_refused(frames, message):
    own, theirs = socket.socketpair()
    end, dealer = DealerClient(Channel(own, "the dealer"), 0, timeout=20), Channel(theirs, "party0")
    end.order(PROGRAM.name, PLAN)
    for header, tensors in frames:
        dealer.send(header, tensors)
    assert message in failure(lambda: end.take(PROGRAM.name, PLAN))
    end.close()


def test_more_corrections_than_the_plan_has_are_refused():
    own, theirs = socket.socketpair()
    end, dealer = DealerClient(Channel(own, "the dealer"), 0, timeout=20), Channel(theirs, "party0")
    end.order(PROGRAM.name, PLAN)
    dealer.send(SET, SEED)
    for length in (PLAN.dealer_bytes, 1):
        dealer.send({"kind": "corrections", "bytes": length})
        dealer.send_bytes(bytes(length))
    assert f"more than the {PLAN.dealer_bytes} bytes" in failure(lambda: end.take(PROGRAM.name, PLAN))
    end.close()


def test_a_set_serves_one_run(live):
    """A source that wrongly gives the same pair of sets to two runs."""
    pair = live.take()

    class Again:
        def __init__(self, part):
            self.part = part

        def take(self, name, plan):
            return self.part

    def evaluate(rank, link):
        evaluator = Evaluator(rank, link, Again(pair[rank]))
        evaluator.run(PROGRAM, {"x": words[rank]})
        return evaluator.run(PROGRAM, {"x": words[rank]})

    words = shared(torch.ones(*PROGRAM.inputs["x"].shape))
    errors = at_both(evaluate)
    assert all(type(error).__name__ == "TupleReusedError" for error in errors)


def test_sets_that_differ_are_refused_by_both(live):
    pairs = [live.take(), live.take()]
    parts = [pairs[0][0], pairs[1][1]]

    class Given:
        def __init__(self, part):
            self.part = part

        def take(self, name, plan):
            return self.part

    def evaluate(rank, link):
        return Evaluator(rank, link, Given(parts[rank])).run(PROGRAM, {"x": torch.zeros(3, 5).long()})

    errors = at_both(evaluate)
    assert all(isinstance(error, LinkError) and "`id`, `nonce`" in str(error) for error in errors)


@pytest.mark.parametrize("sent", [{"kind": "nonsense"}, {"kind": "order"}])
def test_a_party_that_sends_nonsense_ends_all(live, sent):
    live.ends[0]._channel.send(sent)
    failure(lambda: live.ends[1].take(PROGRAM.name, PLAN))
    failure(lambda: live.service.wait(1))


def test_parties_that_used_different_sets_are_noticed(live):
    first, second = live.take()
    live.ends[0].finished([first.label])
    live.ends[1].finished([])
    assert "different sets" in failure(lambda: live.service.wait(5))


def test_a_party_may_finish_two_queries_before_the_other_is_heard(live):
    queries = [live.take(), live.take(), live.take()]
    for rank, end in enumerate(live.ends):
        for sets in queries:
            end.finished([sets[rank].label])
        time.sleep(0.2)  # so that the dealer hears all of one party before it hears the other
    costs = [live.service.wait(LIMIT) for _ in queries]
    assert len({sent for _, sent in costs}) == 1 and costs[0][1] > 0
    assert "did not finish" in failure(lambda: live.service.wait(0.1))


def test_the_costs_of_sets_that_were_ordered_in_vain_are_forgotten(live):
    for _ in range(5):
        for end in live.ends:
            end.order("other", OTHER_PLAN)  # dealt, and never taken
        used = live.take()
        ahead = live.take()
        for end, part in zip(live.ends, used, strict=True):
            end.finished([part.label])
        assert live.service.wait(LIMIT)[1] > 0
        until(lambda label=ahead[0].label: list(live.service._costs) == [label.id], "the costs of one set alone")
        for end, part in zip(live.ends, ahead, strict=True):
            end.finished([part.label])
        assert live.service.wait(LIMIT)[1] > 0 and not live.service._costs


def test_an_unfinished_query_is_noticed(live):
    assert "did not finish within 0.2 seconds" in failure(lambda: live.service.wait(0.2))
