# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The masked protocol in processes of its own: answers, counts, and the data that each role sees and keeps."""

import json
import warnings

import pytest
import torch

from hf_securerouter.lengths import copy_into_padding
from hf_securerouter.mpc.net.frame import HEADER
from hf_securerouter.mpc.protocols.masked.folding import fold_weights
from hf_securerouter.mpc.protocols.masked.layout import encoders
from hf_securerouter.mpc.protocols.masked.roles import refreshed
from hf_securerouter.mpc.protocols.masked.sharing import MaskedSharing
from hf_securerouter.mpc.ring.words import signed, unpack
from hf_securerouter.mpc.sessions import local as session_module
from hf_securerouter.mpc.tuples.party_set import SetLabel
from tests.support import script
from tests.support.children import children
from tests.tiny import VOCABULARY, pool_model


LENGTH = 8
ROLES = ("party0", "party1", "dealer")
SCRIPT = script("masked_recording_role")


def converted(model=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return (model or pool_model()).to_mpc(
            protocol="masked", max_length=LENGTH, **{"routing_privacy": "revealed"} | options
        )


def texts(seed=0, rows=4):
    """Token ids and masks of `rows` texts, all but the first shorter than the padded length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(VOCABULARY), (rows, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH, (rows,), generator=generator)
    lengths[0] = LENGTH
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


class Recorded:
    """A session of recording roles: three queries, of which the first two are the same."""

    def __init__(self, folder):
        self.folder = folder
        self.model = pool_model()
        self.secure = converted(self.model)
        self.weight_shares, self.input_shares = [], []

    def bytes(self, role, source=None):
        """All that a role received, from one source or from anyone."""
        paths = sorted(self.folder.glob(f"{role}.{source or '*'}.bin"))
        assert paths or role == "dealer"
        return b"".join(path.read_bytes() for path in paths)

    def notes(self, role, fact):
        lines = (self.folder / f"{role}.jsonl").read_text().splitlines()
        return [found for found in map(json.loads, lines) if fact in found]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    found = Recorded(tmp_path_factory.mktemp("record"))
    sharing = found.secure.sharing

    def weights(values):
        for shares in MaskedSharing.weights(sharing, values):
            found.weight_shares.append(shares)
            yield shares

    def inputs(embeddings, mask):
        found.input_shares.append(MaskedSharing.inputs(sharing, embeddings, mask))
        return found.input_shares[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECUREROUTER_RECORD", str(found.folder))
        patch.setattr(session_module, "ROLE_PROGRAM", (SCRIPT,))
        patch.setattr(sharing, "weights", weights)
        patch.setattr(sharing, "inputs", inputs)
        with found.secure.local_session(timeout=120) as session:
            found.children = children()
            found.results = [session(texts(seed)) for seed in (0, 0, 1)]
    return found


def test_answers_are_those_of_the_model(recorded):
    for result, seed in zip(recorded.results, (0, 0, 1), strict=True):
        with torch.no_grad():
            output = recorded.model(**texts(seed))
        assert result.expert_indices == output.expert_indices.tolist()
        assert (result.logits - output.logits).abs().max() < 0.01
        assert result.labels == [recorded.model.config.id2label[row.argmax().item()] for row in output.logits]
    assert not torch.equal(recorded.results[0].logits, recorded.results[1].logits)  # fresh masks round differently


def test_what_is_counted_is_what_the_plan_says_and_the_kernel_saw(recorded):
    for role in ("party0", "party1"):
        counts = recorded.notes(role, "counted")
        assert len(counts) == 3
        for found, result in zip(counts, recorded.results, strict=True):
            experts = sorted(set(result.expert_indices))
            rows = [result.expert_indices.count(index) for index in experts]
            assert found["programs"] == [
                "router/4",
                *(f"experts.{index}/{count}" for index, count in zip(experts, rows, strict=True)),
            ]
            (payload, rounds), (sent, received, counted_rounds, dealer) = found["planned"], found["counted"]
            runs = len(found["programs"])
            assert counted_rounds == rounds + runs
            assert sent == received == payload + HEADER.size * rounds + found["compared"]
            assert 100 * runs < found["compared"] < 300 * runs
            assert found["kernel"] == [sent, received]
            if role == "party0":
                assert found["corrections"] < dealer < found["corrections"] + 20_000 * runs
            else:
                assert dealer < 600 * runs


def test_costs_add_up(recorded):
    pairs = zip(recorded.notes("party0", "counted"), recorded.notes("party1", "counted"), strict=True)
    for (first, second), result in zip(pairs, recorded.results, strict=True):
        cost = result.cost
        assert cost.online_bytes == first["counted"][0] + second["counted"][0]
        assert cost.rounds == first["counted"][2] == second["counted"][2]
        assert cost.dealer_bytes == first["counted"][3] + second["counted"][3]
        for name in ("online_bytes", "rounds", "dealer_bytes"):
            assert sum(gate[name] for gate in cost.by_gate) == getattr(cost, name)
        assert min(cost.preprocess_seconds, cost.online_seconds, cost.dealer_seconds) > 0
    for name in ("online_bytes", "rounds", "dealer_bytes"):
        first, second = (getattr(result.cost, name) for result in recorded.results[:2])
        assert first == second  # a set that was dealt ahead costs as much as a set dealt on demand


def masked_weights(recorded):
    """D of every tensor that is large enough not to appear by chance."""
    found = {}
    for shares in recorded.weight_shares[1:]:
        assert shares.keys() == {"party0", "party1"}  # nothing for the dealer
        assert all(torch.equal(shares["party0"][name], shares["party1"][name]) for name in shares["party0"])
        found |= shares["party0"]
    return {name: words for name, words in found.items() if words.numel() >= 2}


def test_the_parties_get_d_and_the_dealer_never_does(recorded):
    received = {role: recorded.bytes(role) for role in ROLES}
    weights = masked_weights(recorded)
    assert len(weights) > 50
    for name, words in weights.items():
        data = words.numpy().tobytes()
        assert data in received["party0"] and data in received["party1"], name
        for start in range(0, len(data), 16):
            assert data[start : start + 16] not in received["dealer"], name
    # The owner sends the dealer only the set-up, two seeds, and the sizes of batches.
    assert len(recorded.bytes("dealer", "caller")) < 5000
    assert len(recorded.bytes("dealer", "parties")) < 5000


def test_nobody_gets_a_weight(recorded):
    """No role receives W as integers, and D is neither W nor half of W."""
    received = {role: recorded.bytes(role) for role in ROLES}
    weights = masked_weights(recorded)
    checked = 0
    for prefix, encoder in encoders(recorded.secure.manifest).items():
        own = {
            name.removeprefix(f"{prefix}."): values
            for name, values in recorded.secure.weights.items()
            if name.startswith(f"{prefix}.")
        }
        for name, words in fold_weights(encoder.spec, own, encoder.rings).items():
            if words.numel() < 2 or not words.any():
                continue
            checked += 1
            assert not (weights[f"{prefix}.{name}"] == words).any()
            assert all(words.numpy().tobytes() not in data for data in received.values())
    assert checked > 30


def test_a_weight_seed_stays_with_its_two_holders(recorded):
    shares = recorded.weight_shares[0]
    assert {role: set(tensors) for role, tensors in shares.items()} == {
        "party0": {"seed"},
        "party1": {"seed"},
        "dealer": {"seed0", "seed1"},
    }
    seeds = [bytes(shares["dealer"][f"seed{rank}"].tolist()) for rank in (0, 1)]
    assert seeds[0] != seeds[1]
    received = {role: recorded.bytes(role) for role in ROLES}
    for rank, seed in enumerate(seeds):
        assert bytes(shares[f"party{rank}"]["seed"].tolist()) == seed
        assert {role for role, data in received.items() if seed in data} == {f"party{rank}", "dealer"}
        assert received[f"party{rank}"].count(seed) == received["dealer"].count(seed) == 1


def test_a_set_s_seed_goes_to_its_party_alone(recorded):
    received = {role: recorded.bytes(role) for role in ROLES}
    runs = sum(len(found["programs"]) for found in recorded.notes("party0", "programs"))
    assert runs > 3
    # Without the set that was being dealt ahead when the session ended.
    sets = {role: recorded.notes(role, "set")[:runs] for role in ("party0", "party1")}
    assert [found["set"] for found in sets["party0"]] == [found["set"] for found in sets["party1"]]
    seeds = [found["seed"] for role in sets for found in sets[role]]
    assert len(seeds) == len(set(seeds)) == 2 * runs  # fresh for every run
    for role, other in (("party0", "party1"), ("party1", "party0")):
        for found in sets[role]:
            seed = bytes.fromhex(found["seed"])
            assert received[role].count(seed) == 1
            assert seed not in received[other] and seed not in received["dealer"]


def test_the_seed_of_the_zero_shares_is_the_parties_alone(recorded):
    drawn = [bytes.fromhex(found["drawn"]) for role in ROLES[:2] for found in recorded.notes(role, "drawn")]
    assert len(set(drawn)) == 2 and all(len(part) == 32 for part in drawn)
    for part, other in zip(drawn, ("party1", "party0"), strict=True):
        assert recorded.bytes(other, "link").count(part) == 1
        assert part not in recorded.bytes("dealer")
        for role in ROLES[:2]:
            for source in ("caller", "dealer"):
                assert part not in recorded.bytes(role, source)


def test_inputs_are_masked_afresh(recorded):
    first, second, other = recorded.input_shares
    assert all(set(shares) == {"party0", "party1"} for shares in recorded.input_shares)  # nothing for the dealer
    seeds = [bytes(shares["party1"]["seed"].tolist()) for shares in recorded.input_shares]
    assert len(set(seeds)) == 3 and all(set(shares["party1"]) == {"seed"} for shares in recorded.input_shares)
    for name, part in first["party0"].items():
        assert part.dtype == torch.uint8
        again = second["party0"][name]  # the same texts
        assert part.shape == again.shape == other["party0"][name].shape
        assert (part == again).double().mean() < (0.9 if name == "live" else 0.05)
        assert part.numpy().tobytes() in recorded.bytes("party0", "caller")
        assert part.numpy().tobytes() not in recorded.bytes("party1") + recorded.bytes("dealer")
    for seed in seeds:
        assert seed in recorded.bytes("party1", "caller")
        assert seed not in recorded.bytes("party0") + recorded.bytes("dealer")


def test_what_a_party_hears_from_the_other_differs_between_runs_of_one_input(recorded):
    """And no message from the other party is one of its shares, unmasked."""
    for role in ROLES[:2]:
        heard = recorded.bytes(role, "link")
        blocks = [heard[start : start + 16] for start in range(0, len(heard), 16)]
        repeated = len(blocks) - len(set(blocks))
        assert repeated < 20  # hellos and labels repeat; openings do not


def test_no_process_stays(recorded):
    assert len(recorded.children) == 3
    assert not [child for child in recorded.children if child.is_running()]


def test_padding_becomes_copies_of_the_last_live_row():
    values = torch.arange(3 * 4 * 2.0).view(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    copied = copy_into_padding(values, mask)
    assert torch.equal(copied[0], values[0, [0, 1, 1, 1]])
    assert torch.equal(copied[1], values[1])
    assert torch.equal(copied[2], values[2, [0, 2, 2, 2]])


def test_logits_leave_the_parties_under_a_fresh_share_of_zero():
    def packed(rank, label):
        return unpack(refreshed(rank, bytes(32), label, halves[rank], 20, [4])[0], (4, 2), 20)

    halves = [torch.arange(8).view(4, 2), 5 * torch.arange(8).view(4, 2)]
    labels = [SetLabel(digit * 32, "", "") for digit in "ab"]
    shares = [[packed(rank, label) for rank in (0, 1)] for label in labels]
    for first, second in shares:
        assert torch.equal(signed(first + second, 20), halves[0] + halves[1])
    for rank in (0, 1):
        assert (shares[0][rank] != halves[rank]).sum() >= 7
        assert (shares[0][rank] != shares[1][rank]).sum() >= 7  # a new set of tuples gives a new share of zero


def test_each_query_of_a_batch_gets_its_own_rows_under_masks_of_their_own():
    halves = [torch.zeros(4, 2, dtype=torch.int64), torch.arange(8).view(4, 2)]
    label, counts = SetLabel("a" * 32, "", ""), [1, 2]  # the last row is a copy, and nobody's
    parts = [refreshed(rank, bytes(32), label, halves[rank], 20, counts) for rank in (0, 1)]
    own = [[unpack(part, (n, 2), 20) for part, n in zip(packed, counts, strict=True)] for packed in parts]
    whole = [torch.cat(words) for words in own]
    assert torch.equal(signed(whole[0] + whole[1], 20), halves[1][:3])
    assert len(whole[0].flatten().unique()) == 6  # party 0's words are its share of zero: no mask comes back
