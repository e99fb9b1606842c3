# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a router and an expert may be, which is decided when the pool is made."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    CamembertConfig,
    ConvBertConfig,
    DebertaV2Config,
    FNetConfig,
    FunnelConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen2Config,
    SqueezeBertConfig,
    T5Config,
    ViTConfig,
    XLMRobertaConfig,
)

from hf_securerouter import (
    PooledEncoderConfig,
    SecureRouterError,
    SecureRouterForSequenceClassification,
    SecureRouterValueError,
)
from hf_securerouter.admission import is_known, probe_pool, reads_last_token
from hf_securerouter.lengths import last_tokens, truncate
from tests.tiny import VOCABULARY, family_config, pool_config


build = SecureRouterForSequenceClassification.from_expert_pretrained
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": len(VOCABULARY), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
SEQUENCES = {"vocab_size": len(VOCABULARY), "d_model": 16, "num_labels": 2}


def pool(router=None, expert=None, **fields):
    """A pool with one given member, and BERTs for the others."""
    torch.manual_seed(0)
    bert = family_config("bert")
    config = pool_config(router_config=router or bert, expert_configs=[bert, expert or bert], expert_costs=[1.0, 2.0])
    for name, value in fields.items():
        setattr(config, name, value)
    model = SecureRouterForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def encoders():
    squeezebert = {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")}
    return [
        CamembertConfig(**SIZES),
        XLMRobertaConfig(**SIZES),
        DebertaV2Config(**SIZES),
        ModernBertConfig(**SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
        SqueezeBertConfig(**SIZES, embedding_size=16, **squeezebert),
    ]


def causal_models():
    return [GPT2Config(**GPT2, pad_token_id=0), Qwen2Config(**SIZES, num_key_value_heads=2), LlamaConfig(**SIZES)]


def test_encoders_of_other_families_are_taken_after_a_probe():
    for config in encoders():
        pool(router=config), pool(expert=config)


def test_models_that_padding_changes_are_refused():
    for config in (FNetConfig(**SIZES), ConvBertConfig(**SIZES, embedding_size=16)):
        with pytest.raises(SecureRouterValueError, match="`router` is a .* padding on the right .* changes"):
            pool(router=config)
        with pytest.raises(SecureRouterValueError, match=r"`experts\[1\]` is a .* padding on the right"):
            pool(expert=config)


def test_encoder_decoders_vision_and_decoders_are_refused():
    bart = BartConfig(**SEQUENCES, encoder_layers=1, decoder_layers=1)
    for config in (bart, T5Config(**SEQUENCES, num_layers=1, num_heads=2, d_kv=8)):
        for member in ("router", "expert"):
            with pytest.raises(SecureRouterValueError, match=f"`{member}_config.* an encoder-decoder, which"):
                pool(**{member: config})
    for family in ("bert", "roberta", "electra"):
        decoder = family_config(family, is_decoder=True)
        for member in ("router", "expert"):
            with pytest.raises(SecureRouterValueError, match=f"`{member}_config.*is_decoder` is True.*left to right"):
                pool(**{member: decoder})
    with pytest.raises(SecureRouterValueError, match="`router_config` is a ViTConfig, which encodes no texts"):
        pool(router=ViTConfig())
    with pytest.raises(SecureRouterValueError, match="several models, FunnelModel, FunnelBaseModel"):
        pool(router=FunnelConfig(**SEQUENCES))


def test_members_are_checked_before_weights_are_loaded(tmp_path, tokenizer, monkeypatch):
    config = T5Config(**SEQUENCES, num_layers=1, num_heads=2, d_kv=8)
    config.save_pretrained(tmp_path)  # without any weights
    tokenizer.save_pretrained(tmp_path)
    for arguments in ((str(tmp_path), [str(tmp_path)]), (None, [str(tmp_path)])):
        with pytest.raises(SecureRouterValueError, match="an encoder-decoder"):
            build(*arguments)


def test_a_causal_classifier_reads_the_last_live_token(batch):
    left = {name: _to_the_left(value, batch["attention_mask"]) for name, value in batch.items()}
    junk = dict(batch, input_ids=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 9))
    for config in causal_models():
        model = pool(expert=config, routing_lambda=0.0)
        expert = model.experts[1]
        alone = []
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            text = ids[: mask.sum()][None]
            alone.append(expert(input_ids=text).logits)
        for inputs in (batch, left, junk):
            chosen = torch.ones(12, dtype=torch.long)
            torch.testing.assert_close(model.run_experts(inputs, chosen), torch.cat(alone), atol=1e-5, rtol=1e-4)


def _to_the_left(values, mask):
    rows = []
    for row, length in zip(values, mask.sum(dim=1), strict=True):
        rows.append(torch.cat([row[length:], row[:length]]))
    return torch.stack(rows)


def test_a_causal_router_tells_texts_apart_wherever_their_padding_is(batch):
    left = {name: _to_the_left(value, batch["attention_mask"]) for name, value in batch.items()}
    for config in causal_models():
        model = pool(router=config)
        found = model(**batch).router_logits
        assert (found - found[0]).abs().amax(dim=1)[1:].min() > 1e-5
        torch.testing.assert_close(model(**left).router_logits, found, atol=1e-5, rtol=1e-4)
        text = batch["input_ids"][1][: batch["attention_mask"][1].sum()][None]
        torch.testing.assert_close(model(input_ids=text).router_logits, found[1:2], atol=1e-5, rtol=1e-4)


def test_a_causal_classifier_needs_a_padding_token():
    with pytest.raises(SecureRouterValueError, match=r"`expert_configs\[1\].pad_token_id` is None.*set it"):
        pool(expert=GPT2Config(**GPT2))
    assert not reads_last_token(family_config("bert")) and reads_last_token(GPT2Config(**GPT2))


def test_a_pooled_encoder_is_admitted_as_its_encoder_is():
    for inner in (family_config("mpnet"), CamembertConfig(**SIZES), *causal_models()):
        pool(expert=PooledEncoderConfig(text_config=inner))
    refused = {
        r"`experts\[1\]` is a .* padding on the right": {"text_config": FNetConfig(**SIZES)},
        r"`expert_configs\[1\].text_config` is a BartConfig, an encoder-decoder": {"text_config": BartConfig()},
        r"`expert_configs\[1\].pooling` is 'first', .* GPT2Config, which is causal": {
            "text_config": GPT2Config(**GPT2),
            "pooling": "first",
        },
    }
    for message, fields in refused.items():
        with pytest.raises(SecureRouterValueError, match=message):
            pool(expert=PooledEncoderConfig(**fields))
    assert is_known(PooledEncoderConfig(text_config=family_config("mpnet")))


def test_texts_without_separators_lose_their_end():
    ids = torch.tensor([[5, 6, 7, 6, 8, 9], [5, 6, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    cut, count = truncate({"input_ids": ids, "attention_mask": mask}, 3, separators=False)
    assert cut["input_ids"].tolist() == [[5, 6, 7], [5, 6, 0]] and count == 1
    assert last_tokens(cut).tolist() == [2, 1] and last_tokens({"input_ids": ids}).tolist() == [5, 5]


def test_a_router_whose_summaries_are_equal_is_refused():
    model = pool(router=CamembertConfig(**SIZES))
    with torch.no_grad():
        for parameter in model.router.encoder.embeddings.parameters():
            parameter.zero_()
    with pytest.raises(SecureRouterValueError, match="summaries of two different texts are equal"):
        probe_pool(model)


def test_a_loaded_checkpoint_is_probed_too(tmp_path):
    model = pool(router=CamembertConfig(**SIZES))
    with torch.no_grad():
        for parameter in model.router.encoder.embeddings.parameters():
            parameter.zero_()
    model.save_pretrained(tmp_path)
    with pytest.raises(SecureRouterError, match="summaries of two different texts are equal"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_the_probe_leaves_the_model_and_the_generator_as_they_were():
    model = pool(expert=CamembertConfig(**SIZES))
    model.train()
    model.experts[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    probe_pool(model)
    assert torch.equal(state, torch.get_rng_state()) and modes == [module.training for module in model.modules()]


def test_a_pool_of_causal_models_survives_saving(tmp_path, batch):
    model = pool(router=GPT2Config(**GPT2, pad_token_id=0), expert=Qwen2Config(**SIZES, num_key_value_heads=2))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
    with pytest.raises(SecureRouterValueError, match="no counterpart on shares"):
        model.to_mpc(max_length=8)


def test_vocabularies_that_cannot_be_compared_are_refused(tmp_path, tokenizer):
    for name, size in (("small", 20), ("large", 40), ("whole", len(VOCABULARY))):
        AutoModelForSequenceClassification.from_config(family_config("bert", vocab_size=size)).save_pretrained(
            tmp_path / name
        )
    folders = [str(tmp_path / name) for name in ("small", "large")]
    with pytest.raises(SecureRouterValueError, match="different sizes, .*: 20, .*: 40.*save each member's tokenizer"):
        build(folders[0], folders)
    tokenizer.save_pretrained(folders[0])
    with pytest.raises(SecureRouterValueError, match="`router` has embeddings for 20 tokens, .* ids up to 26"):
        build(folders[0], folders[:1])
