# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A pool whose experts have all kinds of layers but BERT's, which are the router's, and a text for each expert."""

import torch
from transformers import EuroBertConfig, NomicBertConfig

from hf_securerouter import SecureMoeConfig
from tests.tiny import VOCABULARY, family_config, modern_config, pool_model


LENGTH = 6
_SIZES = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 24,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}


def configs():
    """MPNet, DeBERTa, a ModernBERT with a window and EuroBERT, which both protocols compute."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return [
        *(family_config(family, width=8) for family in ("mpnet", "deberta-v2")),
        modern_config(local_attention=4, layer_types=["sliding_attention"]),
        EuroBertConfig(**_SIZES, **special),
    ]


def more_configs():
    """nomic-bert, and mixtures of experts in both ways."""
    mixture = _SIZES | {"num_hidden_layers": 2, "num_experts": 3}
    return [
        NomicBertConfig(**_SIZES, pad_token_id=0),
        SecureMoeConfig(**mixture),
        SecureMoeConfig(**mixture, expert_capacity=3),
    ]


def pool(configs):
    """One expert of each config."""
    return pool_model(("bert",) * len(configs), expert_configs=configs, expert_costs=[1.0] * len(configs))


@torch.no_grad()
def a_text_for_each_expert(model):
    """Ids, attention mask and clear output of texts that the router surely sends to one expert after another."""
    count = model.config.num_experts
    ids = torch.randint(5, len(VOCABULARY), (2000, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 4:] *= torch.arange(2000)[:, None] % 2
    mask = (ids > 0).long()
    scores = model(input_ids=ids, attention_mask=mask).router_logits
    last = model.router.out_proj  # scores of mean 0 and deviation 1: each expert is the best one of some text
    last.bias.sub_(scores.mean(0)).div_(scores.std(0))
    last.weight.div_(scores.std(0)[:, None])
    output = model(input_ids=ids, attention_mask=mask)
    best = output.router_logits.topk(2).values
    margins = best[:, 0] - best[:, 1]
    rows = torch.stack([(margins * (output.expert_indices == index)).argmax() for index in range(count)])
    assert output.expert_indices[rows].tolist() == list(range(count)) and margins[rows].min() > 0.02
    return ids[rows], mask[rows], model(input_ids=ids[rows], attention_mask=mask[rows])
