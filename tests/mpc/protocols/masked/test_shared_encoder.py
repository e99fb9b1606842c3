# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A router that shares an expert's encoder, on shares: the encoder is computed once, in each routing privacy."""

from functools import cache

import pytest
import torch

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.weight_share import WeightShare
from hf_securerouter.mpc.protocols.masked.layout import encoders
from hf_securerouter.mpc.protocols.masked.programs import secure_program
from hf_securerouter.mpc.protocols.masked.ring_widths import RingWidths
from hf_securerouter.mpc.ring.words import packed_size
from hf_securerouter.mpc.tuples.plan import trace
from hf_securerouter.number_format import Bounds
from hf_securerouter.routing import assign_by_quota
from tests.support.conversation import Conversation, looks_alike, views
from tests.tiny import VOCABULARY, family_config, pool_model


LENGTH, BATCH, LABELS = 6, 4, 3
QUOTAS = [2, 2]
MODES = ("revealed", "quota", "oblivious")
SMALL = 1  # the index of the expert whose encoder the router shares
WIDTHS = (16, 8)


@cache
def pool(shared=SMALL, widths=WIDTHS):
    """Two experts of one layer each; a router with an encoder of its own has one of the same shape."""
    configs = [family_config("bert", width=width) for width in widths]
    own = family_config("bert", width=widths[SMALL]) if shared is None else None
    return pool_model(
        ("bert", "bert"),
        expert_configs=configs,
        expert_costs=[4.0, 1.0],
        router_config=own,
        router_shares_expert=shared,
        num_labels=LABELS,
    )


def converted(model, mode, quotas=None, **options):
    quotas = (quotas or QUOTAS) if mode == "quota" else None
    return model.to_mpc(routing_privacy=mode, max_length=LENGTH, quotas=quotas, **options)


@cache
def talk(mode):
    return Conversation(converted(pool(), mode))


@cache
def queries(model):
    """For each expert the queries that clearly choose it, of different lengths: token ids and masks."""
    ids = torch.randint(5, len(VOCABULARY), (400, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH) < (torch.arange(400) % (LENGTH - 2) + 3)[:, None]).long()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
    decided = output.router_logits.diff().abs().squeeze(1) > 0.2
    found = [((output.expert_indices == expert) & decided).nonzero()[:, 0] for expert in (0, 1)]
    return [(ids[rows], mask[rows]) for rows in found]


def mixed(model):
    (ids, mask), (others, other_mask) = queries(model)
    order = torch.tensor([2, 0, 3, 1])
    return torch.cat([ids[:2], others[:2]])[order], torch.cat([mask[:2], other_mask[:2]])[order]


@cache
def answered(mode):
    return talk(mode)(*mixed(pool()))


@torch.no_grad()
def clear(model, ids, mask, quotas=None):
    """The clear model's logits and experts, by the router's choice or by quota."""
    output = model(input_ids=ids, attention_mask=mask)
    chosen = output.expert_indices
    if quotas is not None:
        chosen = assign_by_quota(output.router_logits, quotas, model.config.expert_costs)
    logits = torch.stack([expert(input_ids=ids, attention_mask=mask).logits for expert in model.experts])
    return logits[chosen, torch.arange(len(ids))], chosen.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_logits_are_those_of_the_clear_model(mode):
    model = pool()
    ids, mask = mixed(model)
    logits, chosen = clear(model, ids, mask, QUOTAS if mode == "quota" else None)
    assert chosen == [1, 0, 1, 0]
    for done in (answered(mode), talk(mode)(ids, mask)):  # fresh masks
        assert (done.logits - logits).abs().max() < 0.006
        assert done.experts == (chosen if mode == "revealed" else None)
    programs = {
        "revealed": ["router/4", "experts.0/2"],
        "quota": ["route/4", "serve/2.0", "restore/4"],
        "oblivious": ["oblivious/4"],
    }
    assert done.programs == programs[mode]


def test_experts_of_one_shape_are_selected_beside_a_shared_encoder():
    model = pool(widths=(8, 8))
    ids, mask = mixed(model)
    logits, _ = clear(model, ids, mask)
    secure = converted(model, "oblivious")
    assert secure.manifest.selects
    assert (Conversation(secure)(ids, mask).logits - logits).abs().max() < 0.006
    # Embeddings that are selected have their bound, also those that the router reads in a wider ring.
    wide = {
        name: torch.full((BATCH, LENGTH, 8), 64.0 if name == f"experts.{SMALL}" else 1.0)
        for name in secure.manifest.inputs
    }
    with pytest.raises(SecureRouterError, match=f"embeddings of `experts.{SMALL}` reach"):
        secure.sharing.inputs(wide, mask)


def test_a_batch_that_is_read_in_parts_costs_no_more(monkeypatch):
    model, whole = pool(), answered("quota")
    ids, mask = mixed(model)
    monkeypatch.setattr("hf_securerouter.mpc.protocols.masked.schedule.SERVED", 2)
    done = talk("quota")(ids, mask)
    assert done.programs == ["read/2", "read/2", "rank/4", "serve/2.0", "restore/4"]
    assert (done.logits - clear(model, ids, mask, QUOTAS)[0]).abs().max() < 0.006
    sent, dealt = (
        [sum(getattr(plan, name) for plan in query.plans) for query in (done, whole)]
        for name in ("payload_bytes", "dealer_bytes")
    )
    for parts, all_at_once in (sent, dealt):  # every opening ends with a whole byte
        assert all_at_once <= parts < 1.01 * all_at_once
    read, rank = done.plans[0].rounds, done.plans[2].rounds
    assert read + rank == whole.plans[0].rounds


def test_easy_queries_pay_for_one_small_encoder():
    model = pool()
    ids, mask = (part[:BATCH] for part in queries(model)[SMALL])
    logits, _ = clear(model, ids, mask)
    done = talk("revealed")(ids, mask)
    assert done.programs == ["router/4"] and (done.logits - logits).abs().max() < 0.006
    done = Conversation(converted(model, "quota", [0, BATCH]))(ids, mask)
    assert done.programs == ["route/4", "restore/4"] and (done.logits - logits).abs().max() < 0.006


# Costs: those of a router with its own encoder, less the whole expert, plus the expert's head.


def planned(name, mode):
    """The plan of a program whose router has an encoder of its own."""
    return secure_program(converted(pool(None), mode).manifest, name).plan()


@cache
def head():
    """The plan of the small expert's head alone."""
    encoder = encoders(talk("revealed").manifest)[f"experts.{SMALL}"]
    row = torch.empty(BATCH, WIDTHS[SMALL], dtype=torch.int64, device="meta")
    shapes = {"head.dense": (WIDTHS[SMALL],) * 2, "head.classifier": (WIDTHS[SMALL], LABELS)}
    shapes |= {f"{name}.bias": shape[1:] for name, shape in shapes.items()}
    words = {name: torch.empty(shape, dtype=torch.int64, device="meta") for name, shape in shapes.items()}
    weights = {f"experts.{SMALL}.{name}": WeightShare(part, part) for name, part in words.items()}
    return trace(
        lambda party: encoder.head(party, party.secret(row, encoder.hidden_width, 14, encoder.rings.bounds.residual)),
        weights,
    )


def test_a_revealed_router_sends_one_more_head_in_the_same_rounds():
    shared, own = answered("revealed").plans[0], planned("router/4", "revealed")
    assert shared.payload_bytes == own.payload_bytes + head().payload_bytes
    assert shared.dealer_bytes == own.dealer_bytes + head().dealer_bytes
    assert shared.rounds == own.rounds
    # The head runs instead of the whole expert, without the expert's rounds.
    assert 10 * head().payload_bytes < planned(f"experts.{SMALL}/4", "revealed").payload_bytes


def test_a_quota_shuffles_logits_in_place_of_embeddings():
    plans, own = answered("quota").plans, planned("route/4", "quota")
    embeddings = packed_size(BATCH * LENGTH * WIDTHS[SMALL], 22)
    logits = packed_size(BATCH * LABELS, 20)
    assert plans[0].payload_bytes == own.payload_bytes - embeddings + logits + head().payload_bytes
    assert plans[0].rounds == own.rounds
    both, expert = planned("serve/2.2", "quota"), planned("serve/0.2", "quota")
    assert plans[1].payload_bytes == both.payload_bytes - expert.payload_bytes
    assert plans[0].payload_bytes + plans[1].payload_bytes < own.payload_bytes + both.payload_bytes


def test_an_oblivious_pool_runs_the_shared_encoder_once():
    shared, own = answered("oblivious").plans[0], planned("oblivious/4", "oblivious")
    expert = planned(f"experts.{SMALL}/4", "oblivious")
    assert shared.payload_bytes == own.payload_bytes - expert.payload_bytes + head().payload_bytes
    assert shared.payload_bytes < own.payload_bytes and shared.rounds == own.rounds
    assert shared.dealer_bytes == own.dealer_bytes - expert.dealer_bytes + head().dealer_bytes


@pytest.mark.parametrize("mode", MODES)
def test_weights_and_embeddings_are_shared_once(mode):
    names, sizes = {}, {}
    for shared in (SMALL, None):
        secure = converted(pool(shared), mode)
        encoded = secure.client.tokenize({"input_ids": torch.ones(BATCH, LENGTH, dtype=torch.long)})
        inputs = secure.sharing.inputs(secure.client.embed(encoded), encoded["attention_mask"])["party0"]
        weights = [name for shares in secure.sharing.weights(secure.weights) for name in shares["party0"]]
        assert len(weights) == len(set(weights))
        names[shared], sizes[shared] = set(weights), {name: words.numel() for name, words in inputs.items()}
    kept = {f"router.head.{part}{bias}" for part in ("dense", "classifier") for bias in ("", ".bias")}
    assert {name for name in names[SMALL] if name.startswith("router.")} == kept
    assert names[SMALL] == names[None] - {name for name in names[None] if name.startswith("router.")} | kept
    # The expert's embeddings have the ring width that the router's embeddings have.
    small = f"experts.{SMALL}"
    assert sizes[SMALL].keys() == sizes[None].keys() - {"router"}
    assert sizes[SMALL] == {name: sizes[None]["router" if name == small else name] for name in sizes[SMALL]}


def test_calibration_finds_bounds_of_one_encoder_and_two_heads():
    samples = dict(zip(("input_ids", "attention_mask"), mixed(pool()), strict=True))
    for mode, widths in (("revealed", WIDTHS), ("oblivious", (8, 8))):
        secure = converted(pool(widths=widths), mode, calibration=samples)
        assert secure.manifest.bounds["router"].keys() == {"head"}
        router, expert = (encoders(secure.manifest)[member] for member in ("router", f"experts.{SMALL}"))
        assert router.layer_rings == expert.layer_rings
        assert router.hidden_width == expert.hidden_width < 64
        assert router.logit_width == RingWidths.logits + Bounds.logits + 2 > expert.logit_width
    secure = converted(pool(), "revealed", calibration=samples)
    logits, _ = clear(pool(), *mixed(pool()))
    assert (Conversation(secure)(*mixed(pool())).logits - logits).abs().max() < 0.006


# Views of the roles.


def one_sided():
    """A batch whose queries all choose expert 0, and one whose queries all choose the shared one; equal lengths."""
    return [ids[mask.bool().all(1)][:BATCH] for ids, mask in queries(pool())]


@pytest.mark.parametrize("mode", ["quota", "oblivious"])
def test_nothing_tells_how_a_batch_is_routed(mode):
    assert looks_alike(talk(mode), one_sided(), runs=4)


def test_revealed_shows_the_expert_and_nothing_else():
    for expert, batch in enumerate(one_sided()):
        shapes, openings = views(talk("revealed"), batch, 1)
        others = () if expert == SMALL else (f"experts.{expert}/4",)
        assert [programs for programs, _ in shapes] == [("router/4", *others)]
        revealed = [key for key in openings if key[3] == "Reveal" and key[2] == "opened"]
        assert len(revealed) == 2  # once at each party
        for key in revealed:
            assert all(part.tolist() == [1 - expert] * BATCH + [expert] * BATCH for part in openings[key])
