# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What both parties send to the client for one query after another: shares of logits, and of the guard's word."""

from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from hf_securerouter.mpc.protocols.masked import programs as masked_programs
from hf_securerouter.mpc.protocols.masked import roles as masked_roles
from hf_securerouter.mpc.protocols.masked.layout import GUARD, logit_width
from hf_securerouter.mpc.protocols.masked.roles import agree_on_seed
from hf_securerouter.mpc.ring.words import reduce, unpack
from hf_securerouter.mpc.tuples.party_set import SetLabel
from tests.support.conversation import Conversation
from tests.tiny import family_config, pool_model


LENGTH, QUOTAS = 6, (1, 1)
IDS = torch.randint(5, 24, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@cache
def secure():
    """A guarded pool, whose batches run three programs: `route`, `serve` and `restore`."""
    configs = [family_config("bert", width=8) for _ in QUOTAS]
    model = pool_model(("bert", "bert"), expert_configs=configs, num_labels=3)
    return model.to_mpc(max_length=LENGTH, routing_privacy="quota", quotas=list(QUOTAS), guard=True)


def asked(talk):
    return talk(IDS, torch.ones_like(IDS))


@cache
def talk():
    return Conversation(secure())


def zero_shares(done):
    """What each party has added to its share of the logits, flat."""
    width, found = logit_width(secure().manifest), []
    for answer, result in zip(done.answers, done.results, strict=True):
        words = result.narrow(width).words
        found.append(reduce(unpack(answer["logits"], words.shape, width) - words, width).flatten())
    return found


def flags(done):
    """The word that each party has sent as its share of the guard's word."""
    return [int(answer[GUARD].view(torch.int64)) for answer in done.answers]


def test_every_answer_leaves_under_a_fresh_share_of_zero():
    """Logits and the flag, of three queries."""
    logits, words = [], []
    for _ in range(3):
        done = asked(talk())
        first, second = zero_shares(done)
        assert not reduce(first + second, logit_width(secure().manifest)).any()
        logits += first.tolist()
        own = [server.evaluator.guard_share for server in talk().servers]
        one, other = (word ^ share for word, share in zip(flags(done), own, strict=True))
        assert one == other
        words.append(one)
    assert 0 not in logits and len(set(logits)) == 3 * 6
    assert 0 not in words and len(set(words)) == 3


def test_shares_of_zero_are_made_of_what_the_two_parties_agreed_on(monkeypatch):
    """Other parties have other ones, also for the same public label."""
    label = SetLabel("a" * 32, "b" * 32, "")
    monkeypatch.setattr(SetLabel, "new", lambda plan: SetLabel(label.id, label.nonce, plan.digest))
    first, second = (asked(Conversation(secure())) for _ in range(2))
    assert (zero_shares(first)[0] != zero_shares(second)[0]).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_seed_of_the_zero_shares_depends_on_the_bytes_of_both_parties(rank, monkeypatch):
    def agreed(own, theirs, rank=rank):
        monkeypatch.setattr(masked_roles.secrets, "token_bytes", lambda count: own)
        return agree_on_seed(SimpleNamespace(rank=rank, exchange=lambda parts: [theirs]))

    one, other, third = (bytes([value]) * 32 for value in range(3))
    assert agreed(one, other) == agreed(other, one, rank=1 - rank)
    assert len({agreed(one, other), agreed(third, other), agreed(one, third)}) == 3


class Beyond(set):
    """The programs that are to note a value beyond its bound, by kind; and real programs that do so."""

    def program(self, kind, run):
        """A program that first notes one bit, in the name of party 0."""

        def noting(party, shares):
            party.guard.note(torch.tensor([kind in self and party.rank == 0], dtype=torch.uint8))
            return (yield from run(party, shares))

        return noting


@cache
def noting_talk():
    manifest, beyond = secure().manifest, Beyond()
    real = {
        "route": partial(masked_programs.route, manifest),
        "serve": partial(masked_programs.serve, manifest, QUOTAS),
        "restore": partial(masked_programs.restore, manifest),
    }
    return beyond, Conversation(secure(), {kind: beyond.program(kind, run) for kind, run in real.items()})


def told(*kinds):
    """A query in which programs of these kinds note a value beyond its bound."""
    beyond, conversation = noting_talk()
    beyond.clear()
    beyond.update(kinds)
    return asked(conversation)


@pytest.mark.parametrize("kinds", [["route"], ["serve"], ["restore"], ["route", "restore"], ["route", "serve"]])
def test_a_value_beyond_its_bound_is_told_whichever_program_notes_it(kinds):
    """Two programs that note the same place do not cancel: each set of tuples has words of its own."""
    assert told(*kinds).in_bounds is False


def test_a_flag_is_of_one_query_alone():
    """A word is not carried into the next query, and does not cancel the next one's."""
    queries = [told("serve"), told("serve"), told(), told("serve"), told()]
    assert [done.in_bounds for done in queries] == [False, False, True, False, True]
    words = [one ^ other for one, other in map(flags, queries)]
    assert len(set(words)) == 4  # three words, and 0
