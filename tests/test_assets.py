# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The embedded checkpoint: size, figures, answers, and values that fixed point can hold."""

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, pipeline

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.range_penalty import range_penalty
from hf_securerouter.routing import assign_by_quota
from tests.support import ROOT


ASSET = ROOT / "hf_securerouter" / "assets" / "demo"
CARD = ROOT / "model_cards" / "demo-sst2.md"
POSITIVE = (
    "A wonderful, touching film.",
    "one of the best movies of the year",
    "The performances are superb and the story is moving.",
    "Funny, smart and beautifully made.",
    "I loved every minute of it.",
)
NEGATIVE = (
    "A terrible waste of time.",
    "the worst movie of the year",
    "The acting is awful and the plot is stupid.",
    "Boring, lifeless and badly written.",
    "It is a dull mess that never works.",
)
MIXED = (
    "It has its moments, but they are few.",
    "Not a bad film, if you can forgive the ending.",
    "The idea is clever and the cast tries hard, yet nothing here holds together for long.",
    "You will either be charmed by its odd manners or run for the door.",
    "For all its faults, it stays with you.",
    "Hardly the masterpiece that was promised, though far from a failure.",
)


@pytest.fixture(scope="module")
def demo() -> SecureRouterForSequenceClassification:
    return SecureRouterForSequenceClassification.from_pretrained(ASSET, dtype=torch.float32)


@pytest.fixture(scope="module")
def tok():
    return AutoTokenizer.from_pretrained(ASSET)


@pytest.fixture(scope="module")
def output(demo, tok):
    with torch.no_grad():
        return demo(**tok([*POSITIVE, *NEGATIVE, *MIXED], padding=True, return_tensors="pt"))


def test_the_checkpoint_is_small_and_holds_no_pickle():
    files = [path for path in ASSET.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}


def test_the_vocabulary_is_small_and_lower_case(demo, tok):
    assert len(tok) <= 8000
    assert {member.config.vocab_size for member in (demo.router.encoder, *demo.experts)} == {len(tok)}
    assert tok.tokenize("A GOOD Film") == tok.tokenize("a good film") == ["a", "good", "film"]
    assert tok.model_max_length == demo.config.max_length == 64


def test_experts_differ_clearly_in_size(demo):
    layers = [sum(p.numel() for p in expert.bert.encoder.parameters()) for expert in demo.experts]
    assert len(layers) == 3 and all(larger > 3 * smaller for smaller, larger in zip(layers, layers[1:], strict=False))
    assert demo.config.expert_costs == sorted(demo.config.expert_costs)


def test_obvious_sentences_are_classified_rightly(demo, output):
    labels = [demo.config.id2label[index] for index in output.logits.argmax(-1).tolist()]
    assert labels[: len(POSITIVE)] == ["positive"] * len(POSITIVE)
    assert labels[len(POSITIVE) :][: len(NEGATIVE)] == ["negative"] * len(NEGATIVE)


def test_the_pipeline_answers():
    answers = pipeline("text-classification", model=str(ASSET))(["A wonderful, touching film.", "A dull mess."])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]


def test_every_expert_is_reached(output):
    assert set(output.expert_indices.tolist()) == {0, 1, 2}


def test_six_sentences_are_one_quota_batch(demo, output):
    assert sum(demo.config.quotas) == 6 and min(demo.config.quotas) >= 1
    assigned = assign_by_quota(output.router_logits[:6], demo.config.quotas, demo.config.expert_costs)
    assert torch.bincount(assigned, minlength=3).tolist() == demo.config.quotas


def test_half_precision_agrees_with_float32(demo, tok, output):
    half = SecureRouterForSequenceClassification.from_pretrained(ASSET)
    assert half.dtype == torch.float16 and demo.dtype == torch.float32
    with torch.no_grad():
        batch = tok([*POSITIVE, *NEGATIVE, *MIXED], padding=True, return_tensors="pt")
        router_logits = half(**batch).router_logits
    torch.testing.assert_close(router_logits.float(), output.router_logits, atol=0.02, rtol=0.02)


def test_values_stay_small_enough_for_fixed_point(demo, tok):
    """Every output of a linear layer, a norm and a residual sum, on padded rows too."""
    largest: dict[str, float] = {}

    def record(name):
        def hook(module, inputs, result):
            for value in (result, *inputs):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    largest[name] = max(largest.get(name, 0.0), value.abs().max().item())

        return hook

    hooks = [
        module.register_forward_hook(record(name))
        for name, module in demo.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm))
    ]
    batch = tok([*POSITIVE, *NEGATIVE, *MIXED], padding="max_length", max_length=32, return_tensors="pt")
    with torch.no_grad():
        demo.router(**batch)
        for expert in demo.experts:
            expert(**batch)
    for hook in hooks:
        hook.remove()
    assert sum("intermediate" in name for name in largest) == 1 + 1 + 2 + 3
    assert max(value for name, value in largest.items() if "intermediate" in name) < 30
    assert max(largest.values()) < 50


def test_values_keep_to_the_bounds_of_the_narrow_precision(demo, tok):
    batch = tok([*POSITIVE, *NEGATIVE, *MIXED], padding=True, return_tensors="pt")
    for expert in demo.experts:
        assert expert.expert_mpc["precision"] == "reduced"
        with range_penalty(batch["attention_mask"]) as penalty, torch.no_grad():
            expert(**batch)
        assert 0.1 < penalty.widest < 1


def test_the_card_gives_figures_that_meet_the_promise():
    card = ModelCard.load(CARD)
    figures = card.data.to_dict()["securerouter"]
    routed = card.data.eval_results[0].metric_value
    alone = [float(figures["training"][f"accuracy of expert {index} alone"]) for index in range(3)]
    assert routed >= 0.8 and routed >= alone[2] - 0.01
    assert figures["routing_shares"][0] >= 0.3 and sum(figures["routing_shares"]) == pytest.approx(1, abs=1e-3)
    assert "training/train_demo.py" in figures["training"]["command"]


def test_the_card_is_the_checkpoint_s_own():
    assert CARD.read_text() == (ASSET / "README.md").read_text()
    for text in (CARD.read_text(), (ASSET / "config.json").read_text()):
        assert "/work" not in text and "/tmp" not in text and "/home" not in text
