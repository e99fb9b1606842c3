# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""No mask of a whole query is used twice, in any mode; and leaky variants are noticed."""

from functools import cache, partial

import pytest
import torch

from hf_securerouter.mpc.protocols.masked import programs as masked_programs
from hf_securerouter.mpc.protocols.masked import roles as masked_roles
from hf_securerouter.mpc.protocols.masked import sharing as masked_sharing
from hf_securerouter.mpc.ring.randomness import Csprng, Pad, PadReusedError
from hf_securerouter.mpc.ring.words import seal
from tests.support.conversation import Conversation, looks_alike
from tests.support.leaks import OneMaskShuffle
from tests.support.pad_audit import audited
from tests.tiny import family_config, pool_model


LENGTH, BATCH = 6, 4
QUADRATIC = {"hidden_act": "quadratic", "softmax": "2quad", "precision": "reduced"}
RELU = {"hidden_act": "relu", "softmax": "2relu", "precision": "reduced"}

POOLS = {
    "revealed": ("revealed", {}),
    "quota": ("quota", {}),
    "quota, shared encoder": ("quota", {"router_shares_expert": 1, "router_config": None}),
    "oblivious": ("oblivious", {"widths": (8, 16)}),
    "oblivious, one shape": ("oblivious", {}),
    "quota, reduced": ("quota", {"expert_mpc": [QUADRATIC, RELU]}),
    "oblivious, 2quad and 2relu": (
        "oblivious",
        {"expert_mpc": [{**QUADRATIC, "precision": "full"}, {**RELU, "precision": "full"}]},
    ),
    "quota, mpnet": ("quota", {"families": ("mpnet", "roberta")}),
    "oblivious, mpnet of one shape": ("oblivious", {"families": ("mpnet", "mpnet")}),
}


@cache
def converted(name):
    """A pool of two experts of one layer each."""
    mode, fields = POOLS[name]
    fields = dict(fields)
    families, widths = fields.pop("families", ("bert", "bert")), fields.pop("widths", (8, 8))
    configs = [family_config(family, width=width) for family, width in zip(families, widths, strict=True)]
    model = pool_model(families, expert_configs=configs, num_labels=3, **fields)
    return model.to_mpc(routing_privacy=mode, max_length=LENGTH, **({"quotas": [2, 2]} if mode == "quota" else {}))


@cache
def batches():
    ids = torch.randint(5, 24, (2 * BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    return ids.split(BATCH)


def repeated(name, replaced=None):
    """How often words of masks recur while a pool's weights are shared and two queries are answered."""
    with audited() as audit:
        talk = Conversation(converted(name), replaced)
        for ids in batches():
            talk(ids, torch.ones_like(ids))
    assert audit.pads > 500
    return audit.repeated


@pytest.mark.parametrize("name", POOLS)
def test_no_words_mask_two_messages(name):
    assert repeated(name) == 0


def test_one_mask_for_all_tensors_of_a_shuffle_is_noticed(monkeypatch):
    """By the audit, and by what the servers see of two batches."""
    secure = converted("quota")
    monkeypatch.setattr(masked_programs, "Shuffle", OneMaskShuffle)
    replaced = {"route": partial(masked_programs.route, secure.manifest)}
    assert repeated("quota", replaced) > 0
    assert not looks_alike(Conversation(secure, replaced), batches(), runs=3)


@pytest.mark.parametrize("mode", ["revealed", "quota"])
def test_inputs_under_one_keystream_are_noticed(mode, monkeypatch):
    monkeypatch.setattr(masked_sharing, "input_words", lambda seed, name, cipher: Csprng(seed, b"input/", cipher))
    assert repeated(mode) > 0


def test_one_share_of_zero_for_all_answers_is_noticed(monkeypatch):
    def refreshed(rank, zero_seed, label, logits, width, counts):
        zero = Csprng(zero_seed, b"logits/").ring(logits.shape, width)
        return [seal(logits, Pad(zero if rank == 0 else -zero, width))[1]]

    monkeypatch.setattr(masked_roles, "refreshed", refreshed)
    assert repeated("revealed") > 0


def test_the_audit_sees_copies_in_other_rings_and_bits():
    words = Csprng(bytes(range(32)), b"test").ring((100,), 40)
    for other in (words, words & 1023, words[17:42]):
        with audited() as audit:
            Pad(words, 40).spend()
            Pad(other.clone(), 40 if other is words else 10).spend()
        assert audit.repeated > 0
    with audited() as audit:
        Pad((words & 1).to(torch.uint8), 1).spend()
        Pad(words, 40).spend()
    assert audit.repeated > 0
    with pytest.raises(PadReusedError):
        pad = Pad(words, 40)
        pad.spend(), pad.spend()
    assert Pad.spend.__qualname__ == "Pad.spend"
