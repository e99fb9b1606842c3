# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An expert that reads the tokens of another tokenizer."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertTokenizer,
    RobertaForSequenceClassification,
)

from hf_securerouter import SecureRouterValueError
from hf_securerouter.errors import SecureRouterWarning
from hf_securerouter.recipes import experts as recipe
from hf_securerouter.recipes import vocabulary
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.experts import Member, train_pool
from hf_securerouter.recipes.tasks import TASKS
from hf_securerouter.recipes.vocabulary import translate_embeddings
from tests.tiny import MAX_POSITIONS, VOCABULARY, WORDS, family_config


RENAMED = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[MASK]": "<mask>"}
MORE = ("movies", "##movies", "goodslow", "xyz")


@pytest.fixture
def other():
    """A tokenizer with other names of special tokens, another order, and words that others lack."""
    words = [RENAMED.get(token, token) for token in sorted(VOCABULARY)] + [*MORE]
    roles = {f"{name[1:-1].lower()}_token": own for name, own in RENAMED.items()}
    vocabulary = {token: index for index, token in enumerate(words)}
    return BertTokenizer(vocab=vocabulary, model_max_length=MAX_POSITIONS, **roles)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(family_config("bert")).eval()


def rows(model, *ids):
    return model.get_input_embeddings().weight.detach()[list(ids)]


def test_the_same_text_gets_the_same_answer(model, tokenizer, other):
    texts = ["the film was very good .", "bad", "a slow film but with qqq"]
    expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert translate_embeddings(model, tokenizer, other) == len(VOCABULARY)
    encoded = other(texts, padding=True, return_tensors="pt")
    assert encoded["input_ids"].tolist() != tokenizer(texts, padding=True)["input_ids"]
    torch.testing.assert_close(model(**encoded).logits, expected)
    assert model.config.vocab_size == len(other) and model.config.pad_token_id == other.pad_token_id


def test_a_word_that_a_model_lacks_is_the_mean_of_its_pieces_or_unknown(model, tokenizer, other):
    pieces = rows(model, VOCABULARY["movie"], VOCABULARY["##s"]).mean(dim=0)
    unknown = rows(model, VOCABULARY["[UNK]"])[0]
    translate_embeddings(model, tokenizer, other)
    found = rows(model, *other.convert_tokens_to_ids(list(MORE)))
    torch.testing.assert_close(found, torch.stack([pieces, pieces, unknown, unknown]))


def test_positions_that_begin_elsewhere_are_refused(tokenizer, other):
    model = RobertaForSequenceClassification(family_config("roberta"))
    before = rows(model, *range(len(VOCABULARY)))
    with pytest.raises(SecureRouterValueError, match=r"roberta .* padding token, 0, .* choose one"):
        translate_embeddings(model, tokenizer, other)
    assert torch.equal(before, rows(model, *range(len(VOCABULARY))))


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_a_pool_reads_its_largest_experts_tokens(model, tokenizer, other, tmp_path, monkeypatch, has_tokenizer):
    small, large = tmp_path / "small", tmp_path / "large"
    model.save_pretrained(small)
    if has_tokenizer:
        tokenizer.save_pretrained(small)
    BertForSequenceClassification(family_config("bert", vocab_size=len(other))).save_pretrained(large)
    monkeypatch.setattr(recipe, "distillation_rows", lambda *args: [])
    args = RunArguments(experts=[str(small), str(large)], distillation_epochs=0)
    args.num_train_epochs = 0
    members = [Member("checkpoint", str(small), None), Member("checkpoint", str(large), None)]

    def folders():
        return train_pool(args, TASKS["mrpc"], members, [], tmp_path / "out", other, None, None)

    if not has_tokenizer:
        with pytest.warns(SecureRouterWarning, match="'.*small' came without a tokenizer"):
            folders()
        return
    expert, largest = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders())
    own = [VOCABULARY[word] for word in WORDS]
    assert torch.equal(rows(expert, *other.convert_tokens_to_ids(WORDS)), rows(model, *own))
    assert expert.config.vocab_size == largest.config.vocab_size
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "0").get_vocab() == other.get_vocab()


def test_a_tokenizer_is_looked_for_where_downloads_are_kept(model, other, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(vocabulary, "has_tokenizer", lambda name, loading: asked.append((name, loading.files)))
    with pytest.warns(SecureRouterWarning, match="'some/encoder' came without a tokenizer"):
        vocabulary.read_tokens_of(model, "some/encoder", other, str(tmp_path))
    assert asked == [("some/encoder", {"cache_dir": str(tmp_path)})]
