# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Wrong answers are noticed: by the model in clear text, by a second run, and by the parties when they debug."""

import ast
import itertools
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_securerouter.errors import SecureRouterValueError, SecureRouterWarning
from hf_securerouter.mpc import deployment
from hf_securerouter.mpc.conversion.clear_model import ClearModel
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.net.channel import ChannelError
from hf_securerouter.mpc.net.cost import Cost
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.mpc.sessions.local import LocalSession, SessionError
from hf_securerouter.mpc.sessions.session import Answer
from hf_securerouter.mpc.sessions.verification import VerificationError, agree, refuse_other_answers, tolerance
from tests.tiny import VOCABULARY, noisy_classifier, pool_model


LENGTH = 10
INPUTS = {"input_ids": torch.randint(5, len(VOCABULARY), (4, LENGTH), generator=torch.Generator().manual_seed(3))}


@pytest.fixture(scope="module")
def secure():
    return to_mpc(noisy_classifier("bert", width=16, heads=2), max_length=LENGTH)


@pytest.fixture(scope="module")
def beyond(secure):
    """The same model with bounds that are too narrow for it."""
    bounds = {"experts.0.layers.1": {"residual": -3, "inner": 3}}
    return SecureModel(replace(secure.converted, manifest=replace(secure.manifest, bounds=bounds)))


class Unaware(LocalSession):
    """A session without the model in clear text, as a client has."""

    def _compare(self, batch, logits, experts):
        pass


class Undecided(Unaware):
    """A session without roles, which never gives the same answer twice."""

    is_open = True
    answers = itertools.count()

    def _query(self, batch):
        size = len(batch["input_ids"])
        return Answer(torch.full((size, 2), float(next(self.answers))), None, [None] * size, Cost())


def test_a_second_run_agrees_within_the_bounds(secure):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecureRouterWarning)
        with Unaware(secure.converted, timeout=60, batch_size=2) as session:
            twice, once = session(INPUTS, verify=True), session(INPUTS, abstain_below=1.0)
    assert twice.verified == [True] * 4 and once.verified == [None] * 4
    assert once.labels == [None] * 4 and None not in twice.labels  # nobody is sure by 1
    assert twice.cost.rounds == 2 * once.cost.rounds
    assert twice.cost.online_bytes == 2 * once.cost.online_bytes


def test_a_second_run_shows_what_exceeds_the_bounds(beyond):
    with Unaware(beyond.converted, timeout=60) as session:
        with pytest.warns(SecureRouterWarning, match=r"inputs were answered differently .* do not use their answers"):
            result = session(INPUTS, verify=1)
    assert False in result.verified


@pytest.mark.parametrize(("guard", "told"), [(True, "Its guard tells"), (False, "A guard, .* would tell")])
@pytest.mark.parametrize(
    ("privacy", "reason"),
    [("quota", "rank two inputs nearly alike"), ("revealed", "are nearly the same for two experts")],
)
def test_where_a_router_chooses_another_expert_may_have_answered(privacy, reason, guard, told):
    secure = pool_model(("bert", "bert")).to_mpc(max_length=LENGTH, routing_privacy=privacy, guard=guard)
    message = f"Either .* exceed the bounds .* Or .* {reason}, so that another expert .* {told} which: `in_bounds` is"
    with pytest.warns(SecureRouterWarning, match=message):
        Undecided(secure.converted)(INPUTS, verify=1)


def test_a_share_of_the_batches_is_verified(secure, monkeypatch):
    drawn = iter([0.3, 0.1])
    monkeypatch.setattr("hf_securerouter.mpc.sessions.session._DRAW.random", lambda: next(drawn))
    with Unaware(secure.converted, timeout=60, batch_size=2) as session:
        assert session(INPUTS, verify=0.2).verified == [None, None, True, True]
        for wrong in (-0.1, 1.5, "0.5"):
            with pytest.raises(SecureRouterValueError, match=r"`verify` should be a share of the batches"):
                session(INPUTS, verify=wrong)
            with pytest.raises(SecureRouterValueError, match=r"`abstain_below` should be a probability"):
                session(INPUTS, abstain_below=wrong)


def test_a_local_session_compares_its_first_batch_with_the_model(secure, beyond):
    with beyond.local_session(timeout=60) as session:
        with pytest.raises(VerificationError, match=r"of the first 4 encrypted answers are not the model's"):
            session(INPUTS)
        with pytest.raises(SessionError, match="not open"):
            session(INPUTS)
    with secure.local_session(timeout=60) as session:
        session(INPUTS)


@pytest.mark.parametrize("privacy", ["revealed", "quota", "oblivious"])
def test_the_clear_model_knows_every_expert(privacy):
    model = pool_model()
    secure = model.to_mpc(max_length=LENGTH, routing_privacy=privacy)
    encoded = secure.client.tokenize(INPUTS)
    experts = [2, 0, 1, 1]
    with torch.no_grad():
        logits = model.run_experts(encoded, torch.tensor(experts))
    known = experts if privacy == "revealed" else None
    clear = ClearModel(secure.converted)
    assert float(clear.error(encoded, logits, known).max()) < 1e-5
    shifted = clear.error(encoded, logits + torch.tensor([[0.0], [9.0], [0.0], [torch.nan]]), known)
    assert shifted[[0, 2]].max() < 1e-5 and 8 < shifted[1] < 10 and shifted[3] == torch.inf
    if known:
        assert float(clear.error(encoded, logits, [0, 0, 0, 0]).max()) > 1e-3


def test_rounding_grows_with_the_logits_and_with_reduced_precision(secure):
    limit = tolerance(secure.manifest)
    first = torch.tensor([[1.0, 2.0], [1.0, 2.0], [80.0, 2.0]])
    assert agree(first, first + torch.tensor([[0.2], [0.3], [2.0]]), [0, 1, 2], limit) == [True, False, True]
    copies = torch.tensor([[1.0, 2.0], [5.0, 2.0], [3.0, 2.0]])
    assert agree(copies, copies[[1, 2, 0]], [0, 1, 0], limit) == [True, False]
    refuse_other_answers(torch.tensor([0.2]), first[:1], limit)
    for error in (0.3, torch.inf):
        with pytest.raises(VerificationError):
            refuse_other_answers(torch.tensor([error]), first[:1], limit)
    reduced = replace(secure.manifest.experts[0], precision="reduced")
    assert tolerance(replace(secure.manifest, experts=(reduced,))) > limit


@pytest.mark.parametrize("privacy", ["revealed", "quota", "oblivious"])
def test_debugging_passes_what_is_within_the_bounds(privacy):
    secure = pool_model().to_mpc(max_length=LENGTH, routing_privacy=privacy, calibration=INPUTS)
    with secure.local_session(timeout=60, debug=True) as session:  # which compares with the model in clear text
        assert session(INPUTS).logits.isfinite().all()


@pytest.mark.parametrize(
    "place, narrow, named",
    [
        ("experts.0.layers.1", {"residual": -3}, "experts.0.layers.1 residual` exceeds its bound"),
        ("experts.0.layers.0", {"value": -4}, "experts.0.layers.0 value` exceeds its bound"),
        ("experts.0.layers.1", {"variance_low": 4}, r"experts.0.layers.1 variance` is below its bound"),
        ("experts.0", {"logits": -4}, "experts.0.head logits` exceeds its bound"),
    ],
)
def test_debugging_names_the_layer_and_the_value(secure, place, narrow, named):
    manifest = replace(secure.manifest, bounds={place: narrow})
    with SecureModel(replace(secure.converted, manifest=manifest)).local_session(timeout=60, debug=True) as session:
        with pytest.raises(SessionError, match=named):
            session(INPUTS)


LOST = {"error": "SupplyError: party0 is gone."}
BOUND = {"error": "BoundError: a value exceeds its bound."}


@pytest.mark.parametrize(
    ("events", "named"),
    [
        ([("dealer", LOST), ("party0", BOUND)], "party0 failed .* exceeds its bound"),
        (
            [("dealer", LOST), ("party0", None), ("party1", {"kind": "result"}), ("party1", BOUND)],
            "party1 failed .* exceeds",
        ),
        ([("party0", BOUND), ("party1", {"error": "another"})], "party0 failed .* exceeds"),
        ([("dealer", LOST), ("party1", LOST)], "dealer failed .* is gone"),
    ],
)
def test_the_reason_of_a_failure_is_told_and_not_the_loss_of_a_role(secure, events, named):
    session = secure.local_session()  # not started
    first, *later = [(role, ChannelError("closed") if header is None else (header, {})) for role, header in events]
    for event in later:
        session._events.put(event)
    with pytest.raises(SessionError, match=named):
        raise session._failure(*first)


def test_debugging_is_for_local_sessions_of_the_masked_protocol(secure):
    crypten = SecureModel(replace(secure.converted, manifest=replace(secure.manifest, protocol="crypten")))
    with pytest.raises(SecureRouterValueError, match="`debug` checks the bounds of protocol 'masked'"):
        crypten.local_session(debug=True)
    for path in Path(deployment.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        words = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword | ast.arg)}
        words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "debug" not in words, path
