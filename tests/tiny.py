# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tiny configs and models, made on the fly."""

import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from hf_securerouter import (
    SecureMoeConfig,
    SecureMoeForSequenceClassification,
    SecureRouterConfig,
    SecureRouterForSequenceClassification,
)


WORDS = "the a film movie was is not very good bad great awful dull bright slow fast it and but with".split()
VOCABULARY = {
    token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##s", ".", *WORDS])
}
MAX_POSITIONS = 24
FAMILIES = ("bert", "distilbert", "roberta", "electra", "albert", "mpnet", "deberta-v2")
EAGER_ONLY = ("mpnet", "deberta-v2")  # transformers has no other implementation of their attention
FIXED_ATTENTION = ("deberta-v2",)  # softmax is written into the layers, and cannot be replaced


def family_config(family: str, layers: int = 1, width: int = 16, **fields) -> PreTrainedConfig:
    """A config of one of `FAMILIES`, with dropout switched off."""
    fields = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, **fields}
    bert_like = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": MAX_POSITIONS,
    }
    if family == "bert":
        return BertConfig(**bert_like | fields)
    if family == "distilbert":
        return DistilBertConfig(
            dim=width,
            n_layers=layers,
            n_heads=2,
            hidden_dim=2 * width,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
            max_position_embeddings=MAX_POSITIONS,
            **fields,
        )
    if family == "roberta":
        # One position is taken by the offset that follows the padding token.
        roberta = bert_like | {"max_position_embeddings": MAX_POSITIONS + 1, "type_vocab_size": 1}
        return RobertaConfig(**roberta | fields)
    if family == "electra":
        return ElectraConfig(**bert_like | {"embedding_size": 8} | fields)
    if family == "albert":
        return AlbertConfig(**bert_like | {"embedding_size": 8, "classifier_dropout_prob": 0.0} | fields)
    if family == "mpnet":
        # Two positions are taken by the offset that follows token 1, which MPNet takes as padding.
        return MPNetConfig(**bert_like | {"max_position_embeddings": MAX_POSITIONS + 2} | fields)
    if family == "deberta-v2":
        positions = {"relative_attention": True, "position_buckets": 8, "pos_att_type": "c2p|p2c"}
        positions |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
        return DebertaV2Config(**bert_like | positions | fields)
    raise ValueError(family)


def modern_config(layers: int = 1, **fields) -> ModernBertConfig:
    """A tiny ModernBERT, as Ettin is one."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": layers}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return ModernBertConfig(
        vocab_size=len(VOCABULARY), max_position_embeddings=MAX_POSITIONS, **sizes | special | fields
    )


def noisy_classifier(family: str, width: int, heads: int):
    """Two layers of random weights, biases too, which give their attention."""
    torch.manual_seed(0)
    config = family_config(family, layers=2, width=width)
    config.num_attention_heads = heads
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def pool_config(families=("bert", "bert", "bert"), **fields) -> SecureRouterConfig:
    """A config with one expert of each family, deeper and costlier from one to the next."""
    defaults = {
        "router_config": family_config("bert", width=8),
        "expert_configs": [family_config(family, layers=i + 1) for i, family in enumerate(families)],
        "expert_costs": [float(2**i) for i in range(len(families))],
        "router_hidden_size": 8,
        "router_dropout": 0.0,
    }
    return SecureRouterConfig(**defaults | fields)


def pool_model(families=("bert", "bert", "bert"), **fields) -> SecureRouterForSequenceClassification:
    """A model in evaluation mode whose weights are large enough that inputs are routed differently."""
    model = SecureRouterForSequenceClassification(pool_config(families, **fields))
    model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
        # Every expert's score varies alike, around zero.
        ids = torch.randint(5, len(VOCABULARY), (64, 12), generator=generator)
        ids[:, 0] = VOCABULARY["[CLS]"]
        scores = model.router(input_ids=ids)
        model.router.out_proj.weight /= scores.std(dim=0)[:, None]
        model.router.out_proj.bias.copy_(-scores.mean(dim=0) / scores.std(dim=0))
    return model


def moe_classifier(layers: int = 2, width: int = 16, seed: int = 0, **fields) -> SecureMoeForSequenceClassification:
    """A classifier with four experts in every second layer, whose tokens choose among them clearly."""
    torch.manual_seed(seed)
    config = SecureMoeConfig(
        **{
            **family_config("bert", layers=layers, width=width).to_diff_dict(),
            "model_type": "secure_moe",
            "num_experts": 4,
            "num_labels": 3,
            **fields,
        }
    )
    model = SecureMoeForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for layer in model.bert.encoder.layer:
            if hasattr(layer.intermediate, "router"):
                layer.intermediate.router.weight.normal_(std=2 * width**-0.5)
    return model
