# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One party's part of a set of tuples: used once, for its own plan, with all of its corrections."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_securerouter import SecureRouterError
from hf_securerouter.mpc.net.link import LinkError
from hf_securerouter.mpc.protocols.masked.evaluator import Evaluator
from hf_securerouter.mpc.ring.randomness import SEED_BYTES, new_seed
from hf_securerouter.mpc.tuples.corrections import Corrections, Spool
from hf_securerouter.mpc.tuples.deal import deal_set
from hf_securerouter.mpc.tuples.party_set import PartySet, SetLabel, TupleReusedError
from tests.support.two_parties import PROGRAM, at_both, expected, shared


PLAN = PROGRAM.plan()
OTHER_PLAN = replace(PLAN, gates=PLAN.gates[:1], correction_bytes=PLAN.correction_bytes[:1])


class Dealt:
    """One party's sets, dealt ahead, as a stand-in for `DealerClient`."""

    def __init__(self):
        self.left = []

    def take(self, name, plan):
        return self.left.pop(0)


def dealt(nonces=(None, None)):
    """Both parties' parts of a fresh set; different `nonces` make different labels."""
    seeds, spool, label = (new_seed(), new_seed()), Spool(PLAN), SetLabel.new(PLAN)
    for corrections in deal_set(PLAN, seeds):
        spool.write(corrections.numpy().data)
    return tuple(
        PartySet(
            replace(label, nonce=nonces[rank] or label.nonce),
            rank,
            seeds[rank],
            spool.finish() if rank == 0 else None,
            received=SEED_BYTES + (PLAN.dealer_bytes if rank == 0 else 0),
        )
        for rank in (0, 1)
    )


def run(parts, values):
    """The program's result on these parts, or each party's error."""
    halves = shared(values)

    def party(rank, link):
        sets = Dealt()
        sets.left.append(parts[rank])
        return Evaluator(rank, link, sets).run(PROGRAM, {"x": halves[rank]})

    return at_both(party)


def test_gates_run_on_a_set():
    values = torch.randn(*PROGRAM.inputs["x"].shape)
    assert (expected(run(dealt(), values)) - values.relu()).abs().max() < 2**-13


def test_a_set_opens_once_and_for_its_plan_only():
    first, second = dealt()
    with pytest.raises(SecureRouterError, match="another plan"):
        first.open(OTHER_PLAN)
    for part in (first, second):
        part.open(PLAN)
        with pytest.raises(TupleReusedError, match=f"Set {part.label.id} has served a run"):
            part.open(PLAN)


def test_sets_that_differ_in_the_nonce_alone_are_refused_unused():
    parts = dealt(nonces=(None, "0" * 32))
    errors = run(parts, torch.zeros(*PROGRAM.inputs["x"].shape))
    assert all(isinstance(error, LinkError) and "do not agree on: `nonce`" in str(error) for error in errors)


def test_spooled_corrections_are_those_that_were_dealt():
    spool, dealt_now = Spool(PLAN), list(deal_set(PLAN, (new_seed(), new_seed())))
    for corrections in dealt_now:
        spool.write(corrections.numpy().data)
    read = spool.finish()
    for _ in range(2):
        # A tensor that was handed out stays readable while others are read.
        tensors = [read(index) for index in range(len(dealt_now))]
        assert all(torch.equal(*pair) for pair in zip(tensors, dealt_now, strict=True))


def test_what_arrives_has_the_length_of_the_plan():
    spool = Spool(PLAN)
    spool.write(memoryview(bytes(PLAN.dealer_bytes - 1)))
    with pytest.raises(SecureRouterError, match="ended 1 bytes before its plan"):
        spool.finish()
    with pytest.raises(SecureRouterError, match=f"more than the {PLAN.dealer_bytes} bytes"):
        spool.write(memoryview(bytes(2)))
    spool.write(memoryview(bytes(1)))
    spool.finish()


def test_a_spool_has_no_name_and_asks_for_its_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = Spool(PLAN)
    assert os.fstat(spool._file.fileno()).st_size == PLAN.dealer_bytes
    assert not list(tmp_path.iterdir())
    with pytest.raises(SecureRouterError, match=r"No room for \d+ bytes of tuples .* set TMPDIR"):
        Spool(replace(PLAN, correction_bytes=(1 << 60,)))


def test_labels_are_fresh():
    labels = [SetLabel.new(PLAN) for _ in range(3)]
    assert len({label.id for label in labels}) == len({label.nonce for label in labels}) == 3


def test_a_set_may_be_larger_than_the_memory(tmp_path):
    """One gate's corrections are mapped at a time, and only while they are read."""
    path, part = tmp_path / "set", bytes(range(200))
    sizes = (1 << 40, 0, len(part), 1 << 40)
    with path.open("wb") as file:
        file.seek(sizes[0] + 3)
        file.write(part)
        file.truncate(sum(sizes) + 3)
    corrections = Corrections(path.open("rb"), 3, sizes)
    found = corrections(2)
    assert bytes(found.tolist()) == part and corrections(1).numel() == 0
    assert str(path) in Path("/proc/self/maps").read_text()
    del found
    assert str(path) not in Path("/proc/self/maps").read_text()
    with pytest.raises(SecureRouterError, match="where its plan needs"):
        Corrections(path.open("rb"), 4, sizes)
