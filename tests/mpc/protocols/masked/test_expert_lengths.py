# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts that read only the first tokens of an input, on shares: the same answers, at the cost of a short input."""

from functools import cache

import pytest
import torch

from hf_securerouter.errors import SecureRouterWarning
from hf_securerouter.lengths import truncate
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.protocols.masked.layout import input_bytes
from hf_securerouter.mpc.protocols.masked.programs import secure_program
from hf_securerouter.mpc.ring.words import packed_size
from hf_securerouter.routing import assign_by_quota
from tests.support.conversation import Conversation, looks_alike
from tests.tiny import VOCABULARY, family_config, pool_model


LENGTH, SHORT, BATCH = 12, 5, 4
QUOTAS = [2, 2]
MODES = ("revealed", "quota", "oblivious")


@cache
def pool(shared=1, lengths=(LENGTH, SHORT)):
    """A costly expert that reads whole inputs, and a cheap expert that does not."""
    return pool_model(
        ("bert", "bert"),
        expert_configs=[family_config("bert", width=width) for width in (16, 8)],
        expert_costs=[4.0, 1.0],
        expert_max_lengths=list(lengths),
        router_config=family_config("bert", width=8) if shared is None else None,
        router_shares_expert=shared,
        num_labels=3,
    )


def converted(mode, **options):
    quotas = QUOTAS if mode == "quota" else None
    return pool(options.pop("shared", 1)).to_mpc(routing_privacy=mode, max_length=LENGTH, quotas=quotas, **options)


@cache
def queries():
    """Four decided queries, two for each expert, of which two are cut."""
    ids = torch.randint(5, len(VOCABULARY), (400, LENGTH), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(LENGTH) < (torch.arange(400) % (LENGTH - 2) + 3)[:, None]).long()
    with torch.no_grad():
        output = pool()(input_ids=ids, attention_mask=mask)
    decided = output.router_logits.diff().abs().squeeze(1) > 0.2
    rows = []
    for expert in (0, 1):
        for long in (True, False):
            fits = decided & (output.expert_indices == expert) & ((mask.sum(1) > SHORT) == long)
            rows.append(int(fits.nonzero()[0]))
    return ids[rows], mask[rows]


@torch.no_grad()
def clear(model, ids, mask, quotas=None):
    inputs = {"input_ids": ids, "attention_mask": mask}
    output = model(**inputs)
    chosen = output.expert_indices
    if quotas is not None:
        chosen = assign_by_quota(output.router_logits, quotas, model.config.expert_costs)
    return model.run_experts(inputs, chosen)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [1, None])
def test_logits_are_those_of_the_clear_model(mode, shared):
    talk = Conversation(converted(mode, shared=shared))
    ids, mask = queries()
    expected = clear(pool(shared), ids, mask, QUOTAS if mode == "quota" else None)
    for _ in range(2):  # fresh masks
        assert (talk(ids, mask).logits - expected).abs().max() < 0.006


def test_padding_on_the_left_changes_no_answer():
    talk = Conversation(converted("revealed"))
    ids, mask = queries()
    order = mask.argsort(dim=1, stable=True)
    found = talk(ids.gather(1, order), mask.gather(1, order))
    assert found.experts == [0, 0, 1, 1] and (found.logits - clear(pool(), ids, mask)).abs().max() < 0.006


def test_experts_of_one_shape_and_one_length_are_selected():
    model = pool_model(("bert", "bert"), expert_configs=[family_config("bert", width=8)] * 2, num_labels=3)
    for lengths, selects in (([SHORT, SHORT], True), ([SHORT, LENGTH], False)):
        model.config.expert_max_lengths = lengths
        secure = model.to_mpc(routing_privacy="oblivious", max_length=LENGTH)
        assert secure.manifest.selects == selects
        ids, mask = queries()
        assert (Conversation(secure)(ids, mask).logits - clear(model, ids, mask)).abs().max() < 0.006


def test_an_expert_costs_what_it_costs_on_short_inputs():
    secure = converted("revealed")
    alone = to_mpc(pool().experts[1], max_length=SHORT)
    own = secure_program(secure.manifest, "experts.1/4").plan()
    short = secure_program(alone.manifest, "experts.0/4").plan()
    assert (own.payload_bytes, own.rounds, own.dealer_bytes) == (short.payload_bytes, short.rounds, short.dealer_bytes)


def test_the_client_shares_what_is_read():
    secure = converted("revealed")
    embedded = secure.client.embed(
        secure.client.tokenize(dict(zip(("input_ids", "attention_mask"), queries(), strict=True)))
    )
    assert {name: tuple(values.shape) for name, values in embedded.items()} == {
        "experts.0": (BATCH, LENGTH, 16),
        "experts.1": (BATCH, SHORT, 8),
    }
    ids, mask = queries()
    shares = secure.sharing.inputs(embedded, mask)["party0"]
    width = secure.sharing.encoders["experts.1"].input_width
    assert shares["experts.1"].numel() == packed_size(BATCH * SHORT * 8, width)


def test_a_manifest_keeps_its_lengths():
    manifest = converted("quota").manifest
    assert manifest.expert_lengths == (LENGTH, SHORT)
    assert [manifest.length_of(name) for name in ("router", "experts.0", "experts.1")] == [SHORT, LENGTH, SHORT]
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    # No expert reads more than the padded length.
    assert pool().to_mpc(routing_privacy="revealed", max_length=8).manifest.expert_lengths == (8, SHORT)


def test_calibration_reads_what_the_expert_reads():
    ids, mask = queries()
    secure = converted("revealed", calibration={"input_ids": ids, "attention_mask": mask})
    read, _ = truncate({"input_ids": ids, "attention_mask": mask}, SHORT)
    alone = to_mpc(pool().experts[1], max_length=SHORT, calibration=read)
    own = dict(secure.manifest.bounds["experts.1"])
    assert own == dict(alone.manifest.bounds["experts.0"])


@pytest.mark.parametrize("mode", ["quota", "oblivious"])
def test_nothing_tells_which_queries_are_cut(mode):
    ids, mask = queries()
    long, short = torch.tensor([0, 2, 0, 2]), torch.tensor([1, 3, 1, 3])
    batches = [(ids[rows], mask[rows]) for rows in (long, short)]
    assert looks_alike(Conversation(converted(mode)), batches, runs=4)


def test_the_reference_reads_the_same_parts():
    ids, mask = queries()
    with pytest.warns(SecureRouterWarning, match="reference"):
        secure = pool().to_mpc(protocol="crypten", max_length=LENGTH)
    with secure.local_session(timeout=120) as session:
        found = session({"input_ids": ids, "attention_mask": mask}).logits
    assert (found - clear(pool(), ids, mask)).abs().max() < 0.006


def test_a_deployed_client_reads_the_same_parts(tmp_path):
    ids, mask = queries()
    secure = converted("quota")
    secure.save_shares(tmp_path / "out")
    folder = RoleFolder.load(tmp_path / "out" / "client", "client")
    encoded = secure.client.tokenize({"input_ids": ids, "attention_mask": mask})
    own, theirs = (client.embed(encoded) for client in (secure.client, folder.client()))
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    shares = secure.sharing.inputs(theirs, encoded["attention_mask"])["party0"]
    assert sum(share.numel() for share in shares.values()) == input_bytes(secure.manifest, BATCH)
