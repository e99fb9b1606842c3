# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What servers answer is checked before it is used."""

from types import SimpleNamespace

import pytest
import torch

from hf_securerouter.errors import SecureRouterWarning
from hf_securerouter.mpc.conversion.client import Labels
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.net.ledger import Ledger
from hf_securerouter.mpc.sessions.session import Session, SessionError


class Answered(Session):
    """A session whose servers answer at once, with logits of so many rows and these experts."""

    def __init__(self, rows, experts):
        manifest = Manifest("masked", "ttp", "revealed", "cpu", 4, None, ())
        client = SimpleNamespace(
            cut=lambda inputs, windows: (inputs, [1] * len(inputs["input_ids"])),
            embed=lambda batch: {},
            labels=Labels({0: "no", 1: "yes"}, regression=False),
        )
        sharing = SimpleNamespace(
            inputs=lambda *_: {}, logits=lambda answers: torch.zeros(rows, 2), in_bounds=lambda answers: None
        )
        super().__init__(manifest, client, sharing, 5.0, 8)
        self.experts = experts

    def _open(self):
        for role in ("party0", "party1"):
            self._channels[role] = SimpleNamespace(
                send=lambda *_, role=role, **__: self._events.put((role, (self._answer(), {}))),
                bytes_sent=0,
                bytes_received=0,
            )

    def _answer(self):
        return {"kind": "result", "ledger": Ledger().to_dict(), "experts": self.experts}

    def _close(self):
        self._channels = {}

    def _failure(self, role, event):
        return SessionError(f"{role}: {event}")

    def _compare(self, batch, logits, experts):
        pass


def test_what_a_second_run_alone_notices_is_told():
    inputs = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4)}
    with Answered(2, [0, 1]) as session:
        for flags in ([True, False], [False, True]):
            answers = iter(flags)
            session.sharing.in_bounds = lambda _, answers=answers: next(answers)
            with pytest.warns(
                SecureRouterWarning, match="2 inputs were in batches with a value at or beyond its bound"
            ):
                assert session(inputs, verify=1).in_bounds == [False, False]


@pytest.mark.parametrize(
    ("rows", "experts"), [(1, None), (3, None), (0, None), (2, [0]), (2, [0, 1, 1]), (2, {"0": 1, "1": 0}), (2, "01")]
)
def test_an_answer_has_a_row_for_each_input(rows, experts):
    inputs = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4)}
    with Answered(2, [0, 1]) as session:
        assert len(session(inputs).labels) == 2
    with Answered(rows, experts) as session:
        with pytest.raises(SessionError, match=f"The servers answered {rows} inputs where 2 were asked"):
            session(inputs)
        assert not session.is_open
