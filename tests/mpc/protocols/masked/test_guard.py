# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A guarded encoder: silent within its bounds, and never silent beyond one of them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from hf_securerouter.errors import SecureRouterError, SecureRouterWarning
from hf_securerouter.lengths import copy_into_padding
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.ranges import bounds_for, reached
from hf_securerouter.mpc.conversion.validation import ConversionError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.gates.in_range import InRange
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.protocols.masked.layout import GUARD, member_weights
from hf_securerouter.mpc.protocols.masked.programs import secure_program
from hf_securerouter.mpc.protocols.masked.ring_widths import Bounds, RingWidths
from hf_securerouter.mpc.protocols.masked.roles import refreshed_flag
from hf_securerouter.mpc.protocols.masked.schedule import programs
from hf_securerouter.mpc.ring.randomness import new_seed
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.mpc.sessions.local import LocalSession
from hf_securerouter.mpc.tuples.party_set import SetLabel
from hf_securerouter.number_format import widest_distance
from tests.mpc.protocols.masked.test_encoder import BASE, SMALL, batch_of, encrypted, weights_of
from tests.support.conversation import Conversation
from tests.support.openings import gates_that_look_alike
from tests.tiny import VOCABULARY, modern_config, noisy_classifier, pool_model


X, LIVE = batch_of(SMALL, [12, 5, 1], 12)
INPUTS = {"input_ids": torch.randint(5, len(VOCABULARY), (3, 10), generator=torch.Generator().manual_seed(3))}


@pytest.mark.parametrize("softmax", ["exact", "2quad"])
def test_within_the_bounds_nothing_is_flagged_and_logits_are_those_of_the_clear_encoder(softmax):
    spec = replace(SMALL, softmax=softmax)
    expected = ClearEncoder(spec, weights_of(spec))(X, LIVE)
    for _ in range(2):
        done = encrypted(spec, X, LIVE, guarded=True)
        assert done.guard_word == 0
        assert (done.values - expected).abs().max() < 0.004


def test_each_value_beyond_its_bound_is_noticed():
    """One bound at a time is narrowed until the largest value lies between the bound and three times it."""
    weights = weights_of(SMALL)
    for name in ("layers.0.query", "layers.0.intermediate", "layers.1.intermediate", "head.dense"):
        weights[f"{name}.weight"] *= 8  # activations and scores have bounds of 8 and more
    clear = ClearEncoder(SMALL, weights)
    clear(X, LIVE)
    found = [reached(clear.seen, position) for position in (None, 0, 1)]
    for kind in ("value", "residual", "inner", "head", "logits", "variance_high", "scores"):
        largest = max(one.get(kind, 0) for one in found)
        bound = math.floor(math.log2(largest / 1.2))
        if kind == "scores":
            bound += 2  # its range is twice the bound, and a guard wants scores below half of that
        done = encrypted(SMALL, X, LIVE, Bounds().replaced(**{kind: bound}), weights, guarded=True)
        assert done.guard_word != 0, kind
    assert encrypted(SMALL, X, LIVE, weights=weights, guarded=True).guard_word == 0


def opened_for_the_guard(manifest):
    """How many bits of which values are opened for the guard alone, by their number of dimensions."""
    gates = secure_program(replace(manifest, guard=True), "experts.0/1").plan().gates
    return [(len(gate.shape), gate.bits) for gate in gates if isinstance(gate, InRange)]


def test_what_no_gate_lifts_is_opened_for_the_guard():
    """Values and scores of both layers, and the logits; 2Quad lifts scores within their bound, 2ReLU beyond it."""
    manifest = Manifest("masked", "ttp", "revealed", "cpu", 8, None, (SMALL,))
    layer = [(4, 6), (4, 6)]
    for softmax, found in (("exact", layer), ("2relu", layer), ("2quad", layer[:1])):
        own = replace(manifest, experts=(replace(SMALL, softmax=softmax),))
        assert opened_for_the_guard(own) == [*found, *found, (2, 6)]
    shifted = to_mpc(noisy_classifier("mpnet", width=16, heads=2), max_length=10).manifest
    assert opened_for_the_guard(shifted) == [(4, 6), (4, 7)] * 2 + [(2, 6)]  # a quarter of the bound, in a wider ring


def test_scores_out_of_reach_of_a_window_are_not_flagged():
    """Early queries meet late keys far beyond the bound of the scores that are used."""
    spec, weights = replace(SMALL, num_layers=1, layer_map=(0,), windows=(2,)), weights_of(SMALL)
    x = 0.3 * X[:1]
    x[0, :4, 0] += 4
    x[0, 8:, 1] += 4
    for start in (0, 16):  # the first feature of both heads
        for name, column in (("query", 0), ("key", 1)):
            weights[f"layers.0.{name}.weight"][start] = 5.0 * torch.eye(32)[column]
    clear = ClearEncoder(spec, weights)
    clear(x, LIVE[:1])
    bounds = Bounds().replaced(scores=bounds_for(reached(clear.seen, 0), False, guarded=True)["scores"])
    assert bounds.scores < Bounds().scores
    assert encrypted(spec, x, LIVE[:1], bounds, weights, guarded=True).guard_word == 0


def test_mean_squares_have_room_where_a_guard_reads_them():
    rings = RingWidths(Bounds(), 12, pools=True)
    assert replace(rings, guarded=True).unit_width(256) == rings.unit_width(256) + 2


def test_weights_of_2relu_have_no_more_bits_than_scores():
    for context in (-2, 1, 4):
        rings = RingWidths(Bounds().replaced(context=context), 12, "2relu")
        assert rings.unnormalized <= rings.bits.scores


def test_a_quiet_router_of_a_mixture_keeps_the_least_bound_that_its_gates_read():
    assert Bounds().replaced(routing=0).routing == 2


def test_what_is_too_small_is_noticed():
    clear = ClearEncoder(SMALL, weights_of(SMALL))
    clear(X, LIVE)
    low = min(reached(clear.seen, layer)["variance_low"] for layer in (0, 1))
    bounds = Bounds().replaced(variance_low=int(torch.tensor(low).log2().ceil()) + 1)
    assert encrypted(SMALL, X, LIVE, bounds=bounds, guarded=True).guard_word != 0


@pytest.fixture(scope="module")
def norm_first():
    """One layer of ModernBERT, whose norms all divide behind a product, and what a text of one token reaches in it."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(modern_config(), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    secure = to_mpc(model, max_length=2, guard=True)
    weights = member_weights(secure.manifest, "experts.0", secure.weights)
    clear = ClearEncoder(secure.manifest.experts[0], weights)
    text = {"input_ids": torch.tensor([[7, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    embedded = secure.client.embed(text)["experts.0"]
    clear(copy_into_padding(embedded, text["attention_mask"]), text["attention_mask"])
    assert Conversation(secure)(*text.values()).in_bounds
    return secure, text, clear.seen


@pytest.mark.parametrize("kind, place", [("variance", 0), ("norm", None)])
@pytest.mark.parametrize("end", ["low", "high"])
def test_mean_squares_beyond_a_bound_are_noticed_where_a_product_is_divided(norm_first, kind, place, end):
    """Of a layer's rows and of the head's own norm. A head's norm allows a quarter of its lower bound."""
    secure, text, seen = norm_first
    value = math.log2(reached(seen, place)[f"{kind}_{end}"])
    bound = math.floor(value) if end == "high" else math.ceil(value) + (2 if kind == "norm" else 0)
    bounds = {"experts.0" if place is None else f"experts.0.layers.{place}": {f"{kind}_{end}": bound}}
    narrowed = SecureModel(replace(secure.converted, manifest=replace(secure.manifest, bounds=bounds)))
    assert Conversation(narrowed)(*text.values()).in_bounds is False


def test_what_the_parties_see_tells_nothing_of_what_is_noticed():
    """One input is within the bounds, and the other beyond them."""
    spec = replace(SMALL, num_layers=1, layer_map=(0,))
    bounds = Bounds().replaced(inner=3)
    cases = [(spec, X[:1, :4] * scale, LIVE[:1, :4], bounds) for scale in (0.5, 1.0)]
    large = weights_of(spec)
    large["layers.0.intermediate.weight"] *= 12

    def guarded(spec, x, live, bounds):
        weights = large if x is cases[1][1] else weights_of(spec)
        return encrypted(spec, x, live, bounds, weights, guarded=True)

    assert guarded(*cases[0]).guard_word == 0 and guarded(*cases[1]).guard_word != 0
    assert {"InRange", "Compare"} <= gates_that_look_alike(guarded, cases, runs=12)


def test_a_flag_is_one_bit_under_a_fresh_mask():
    """Two queries with one share of the word have shares that differ, and only both together tell the word."""
    seed, words = new_seed(), (0x5EED, -7)
    label = SetLabel("0" * 32, "0" * 32, "plan")
    first, second = (refreshed_flag(seed, label, word) for word in words)
    later = refreshed_flag(seed, replace(label, id="1" * 32), words[0])
    assert not torch.equal(first, later)
    assert int((first ^ second).view(torch.int64)[0]) == words[0] ^ words[1]


def test_costs():
    manifest = Manifest("masked", "ttp", "revealed", "cpu", 128, None, (BASE,))
    plans = [secure_program(replace(manifest, guard=on), "experts.0/1").plan() for on in (False, True)]
    assert [(plan.payload_bytes, plan.rounds) for plan in plans] == [(98852818, 316), (101388552, 319)]
    assert plans[1].payload_bytes < 1.05 * plans[0].payload_bytes
    assert plans[1].dealer_bytes < 1.05 * plans[0].dealer_bytes


def test_scores_get_bounds_that_a_guard_can_check():
    found = {"scores": 40.0, "span": 50.0}
    for biased, factor in ((False, 2), (True, 4)):
        bound = bounds_for(found, biased, guarded=True)["scores"]
        assert 2 ** (bound - 1) >= 1.5 * 40 * factor


@given(st.floats(0, 1e4), st.booleans())
def test_scores_that_a_guard_does_not_note_are_never_too_far_apart(scores, shifts_padding):
    """A guard notes 15/16 of its bound and more (`gates/in_range.py`)."""
    found = bounds_for({"scores": scores, "span": scores}, shifts_padding, guarded=True)
    rings = RingWidths(Bounds().replaced(scores=found["scores"]), 4, shifts_padding=shifts_padding, guarded=True)
    assert 2 * 15 / 16 * 2.0**rings.guarded_scores <= widest_distance(rings.bounds, shifts_padding)


@pytest.fixture(scope="module")
def guarded():
    return to_mpc(noisy_classifier("bert", width=16, heads=2), max_length=10, guard=True)


class Unaware(LocalSession):
    """A session without the model in clear text, as a client has."""

    def _compare(self, batch, logits, experts):
        pass


def test_a_session_tells_of_each_batch(guarded):
    with Unaware(guarded.converted, timeout=60, batch_size=2) as session:
        assert session(INPUTS).in_bounds == [True] * 3
    bounds = {"experts.0.layers.1": {"inner": 3, "residual": 0}}
    beyond = SecureModel(replace(guarded.converted, manifest=replace(guarded.manifest, bounds=bounds)))
    with Unaware(beyond.converted, timeout=60) as session:
        with pytest.warns(SecureRouterWarning, match=r"3 inputs were in batches with a value at or beyond its bound"):
            assert session(INPUTS).in_bounds == [False] * 3


def test_all_programs_of_a_batch_are_guarded():
    secure = to_mpc(pool_model(), max_length=10, routing_privacy="quota", guard=True)
    with secure.local_session(timeout=60) as session:
        assert session(INPUTS).in_bounds == [True] * 3
    for privacy in ("revealed", "quota", "oblivious"):
        manifest = replace(secure.manifest, routing_privacy=privacy)
        for name in itertools.chain(*programs(manifest, 3)):
            assert secure_program(manifest, name).guarded


def test_an_answer_without_the_word_is_refused(guarded):
    sharing = guarded.sharing
    for wrong in (torch.zeros(4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), None):
        shares = {"party0": {GUARD: torch.zeros(8, dtype=torch.uint8)}, "party1": {GUARD: wrong}}
        with pytest.raises(SecureRouterError, match="without two shares of the guard's word"):
            sharing.in_bounds(shares)


def test_the_reference_has_no_guard(guarded):
    with pytest.raises(ConversionError, match="`guard`: protocol 'crypten' has none"):
        to_mpc(noisy_classifier("bert", width=16, heads=2), max_length=10, protocol="crypten", guard=True)
    plain = Manifest.from_dict({name: v for name, v in guarded.manifest.to_dict().items() if name != "guard"})
    assert not plain.guard and Manifest.from_dict(guarded.manifest.to_dict()).guard
