# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The reference on a CUDA device, and on a stand-in that any machine has (`fake_card.py`).

What is measured with a GPU is in `tests/benchmarks/gpu.py`.
"""

import warnings

import pytest
import torch

from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.mpc.sessions import local as session_module
from tests.support import script
from tests.support.kinds_of_layers import LENGTH, a_text_for_each_expert, configs, pool


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize(
    "device", [pytest.param("stand-in", marks=pytest.mark.slow), pytest.param("gpu", marks=needs_gpu)]
)
def test_every_kind_of_layer_runs_on_a_card(device, monkeypatch):
    if device == "stand-in":
        monkeypatch.setattr(session_module, "ROLE_PROGRAM", (script("fake_card_role"),))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = pool(configs())
    ids, mask, expected = a_text_for_each_expert(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        secure = model.to_mpc(protocol="crypten", device="cuda", max_length=LENGTH)
        with secure.local_session(timeout=120) as session:
            result = session({"input_ids": ids, "attention_mask": mask})
    assert result.expert_indices == [0, 1, 2, 3]
    assert (result.logits - expected.logits).abs().max() < 0.05


def test_what_is_missing_is_told(model, monkeypatch):
    def problems(device):
        options = Options(protocol="crypten", device=device, routing_privacy="revealed")
        return [str(problem) for problem in validate(model, None, options)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert problems("cpu") == []
    assert "one of cpu, cuda, got 'abacus'" in problems("abacus")[0]
    assert "torch finds no CUDA device" in problems("cuda")[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert problems("cuda") == []
