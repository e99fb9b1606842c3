# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The embedded checkpoint: the parts of its recipe, and a run of the script on a few hundred made-up lines."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
import train_demo
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.demo_pool import perturb_texts, train_tokenizer
from tests.recipes.made_up import KINDS
from tests.tiny import family_config


FEW = ("--perturbed-copies", "1")


def made_up_line(rng: random.Random) -> dict:
    label = rng.randrange(2)
    nouns = rng.sample(["film", "plot", "cast", "score", "ending"], 2)
    words = ["the", nouns[0], rng.choice(["is", "was"]), rng.choice(KINDS[label]), "and", nouns[1], "too"]
    return {"sentence": " ".join(words[: rng.randint(4, 7)]) + " ", "label": label, "idx": rng.randrange(10**6)}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = random.Random(0)
    for name, count in (("train", 320), ("validation", 40)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(made_up_line(rng)) + "\n" for _ in range(count))
    return [
        "--train-file",
        str(tmp_path / "train.jsonl.gz"),
        "--validation-file",
        str(tmp_path / "validation.jsonl.gz"),
    ]


def run(files, folder: Path, *options: str) -> SecureRouterForSequenceClassification:
    arguments = [*files, "--output-dir", str(folder), "--card", str(folder / "cards" / "card.md"), *options]
    train_demo.main([*arguments, "--vocab-size", "80"])
    return SecureRouterForSequenceClassification.from_pretrained(folder, dtype="float32")


def test_a_run_with_a_teacher_leaves_a_pool_that_learned(files, tmp_path, tokenizer):
    teacher, folder = tmp_path / "teacher", tmp_path / "demo"
    BertForSequenceClassification(family_config("bert", width=32, max_position_embeddings=64)).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    model = run(files, folder, "--teacher", str(teacher), "--teacher-epochs", "5", "--epochs", "4", *FEW)

    assert [expert.config.hidden_size for expert in model.experts] == [64, 128, 192]
    assert model.config.expert_mpc == 3 * [{"hidden_act": "exact", "softmax": "exact", "precision": "reduced"}]
    assert model.config.quotas == [3, 2, 1] and model.config.routing_lambda >= 0
    assert model.config.id2label == {0: "negative", 1: "positive"}
    tok = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        output = model(**tok(["the film was great", "The plot is awful"], padding=True, return_tensors="pt"))
    assert output.logits.argmax(-1).tolist() == [1, 0]

    card = (folder / "README.md").read_text()
    assert card == (folder / "cards" / "card.md").read_text()
    assert "training/train_demo.py --train-file train.jsonl.gz" in card and "--teacher teacher" in card
    assert str(tmp_path) not in card + (folder / "config.json").read_text()


def test_a_run_is_repeatable(files, tmp_path):
    first, second, other = (
        run(files, tmp_path / name, "--epochs", "0.1", "--cotrain-epochs", "0.1", "--seed", seed, *FEW).state_dict()
        for name, seed in (("first", "1"), ("second", "1"), ("other", "2"))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["router.out_proj.weight"], other["router.out_proj.weight"])


def test_the_vocabulary_is_lower_case_and_bounded():
    texts = ["A Good FILM , and the cast is good"] * 5
    tokenizer = train_tokenizer(texts, vocab_size=45)
    assert len(tokenizer) <= 45 and tokenizer.pad_token_id == 0
    assert tokenizer.tokenize("Good") == tokenizer.tokenize("good") == ["good"]
    assert all(train_tokenizer(texts, vocab_size=45).vocab == tokenizer.vocab for _ in range(5))


def test_perturbed_texts_are_new_and_not_empty():
    texts = ["the film was good", "a dull plot", "what a cast it has"]
    made = list(perturb_texts(texts, 200, ["zebra"], random.Random(0)))
    assert len(made) == 200 and all(text.strip() for text in made)
    assert len(set(made) - set(texts)) > 50 and any("zebra" in text for text in made)
