# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The reference on a CUDA device, and on a stand-in that any machine has (`fake_card.py`).

What is measured with a GPU is in `tests/benchmarks/gpu.py`.
"""

import warnings

import pytest
import torch
from transformers import EuroBertConfig

from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.mpc.sessions import local as session_module
from tests.support import script
from tests.tiny import VOCABULARY, family_config, modern_config, pool_model


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
LENGTH = 6


def pool():
    """Experts of all kinds of layers but BERT's, which are the router's."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    configs = [
        *(family_config(family, width=8) for family in ("mpnet", "deberta-v2")),
        modern_config(local_attention=4, layer_types=["sliding_attention"]),
        EuroBertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=24, **sizes, **special),
    ]
    return pool_model(("bert",) * len(configs), expert_configs=configs, expert_costs=[1.0] * len(configs))


@pytest.mark.parametrize("device", ["stand-in", pytest.param("gpu", marks=needs_gpu)])
def test_every_kind_of_layer_runs_on_a_card(device, monkeypatch):
    if device == "stand-in":
        monkeypatch.setattr(session_module, "ROLE_PROGRAM", (script("fake_card_role"),))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = pool()
    with torch.no_grad():
        model.router.out_proj.bias[2] += 2  # so that each expert is chosen by some row
    ids = torch.randint(5, len(VOCABULARY), (2000, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 4:] *= torch.arange(2000)[:, None] % 2
    mask = (ids > 0).long()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
    scores = output.router_logits.sort(dim=1).values
    margins = scores[:, -1] - scores[:, -2]
    rows = torch.stack([(margins * (output.expert_indices == index)).argmax() for index in range(4)])
    assert output.expert_indices[rows].tolist() == [0, 1, 2, 3] and margins[rows].min() > 0.02
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        secure = model.to_mpc(protocol="crypten", device="cuda", max_length=LENGTH)
        with secure.local_session(timeout=120) as session:
            result = session({"input_ids": ids[rows], "attention_mask": mask[rows]})
    assert result.expert_indices == [0, 1, 2, 3]
    assert (result.logits - output.logits[rows]).abs().max() < 0.05


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
