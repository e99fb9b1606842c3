# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The three modes of routing privacy: their answers, their costs, and each role's view of the choice."""

from functools import cache

import pytest
import torch
from scipy import stats

from hf_securerouter.mpc.conversion.validation import ConversionError
from hf_securerouter.mpc.gates.argmax import Reveal
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.protocols.masked import programs as masked_programs
from hf_securerouter.mpc.ring.words import packed_size
from hf_securerouter.routing import assign_by_quota, fill_batch
from tests.support.conversation import Conversation, looks_alike, views
from tests.tiny import family_config, pool_model


LENGTH = 6
MODES = ("revealed", "quota", "oblivious")


def same_shape(count, **fields):
    return pool_model(("bert",) * count, expert_configs=[family_config("bert") for _ in range(count)], **fields)


POOLS = {
    "three experts": lambda **fields: pool_model(("bert", "distilbert", "electra"), **fields),
    "one shape": lambda **fields: same_shape(3, **fields),
}


def batch_for(model):
    """Five queries of different lengths that choose all of three experts."""
    ids = torch.randint(5, 24, (400, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH) < (torch.arange(400) % (LENGTH - 2) + 3)[:, None]).long()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
    # Clearly decided queries only: rounding would decide the others.
    best = output.router_logits.topk(2).values
    rows = [
        ((output.expert_indices == expert) & (best[:, 0] - best[:, 1] > 0.05)).nonzero()[:count, 0]
        for expert, count in enumerate((2, 1, 2))
    ]
    rows = torch.cat(rows)[torch.tensor([3, 0, 2, 4, 1])]
    return ids[rows], mask[rows]


@torch.no_grad()
def expected(model, ids, mask, mode, quotas=None):
    """The logits of the clear model under the same policy, and the experts."""
    output = model(input_ids=ids, attention_mask=mask)
    chosen = output.expert_indices
    if mode == "quota":
        chosen = assign_by_quota(output.router_logits, quotas, model.config.expert_costs)
    logits = torch.stack([expert(input_ids=ids, attention_mask=mask).logits for expert in model.experts])
    return logits[chosen, torch.arange(len(ids))], chosen.tolist()


def converted(model, mode, **options):
    return model.to_mpc(routing_privacy=mode, max_length=LENGTH, **options)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("mode", MODES)
def test_logits_are_those_of_the_clear_model_under_the_same_policy(mode, pool, num_labels):
    model = POOLS[pool](num_labels=num_labels)
    quotas = [2, 1, 2]
    talk = Conversation(converted(model, mode, **({"quotas": quotas} if mode == "quota" else {})))
    ids, mask = batch_for(model)
    clear, chosen = expected(model, ids, mask, mode, quotas)
    assert set(chosen) == {0, 1, 2}
    for _ in range(2):  # fresh masks
        done = talk(ids, mask)
        assert (done.logits - clear).abs().max() < 0.006
        assert done.experts == (chosen if mode == "revealed" else None)


def test_quotas_that_leave_an_expert_out_or_take_several_turns(monkeypatch):
    monkeypatch.setattr("hf_securerouter.mpc.protocols.masked.schedule.SERVED", 2)
    model = POOLS["three experts"]()
    quotas = [3, 0, 2]
    ids, mask = batch_for(model)
    clear, _ = expected(model, ids, mask, "quota", quotas)
    done = Conversation(converted(model, "quota", quotas=quotas))(ids, mask)
    assert (done.logits - clear).abs().max() < 0.006
    assert done.programs == ["read/2", "read/2", "read/1", "rank/5", "serve/2.0.2", "serve/1.0.0", "restore/5"]


def test_copies_are_served_by_quota_too():
    """Copies of one query, as in a filled-up batch: rounding decides their experts, and every quota is kept."""
    model = POOLS["three experts"]()
    ids, mask = (part[:1].expand(4, -1) for part in batch_for(model))
    done = Conversation(converted(model, "quota", quotas=[2, 1, 1]))(ids, mask)
    with torch.no_grad():
        answers = torch.cat([expert(input_ids=ids[:1], attention_mask=mask[:1]).logits for expert in model.experts])
    distance = (done.logits[:, None] - answers).abs().amax(-1)
    assert distance.amin(1).max() < 0.006
    assert distance.argmin(1).bincount(minlength=3).tolist() == [2, 1, 1]


def test_lambda_is_folded_into_the_head():
    model = POOLS["three experts"]()
    ids, mask = batch_for(model)
    for price in (10.0, 1e6):  # the second exceeds the bound of the scores, and is capped
        talk = Conversation(converted(model, "revealed", routing_lambda=price))
        assert talk(ids, mask).experts == [0] * 5  # the cheapest
    assert model.config.routing_lambda == 0.0
    with torch.no_grad():  # scores as far apart as their bound allows
        model.router.out_proj.weight.zero_()
        model.router.out_proj.bias.copy_(torch.tensor([-60.0, 60.0, 0.0]))
    for price, chosen in ((0.0, 1), (1e6, 0)):
        assert Conversation(converted(model, "revealed", routing_lambda=price))(ids, mask).experts == [chosen] * 5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"routing_privacy": "secret"}, "`routing_privacy`"),
        ({"routing_privacy": "quota", "quotas": [1, 2]}, "`quotas`"),
        ({"routing_privacy": "quota", "quotas": [0, 0, 0]}, "`quotas`"),
        ({"routing_privacy": "quota", "quotas": [1, 2, -1]}, "`quotas`"),
        ({"routing_privacy": "quota", "quotas": [100, 100, 100]}, "`quotas`"),
        ({"routing_privacy": "oblivious", "quotas": [1, 1, 1]}, "`quotas`"),
        ({"routing_privacy": "oblivious", "routing_lambda": -1.0}, "`routing_lambda`"),
        ({"routing_privacy": "oblivious", "routing_lambda": float("nan")}, "`routing_lambda`"),
        ({"routing_privacy": "quota", "protocol": "crypten"}, "`routing_privacy`"),
    ],
)
def test_what_cannot_be_is_refused(options, named):
    with pytest.raises(ConversionError, match=named) as raised:
        POOLS["three experts"]().to_mpc(max_length=LENGTH, **options)
    assert len(raised.value.problems) == 1


# Costs.


def plan_bytes(model, mode, name, **options):
    plan = masked_programs.secure_program(converted(model, mode, **options).manifest, name).plan()
    return 2 * plan.payload_bytes, plan.rounds


def test_select_then_compute_sends_an_embedding_more_for_each_expert_and_nothing_else():
    plans = {
        count: masked_programs.secure_program(converted(same_shape(count), "oblivious").manifest, "oblivious/4").plan()
        for count in (2, 4)
    }
    for count, plan in plans.items():
        embeddings = count * 4 * LENGTH * 16
        assert plan.by_gate["Select"].sent == packed_size(count * 4, 1) + packed_size(embeddings, 22)
    few, many = ({gate: count.sent for gate, count in plan.by_gate.items()} for plan in plans.values())
    linear = few["SelectedLinear"]
    assert linear <= many["SelectedLinear"] < 1.01 * linear  # bits
    assert {gate for gate in few if few[gate] != many[gate]} == {"Select", "SelectedLinear", "Argmax"}


def test_quota_takes_a_round_more_than_an_argmax():
    model, quotas = POOLS["three experts"](), [3, 2, 1]
    secure = converted(model, "quota", quotas=quotas)
    rounds = {
        name: masked_programs.secure_program(secure.manifest, name).plan().rounds for name in ("route/6", "restore/6")
    }
    router = masked_programs.secure_program(converted(model, "revealed").manifest, "router/6").plan().rounds
    # The keys, three rounds of comparisons, one of ANDs, the ranks; an argmax of three has no keys to shuffle.
    assert rounds == {"route/6": router + 1, "restore/6": 1}


# Views of the roles.


@cache
def small_pool():
    """Two experts of one layer each, of different widths."""
    configs = [family_config("bert", width=width) for width in (8, 16)]
    return pool_model(("bert", "bert"), expert_configs=configs)


@cache
def one_sided_batches(count=4):
    """Queries that all clearly choose expert 0, and as many that all choose expert 1."""
    model, found = small_pool(), [[], []]
    ids = torch.randint(5, 24, (400, LENGTH), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    decided = output.router_logits.diff().abs().squeeze(1) > 0.2  # on shares, rounding decides a near tie at random
    for row in decided.nonzero()[:, 0].tolist():
        found[output.expert_indices[row]].append(ids[row])
    return [torch.stack(rows[:count]) for rows in found]


def showing_signs(manifest, program):
    """A program that opens the signs of the router's scores first."""

    def leaky(party, shares):
        scores = yield from masked_programs.classify(manifest, "router", party, shares)
        (negative,) = yield from Compare(scores.shape, scores.width, (0,)).run(party, scores)
        yield from Reveal(tuple(negative.shape)).run(party, negative)
        return (yield from program(manifest, party, shares))

    return leaky


def shows_only_the_expert(talk, batch, expert):
    """Whether a batch that goes to one expert opens the one-hot, and nothing else that is not uniform."""
    shapes, openings = views(talk, batch, 8)
    one_hot = [1 - expert] * 4 + [expert] * 4
    for key, parts in openings.items():
        if key[3] == "Reveal" and key[2] == "opened":
            if any(part.tolist() != one_hot for part in parts):
                return False
            continue
        counts = torch.bincount(torch.cat(parts).to(torch.int64) & 1, minlength=2)
        if stats.chisquare(counts.numpy()).pvalue <= 1e-9:
            return False
    return all(programs == ("router/4", f"experts.{expert}/4") for programs, _ in shapes)


def test_revealed_shows_the_expert_and_nothing_else():
    talk = Conversation(converted(small_pool(), "revealed"))
    batches = one_sided_batches()
    assert not looks_alike(talk, batches, runs=1)
    assert all(shows_only_the_expert(talk, batch, expert) for expert, batch in enumerate(batches))


def test_a_leaky_revealed_mode_is_noticed():
    """The leaky program opens the signs of the scores too."""
    secure = converted(small_pool(), "revealed")
    talk = Conversation(secure, {"router": showing_signs(secure.manifest, masked_programs.reveal)})
    assert not any(shows_only_the_expert(talk, batch, expert) for expert, batch in enumerate(one_sided_batches()))


def test_nothing_tells_how_a_batch_is_routed_that_is_read_in_parts(monkeypatch):
    monkeypatch.setattr("hf_securerouter.mpc.protocols.masked.schedule.SERVED", 3)
    talk = Conversation(converted(small_pool(), "quota", quotas=[2, 2]))
    assert looks_alike(talk, one_sided_batches())
    assert talk(one_sided_batches()[0], torch.ones(4, LENGTH, dtype=torch.long)).programs[:3] == [
        "read/3",
        "read/1",
        "rank/4",
    ]


@pytest.mark.parametrize("mode", ["quota", "oblivious"])
def test_nothing_tells_how_a_batch_is_routed(mode):
    assert looks_alike(Conversation(converted(small_pool(), mode, **quotas_of(mode))), one_sided_batches())


@pytest.mark.parametrize("mode", ["quota", "oblivious"])
def test_nothing_tells_how_a_batch_is_routed_whose_shares_the_servers_copied(mode):
    """Copies have the same shares, which both servers know; what they open is as uniform as for other rows."""
    talk = Conversation(converted(small_pool(), mode, **quotas_of(mode)), rows=fill_batch(2, 4).tolist())
    assert looks_alike(talk, one_sided_batches(2))


def test_nothing_tells_how_a_batch_is_routed_where_experts_have_one_shape():
    model = pool_model(("bert", "bert"), expert_configs=[family_config("bert", width=8) for _ in range(2)])
    assert looks_alike(Conversation(converted(model, "oblivious")), one_sided_batches())


def quotas_of(mode):
    return {"quotas": [2, 2]} if mode == "quota" else {}


@pytest.mark.parametrize("rows", [None, [0, 1, 0, 1]])
def test_a_leaky_oblivious_mode_is_noticed(rows):
    """The leaky program reveals the bits that select the expert; with `rows`, of a batch that the servers filled."""
    secure = converted(small_pool(), "oblivious")

    def leaky(party, shares):
        bits, _ = yield from masked_programs.choose_and_answer(secure.manifest, party, shares)
        yield from Reveal(tuple(bits.shape)).run(party, bits)
        return (yield from masked_programs.oblivious(secure.manifest, party, shares))

    batches = one_sided_batches(4 if rows is None else 2)
    assert not looks_alike(Conversation(secure, {"oblivious": leaky}, rows), batches)


def test_a_leaky_quota_mode_is_noticed():
    """The leaky program opens the top bits of the scores before the shuffle."""
    secure = converted(small_pool(), "quota", quotas=[2, 2])
    talk = Conversation(secure, {"route": showing_signs(secure.manifest, masked_programs.route)})
    assert not looks_alike(talk, one_sided_batches(), runs=8)


def test_quota_reveals_the_ranks_once_and_nothing_else():
    manifest = converted(small_pool(), "quota", quotas=[2, 2]).manifest
    names = ("route/4", "serve/2.2", "restore/4")
    plans = {name: masked_programs.secure_program(manifest, name).plan() for name in names}
    revealed = {name: [gate.shape for gate in plan.gates if isinstance(gate, Reveal)] for name, plan in plans.items()}
    assert revealed == {"route/4": [(1, 6)], "serve/2.2": [], "restore/4": []}  # a bit for each pair of four queries
