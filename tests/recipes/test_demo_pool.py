# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The script that trains the embedded checkpoint: its parts, and a run on a few hundred made-up lines."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
import train_demo
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_securerouter import SecureRouterForSequenceClassification
from tests.tiny import family_config


ADJECTIVES = [["bad", "dull", "awful", "slow"], ["good", "bright", "great", "fast"]]


def made_up_line(rng: random.Random) -> dict:
    label = rng.randrange(2)
    nouns = rng.sample(["film", "plot", "cast", "score", "ending"], 2)
    words = ["the", nouns[0], rng.choice(["is", "was"]), rng.choice(ADJECTIVES[label]), "and", nouns[1], "too"]
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
    model = run(files, folder, "--teacher", str(teacher), "--teacher-epochs", "8", "--epochs", "6")

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
        run(files, tmp_path / name, "--epochs", "0.5", "--seed", seed).state_dict()
        for name, seed in (("first", "1"), ("second", "1"), ("other", "2"))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["router.out_proj.weight"], other["router.out_proj.weight"])


def test_only_the_router_is_trained_with_the_router(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    encoded = [[2, 7, 8, 3], [2, 9, 10, 11, 3]] * 20
    args = train_demo.parse_args(["--epochs", "2"])
    train_demo.train_router(args, model, encoded, torch.tensor([0, 1] * 20))
    changed = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert changed == {"router"}
    assert all(parameter.requires_grad for parameter in model.parameters())


texts_strategy = st.lists(
    st.lists(st.sampled_from("a b c d e f g".split()), min_size=1, max_size=6).map(" ".join), min_size=10, max_size=60
)


@settings(deadline=None, max_examples=50)
@given(texts=texts_strategy, seed=st.integers(0, 10))
def test_the_split_puts_every_text_into_one_part(texts, seed):
    texts += [f"another{index}" for index in range(90)]
    parts = train_demo.split_by_sentence(texts, [0.1, 0.1], seed)
    assert sorted(index for part in parts for index in part) == list(range(len(texts)))


def test_too_few_texts_are_refused():
    with pytest.raises(SystemExit, match="too few"):
        train_demo.split_by_sentence(["a b c", "a b", "c"], [0.1, 0.1], seed=0)


def test_the_split_keeps_a_phrase_with_its_sentence():
    sentences = [f"word{i} other{i} third{i} fourth{i} last{i}" for i in range(100)]
    phrases = [" ".join(sentence.split()[1:4]) for sentence in sentences]
    rest, tenth = train_demo.split_by_sentence(sentences + phrases, [0.1], seed=3)
    assert len(tenth) == 20
    assert {index % 100 for index in rest}.isdisjoint(index % 100 for index in tenth)
    assert tenth != train_demo.split_by_sentence(sentences + phrases, [0.1], seed=4)[1]


def test_batches_hold_every_row_once_beside_rows_of_its_length():
    encoded = [[1] * (index % 30 + 1) for index in range(1000)]
    for rng in (None, random.Random(0)):
        cut = list(train_demo.batches(encoded, 10, rng))
        assert sorted(index for batch in cut for index in batch) == list(range(1000))
        assert max(len(batch) for batch in cut) == 10
        spread = [max(len(encoded[i]) for i in batch) - min(len(encoded[i]) for i in batch) for batch in cut]
        assert sum(spread) / len(spread) < 3


def test_padding_is_masked():
    batch = train_demo.collate([[2, 7, 3], [2, 3], [2, 0, 0, 3]], [0, 1, 2])
    assert batch["input_ids"].tolist() == [[2, 7, 3, 0], [2, 3, 0, 0], [2, 0, 0, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_predictions_come_in_the_order_of_the_texts(model):
    encoded = [[2, *([7 + index % 5] * (index % 9)), 3] for index in range(150)]
    logits = train_demo.predict(model, encoded)
    for index in (0, 77, 149):
        torch.testing.assert_close(logits[index], model(torch.tensor([encoded[index]])).logits[0])


def test_the_vocabulary_is_lower_case_and_bounded():
    texts = ["A Good FILM , and the cast is good"] * 5
    tokenizer = train_demo.train_tokenizer(texts, vocab_size=45)
    assert len(tokenizer) <= 45 and tokenizer.pad_token_id == 0
    assert tokenizer.tokenize("Good") == tokenizer.tokenize("good") == ["good"]
    assert all(train_demo.train_tokenizer(texts, vocab_size=45).vocab == tokenizer.vocab for _ in range(5))


def test_perturbed_texts_are_new_and_not_empty():
    texts = ["the film was good", "a dull plot", "what a cast it has"]
    made = list(train_demo.perturb(texts, 200, ["zebra"], random.Random(0)))
    assert len(made) == 200 and all(text.strip() for text in made)
    assert len(set(made) - set(texts)) > 50 and any("zebra" in text for text in made)
