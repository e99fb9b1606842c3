# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What passes from one program to the next: shares with their rings."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.secret import Secret
from hf_securerouter.mpc.gates.shuffle import Shuffle
from hf_securerouter.mpc.protocols.masked.layout import LOGITS, input_width, logit_width
from hf_securerouter.mpc.protocols.masked.programs import HIDDEN, ORDER, secure_program
from tests.mpc.protocols.masked.test_reduced import NARROW, tamed
from tests.support.conversation import Conversation
from tests.tiny import pool_model


LENGTH, BATCH = 6, 3


@cache
def narrow_pool():
    """Experts of reduced precision and a router with an encoder of its own, calibrated; its scores are small."""
    model = pool_model(("bert", "distilbert", "bert"), expert_mpc=[NARROW] * 3)
    with torch.no_grad():
        for expert in model.experts:
            tamed(expert)
            expert.classifier.weight *= 3000
    ids = torch.randint(5, 24, (32, LENGTH), generator=torch.Generator().manual_seed(1))
    samples = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model, model.to_mpc(routing_privacy="quota", quotas=[1, 1, 1], max_length=LENGTH, calibration=samples), ids


@torch.no_grad()
def test_the_permutation_is_shared_in_the_ring_in_which_it_is_read():
    """Scores and embeddings, which are shuffled, have smaller rings than the logits, which are put back."""
    model, secure, ids = narrow_pool()
    manifest = secure.manifest
    (shuffle,) = [gate for gate in secure_program(manifest, "route/3").plan().gates if isinstance(gate, Shuffle)]
    assert max(width for _, width in shuffle.tensors) < logit_width(manifest) == shuffle.width
    ids = ids[:BATCH]
    logits = Conversation(secure)(ids, torch.ones_like(ids)).logits
    answers = torch.stack([expert(input_ids=ids).logits for expert in model.experts])
    nearest = (logits - answers).abs().amax(-1)
    assert sorted(nearest.argmin(0).tolist()) == [0, 1, 2]
    assert (nearest.amin(0) < 0.05 * answers.abs().max()).all()


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("restore/3", ORDER),
        ("restore/3", LOGITS),
        ("rank/3", HIDDEN),
        ("rank/3", "experts.0"),
        ("serve/1.1.1", "experts.0"),
    ],
)
def test_a_share_in_a_smaller_ring_is_refused(name, share):
    _, secure, _ = narrow_pool()
    program = secure_program(secure.manifest, name)
    given = program.inputs[share]
    if not isinstance(given, Secret):
        given = Secret(given, input_width(secure.manifest, share), 8, 6, rank=0)
    replace(program, inputs={**program.inputs, share: given}).plan()
    smaller = replace(given, width=given.width - 1)
    with pytest.raises(SecureRouterError, match="A share in a ring of .* cannot be read in one of"):
        replace(program, inputs={**program.inputs, share: smaller}).plan()
