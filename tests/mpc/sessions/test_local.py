# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Local sessions of real processes: answers, costs, and the data that each role sees."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file

from hf_securerouter import SecureRouterError, SecureRouterValueError
from hf_securerouter.mpc.net.ledger import Ledger
from hf_securerouter.mpc.protocols.crypten.fixed_point import to_fixed_point
from hf_securerouter.mpc.sessions import local as session_module
from hf_securerouter.mpc.sessions.local import SessionError
from tests.support import script
from tests.support.children import children
from tests.support.commands import COST_FIELDS
from tests.tiny import WORDS, pool_model


MAX_LENGTH = 16
TEXTS = [
    "the film was very good",
    ("a dull movie .", "it was slow and awful"),
    "the bright and fast film was great but not good .",
]


SIZE = r"(torch\.Size\(\[[\d, ]*\]\)|'mul'|'matmul')"
REQUEST = rf"{{'function': '\w+', 'device': 'cpu', 'args': \({SIZE}(, {SIZE})*,?\), 'kwargs': {{}}}}"


def converted(model, tokenizer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return model.to_mpc(tokenizer=tokenizer, max_length=MAX_LENGTH, **{"protocol": "crypten"} | options)


def clear(model, tokenizer, texts):
    """Logits and experts of the model itself."""
    rows = [tokenizer(*((text,) if isinstance(text, str) else text)) for text in texts]
    batch = tokenizer.pad(rows, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    return output.logits, output.expert_indices.tolist(), batch


def same_route(model, tokenizer):
    """A short text and one that fills `MAX_LENGTH`, clearly routed to the same expert."""
    texts = ["bad", *(" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS)))]
    rows = [tokenizer(text, truncation=True, max_length=MAX_LENGTH) for text in texts]
    with torch.no_grad():
        batch = tokenizer.pad(rows, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
        scores = model(**batch).router_logits
    margins = scores[:, scores[0].argmax()] - scores.kthvalue(2, dim=1).values
    return texts[0], texts[int(margins[1:].argmax()) + 1]


class Recorded:
    """A session whose roles record all that they receive, with its model and its answers."""

    def __init__(self, folder, tokenizer):
        self.folder = folder
        self.tokenizer = tokenizer
        self.model = pool_model()
        self.secure = converted(self.model, tokenizer)
        self.shared_inputs = []

    def received(self, role, number):
        """Tensors by source, and words, of one answer (0 is set-up)."""
        return (
            load_file(self.folder / f"{role}-{number}.safetensors"),
            json.loads((self.folder / f"{role}-{number}.json").read_text()),
        )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("record")
    found = Recorded(folder, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECUREROUTER_RECORD", str(folder))
        patch.setattr(session_module, "ROLE_PROGRAM", (script("recording_role"),))
        share = found.secure.sharing.inputs

        def share_and_keep(embeddings, mask):
            found.shared_inputs.append(embeddings)
            return share(embeddings, mask)

        patch.setattr(found.secure.sharing, "inputs", share_and_keep)
        with found.secure.local_session(timeout=120) as session:
            found.children = children()
            found.results = [session(TEXTS), session(TEXTS)]
            short, long = same_route(found.model, tokenizer)
            found.short, found.long = session([short]), session([long])
            with pytest.raises(SecureRouterValueError, match=r"`inputs\[1\]`"):
                session(["good", 3])
            found.progress = []
            session.batch_size = 2
            found.many = session(TEXTS, progress=lambda done, total: found.progress.append((done, total)))
    return found


def test_labels_and_experts_equal_clear_text_over_several_masks(recorded):
    logits, experts, batch = clear(recorded.model, recorded.tokenizer, TEXTS)
    assert batch["token_type_ids"].any() and len(set(experts)) > 1
    names = [recorded.model.config.id2label[index] for index in logits.argmax(-1).tolist()]
    for result in recorded.results[:2]:
        assert result.labels == names
        assert result.expert_indices == experts
        assert result.logits.dtype == torch.float32
        assert (result.logits - logits).abs().max() < 0.02
    assert not torch.equal(recorded.results[0].logits, recorded.results[1].logits)  # fresh masks round differently


def test_many_inputs_run_in_batches(recorded):
    assert recorded.progress == [(2, 3), (3, 3)]
    assert recorded.many.expert_indices == recorded.results[0].expert_indices
    assert (recorded.many.logits - recorded.results[0].logits).abs().max() < 0.04


def test_short_texts_cost_as_much_as_long_ones(recorded):
    short, long = recorded.short, recorded.long
    assert short.expert_indices == long.expert_indices
    for name in ("online_bytes", "rounds", "dealer_bytes"):
        assert getattr(short.cost, name) == getattr(long.cost, name)
    assert short.cost.client_bytes == pytest.approx(long.cost.client_bytes, abs=200)  # digits of the seconds


def test_cost_fields(recorded):
    cost = recorded.results[1].cost.to_dict()
    assert set(cost) == COST_FIELDS
    assert set(cost["peak_rss_bytes"]) == {"party0", "party1", "dealer", "client"}
    assert all(value > 1 << 20 for value in cost["peak_rss_bytes"].values())
    assert 0 < cost["dealer_seconds"] <= cost["online_seconds"] < cost["setup_seconds"] + 60
    json.dumps(cost)
    gates = {gate["gate"]: gate for gate in recorded.results[1].cost.by_gate}
    assert {"linear", "attention", "softmax", "layernorm", "gelu", "tanh", "relu", "argmax"} <= set(gates)
    for name in ("online_bytes", "rounds", "dealer_bytes"):
        assert sum(gate[name] for gate in gates.values()) == cost[name]


def test_every_role_counts_the_same(recorded):
    ledgers = {role: recorded.received(role, 1)[1]["ledger"]["gates"] for role in ("party0", "party1", "dealer")}

    def total(role, what):
        return sum(gate[what] for gate in ledgers[role].values())

    assert total("party0", "sent") == total("party1", "received") == total("party1", "sent")
    assert total("dealer", "dealer") == total("party0", "dealer") + total("party1", "dealer")
    assert recorded.results[0].cost.online_bytes == total("party0", "sent") + total("party1", "sent")


def test_client_bytes_are_the_shares(recorded):
    tensors = [recorded.received(role, 1)[0] for role in ("party0", "party1")]
    received = sum(t.nbytes for part in tensors for name, t in part.items() if name.startswith("caller/"))
    cost = recorded.results[0].cost
    answered = recorded.results[0].logits.numel() * 8 * 2
    # Headers: names and shapes of the tensors, and the ledgers.
    assert received + answered <= cost.client_bytes <= received + answered + 12_000


def from_caller(tensors):
    return {name.split("/")[1]: tensor for name, tensor in tensors.items() if name.startswith("caller/")}


def test_weights_are_shared_and_never_clear(recorded):
    halves = [from_caller(recorded.received(role, 0)[0]) for role in ("party0", "party1")]
    assert set(halves[0]) == set(halves[1]) == set(recorded.secure.weights)
    for name, values in recorded.secure.weights.items():
        secret = to_fixed_point(values.t() if values.dim() == 2 else values)
        assert torch.equal(halves[0][name] + halves[1][name], secret)
        for half in halves:
            assert not torch.equal(half[name], secret)
            assert (half[name].abs().double().mean() > 2.0**61).item() or half[name].numel() < 30


def test_inputs_are_shared_afresh_and_never_clear(recorded):
    first, second = recorded.shared_inputs[:2]
    assert all(torch.equal(first[name], second[name]) for name in first)
    calls = [[from_caller(recorded.received(role, n)[0]) for role in ("party0", "party1")] for n in (1, 2)]
    for name, values in first.items():
        for halves in calls:
            assert torch.equal(halves[0][name] + halves[1][name], to_fixed_point(values))
        for party in (0, 1):
            assert not (calls[0][party][name] == calls[1][party][name]).any()
    mask = recorded.secure.client.tokenize(TEXTS)["attention_mask"]
    bias = [calls[0][party]["attention_bias"] for party in (0, 1)]
    assert torch.equal((bias[0] + bias[1] == 0).long(), mask)


def test_no_party_gets_the_other_half_of_anything(recorded):
    received = {role: {} for role in ("party0", "party1")}
    for role, found in received.items():
        for number in range(3):
            found |= {f"{number}/{name}": tensor for name, tensor in recorded.received(role, number)[0].items()}
    for role, other in (("party0", "party1"), ("party1", "party0")):
        seen = {tensor.numpy().tobytes() for tensor in received[role].values()}
        assert any(name.split("/")[1] == "peer" for name in received[role])
        for name, theirs in received[other].items():
            if name.split("/")[1] == "caller" and theirs.numel() > 1:
                assert theirs.numpy().tobytes() not in seen, f"{role} received the share of {other}: {name}"


def test_dealer_sees_neither_weights_nor_inputs(recorded):
    for number in range(3):
        tensors, log = recorded.received("dealer", number)
        assert not tensors
        for word in log["words"]:
            if isinstance(word, str):  # from party 0: the shapes of the tuples that it wants
                assert word == "'terminate'" or re.fullmatch(REQUEST, word), word
            else:
                assert set(word) <= {
                    "kind",
                    "manifest",
                    "folder",
                    "threads",
                    "timeout",
                    "batch",
                    "silence",
                    "debug",
                    "ahead",
                }


def test_party_1_hears_nothing_from_the_dealer_but_a_seed(recorded):
    tensors, _ = recorded.received("party1", 1)
    assert not any(name.startswith("dealer/") for name in tensors)


def test_dealer_seeds_are_fresh(recorded):
    seeds = [
        word["dealer_seed"]
        for role in ("party0", "party1")
        for number in (1, 2, 3)
        for word in recorded.received(role, number)[1]["words"]
        if isinstance(word, dict) and "dealer_seed" in word
    ]
    assert len(seeds) == len(set(seeds)) == 6


def test_dealer_takes_new_randomness_for_every_query(monkeypatch):
    from hf_securerouter.mpc.protocols.crypten import communicator as crypten_communicator

    class Communicator:
        last_object, waited = None, 0.0

    def serve():
        drawn.append(torch.randint(2**62, ()).item())
        communicator.last_object = "terminate"

    drawn = []
    communicator = Communicator()
    monkeypatch.setattr(crypten_communicator, "TTPServer", serve)
    for _ in range(3):
        torch.manual_seed(0)
        crypten_communicator.deal(communicator, Ledger())
    assert len(set(drawn)) == 3


def test_dealer_reports_parties_that_went_away(monkeypatch):
    from hf_securerouter.mpc.protocols.crypten import communicator as crypten_communicator

    class Communicator:
        last_object, waited = None, 0.0

    monkeypatch.setattr(crypten_communicator, "TTPServer", lambda: None)
    with pytest.raises(RuntimeError, match="went away"):
        crypten_communicator.deal(Communicator(), Ledger())


def test_client_holds_embeddings_only(recorded):
    client = recorded.secure.client
    assert set(client.embeddings) == {"router", "experts.0", "experts.1", "experts.2"}
    held = {name.split(".")[0] for module in client.embeddings.values() for name, _ in module.named_parameters()}
    assert held == {"word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"}


def test_no_process_and_no_file_stays(recorded):
    assert len(recorded.children) == 3
    assert not [child for child in recorded.children if child.is_running()]


def test_session_has_to_be_open(recorded):
    with pytest.raises(SessionError, match="not open"):
        recorded.secure.local_session()(TEXTS)
    assert issubclass(SessionError, SecureRouterError)


def test_a_role_does_without_transformers():
    """Importing transformers takes longer than all other imports."""
    code = "import sys, hf_securerouter.mpc.sessions.role_process, hf_securerouter.mpc.protocols.masked.roles\n"
    code += "print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stderr


def test_a_fork_asks_nothing_and_leaves_the_session_to_its_process():
    secure = pool_model().to_mpc(max_length=16, routing_privacy="revealed")
    with secure.local_session(timeout=60) as session:
        ids = torch.full((2, 16), 7)
        first = session({"input_ids": ids}).logits
        child = os.fork()
        if not child:
            status = 1
            try:
                with session._lock, contextlib.suppress(SessionError):
                    session({"input_ids": torch.full((2, 16), 3)})
                    status = 2
                session.close()
                status = 0 if status == 1 and not session.is_open else status
            finally:
                os._exit(status)
        deadline = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        assert torch.allclose(session({"input_ids": ids}).logits, first, atol=0.02)
