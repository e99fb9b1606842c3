# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts that read a part of an input only, and padding on either side."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, GPT2Config, pipeline

from hf_securerouter import PooledEncoderConfig, SecureRouterValueError
from hf_securerouter.lengths import padded_right, truncate
from tests.tiny import FAMILIES, VOCABULARY, WORDS, family_config, pool_config, pool_model


SEPARATOR = VOCABULARY["[SEP]"]
LENGTHS = [5, 24, 3]


@pytest.fixture
def inputs():
    """Texts of 3, 5, 6 and 9 tokens, a separator last."""
    ids = torch.arange(36).view(4, 9) % 17 + 7
    lengths = torch.tensor([3, 5, 6, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids[torch.arange(4), lengths - 1] = SEPARATOR
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": (torch.arange(9) > 1).long() * mask}


@pytest.fixture
def shorter():
    return pool_model(expert_max_lengths=LENGTHS, router_config=None, router_shares_expert=0, num_labels=3)


def test_a_text_that_is_cut_keeps_its_separator(inputs):
    found, count = truncate(inputs, 5)
    assert count == 2 and all(value.shape == (4, 5) for value in found.values())
    assert torch.equal(found["input_ids"][:2], inputs["input_ids"][:2, :5])
    assert torch.equal(found["input_ids"][2:, :4], inputs["input_ids"][2:, :4])
    assert found["input_ids"][1:, -1].tolist() == [SEPARATOR] * 3
    assert found["token_type_ids"][2:, -1].tolist() == [1, 1]
    assert truncate(inputs, 9) == (inputs, 0) and truncate(inputs, None) == (inputs, 0)


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=2),
    length=st.integers(4, 14),
)
def test_a_pair_loses_what_a_tokenizer_would_take_of_its_longer_text(tokenizer, texts, length):
    columns = [[text, "the film was bad"] for text in texts]  # beside another one, so that there is padding
    whole = tokenizer(*columns, return_tensors="pt", padding=True)
    expected = tokenizer(*columns, return_tensors="pt", padding=True, truncation="longest_first", max_length=length)
    found, count = truncate(whole, length)
    assert count == sum(len(row) > length for row in tokenizer(*columns)["input_ids"])
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)


def test_two_separators_between_the_texts_stay():
    begin, end = 1, 2
    ids = torch.tensor([[begin, 11, 12, 13, 14, end, end, 21, 22, 23, end]])
    assert truncate({"input_ids": ids}, 9)[0]["input_ids"].tolist() == [[begin, 11, 12, 13, end, end, 21, 22, end]]


def test_without_a_mask_all_texts_have_the_whole_length(inputs):
    found, count = truncate({"input_ids": inputs["input_ids"], "attention_mask": None}, 4)
    assert count == 4 and found["attention_mask"] is None
    assert torch.equal(found["input_ids"][:, -1], inputs["input_ids"][:, -1])


def padded_left(inputs):
    """The same texts, padded on the left."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    return {name: values.gather(1, order) for name, values in inputs.items()}


def test_padding_moves_to_the_right(inputs):
    left = padded_left(inputs)
    assert left["attention_mask"][:, 0].tolist() == [0, 0, 0, 1]
    for batch in (inputs, left):
        found = padded_right(batch)
        assert found.keys() == inputs.keys() and all(torch.equal(found[name], inputs[name]) for name in inputs)


def test_padding_moves_within_one_compiled_graph(inputs):
    found = torch.compile(padded_right, backend="eager", fullgraph=True)(padded_left(inputs))
    assert all(torch.equal(found[name], inputs[name]) for name in inputs)


def test_zeros_between_tokens_stay():
    ids, mask = torch.tensor([[0, 0, 7, 8, 9, 0]]), torch.tensor([[0, 0, 1, 0, 1, 0]])
    found = padded_right({"input_ids": ids, "attention_mask": mask, "token_type_ids": None})
    assert found["input_ids"].tolist() == [[7, 8, 9, 0, 0, 0]] and found["token_type_ids"] is None
    assert found["attention_mask"].tolist() == [[1, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_side_of_padding_changes_no_answer(inputs, family, training):
    model = pool_model((family,) * 3).train(training)
    answers = []
    for batch in (inputs, padded_left(inputs)):
        torch.manual_seed(0)  # of the Gumbel samples
        with torch.no_grad():
            answers.append(model(**batch))
    for name in ("logits", "router_logits", "expert_indices"):
        torch.testing.assert_close(answers[1][name], answers[0][name])
    chosen = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(model.run_experts(padded_left(inputs), chosen), model.run_experts(inputs, chosen))
    summaries = [model.router.summarize(**batch) for batch in (inputs, padded_left(inputs))]
    torch.testing.assert_close(*summaries)


def test_a_text_padded_on_the_left_is_cut_at_its_end(shorter, inputs):
    shorter.config.max_length = 6
    with pytest.warns(UserWarning, match="1 texts have more than the 6 tokens"):
        left, right = (shorter(**batch).logits for batch in (padded_left(inputs), inputs))
    torch.testing.assert_close(left, right)


def test_a_pipeline_answers_batches_as_single_texts_on_either_side(checkpoint):
    texts = ["good", "the film was very good and bright", "a bad film"]
    classify = pipeline("text-classification", model=checkpoint)
    alone = [classify(text)[0]["score"] for text in texts]
    for side in ("right", "left"):
        classify.tokenizer.padding_side = side
        together = [answer["score"] for answer in classify(texts, batch_size=3)]
        assert together == pytest.approx(alone, abs=1e-5)


def test_masks_that_do_not_fit_are_refused(model, inputs):
    with pytest.raises(SecureRouterValueError, match=r"`attention_mask` should be of shape \(4, 9\).*got \(4, 8\)"):
        model(**inputs | {"attention_mask": inputs["attention_mask"][:, 1:]})
    with pytest.raises(SecureRouterValueError, match="`attention_mask` .* only zeros in row 1"):
        model(**inputs | {"attention_mask": inputs["attention_mask"] * torch.tensor([[1], [0], [1], [1]])})
    holes = inputs["attention_mask"].clone()
    holes[3, 4] = 0
    assert truncate(inputs | {"attention_mask": holes}, 9)[1] == 0
    with pytest.raises(SecureRouterValueError, match="zeros between tokens in a text of more than 5 tokens"):
        truncate(inputs | {"attention_mask": holes}, 5)


def test_each_expert_reads_its_part(shorter, inputs):
    with torch.no_grad():
        every = shorter.train()(**inputs).expert_logits
        shorter.eval()
        for index, length in enumerate(LENGTHS):
            own = shorter.experts[index](**truncate(inputs, length)[0]).logits
            torch.testing.assert_close(every[:, index], own)
            torch.testing.assert_close(shorter.run_experts(inputs, torch.full((4,), index)), own)
        whole = shorter.experts[0](**inputs).logits
    assert torch.allclose(whole[:2], every[:2, 0], atol=1e-5) and not torch.allclose(whole[3], every[3, 0], atol=1e-3)


@pytest.mark.parametrize("shared", [0, None])
def test_a_pooled_expert_on_a_causal_body_loses_the_end_of_a_text(shared):
    body = GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=1, n_head=2, n_positions=24, pad_token_id=0)
    router = None if shared is not None else family_config("bert")
    experts = [PooledEncoderConfig(text_config=body)] * 2
    fields = {"router_config": router, "router_shares_expert": shared, "expert_max_lengths": [4, 24]}
    pool = pool_model(expert_configs=experts, expert_costs=[1.0, 2.0], num_labels=2, **fields)
    ids = torch.tensor([[7, 8, 6, 9, 10, 11, 6]])  # 6, a full stop, is no separator
    first = torch.zeros(1, dtype=torch.long)
    torch.testing.assert_close(pool.run_experts({"input_ids": ids}, first), pool.experts[0](ids[:, :4]).logits)
    if shared is not None:
        torch.testing.assert_close(pool(ids).router_logits, pool(ids[:, :4]).router_logits)
    long = torch.cat([ids] * 4, dim=1)
    torch.testing.assert_close(pool(long).router_logits, pool(long[:, :24]).router_logits)


def test_a_router_reads_what_its_expert_reads(shorter, inputs):
    found = shorter(**inputs).router_logits
    torch.testing.assert_close(found, shorter(**truncate(inputs, 5)[0]).router_logits)
    other = pool_model(router_config=None, router_shares_expert=0, num_labels=3)
    assert not torch.allclose(found[3], other(**inputs).router_logits[3], atol=1e-3)
    alone = pool_model(expert_max_lengths=LENGTHS)  # a router with its own encoder reads whole inputs
    torch.testing.assert_close(alone(**inputs).router_logits, pool_model()(**inputs).router_logits)


def test_lengths_are_saved(shorter, inputs, tmp_path):
    shorter.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.expert_max_lengths == LENGTHS
    torch.testing.assert_close(loaded(**inputs).logits, shorter(**inputs).logits)


def test_no_expert_reads_more_than_the_pool():
    config = pool_config(expert_max_lengths=LENGTHS, max_length=6)
    assert [config.length_of(index) for index in range(3)] == [5, 6, 3]
    config = pool_config(max_length=6)
    assert [config.length_of(index) for index in range(3)] == [6, 6, 6]


@pytest.mark.parametrize(
    "lengths, message",
    [([5, 24], "one entry for each of the 3"), ([5, 24, 1], "integer of at least 2"), (5, "a list")],
)
def test_lengths_that_do_not_fit_are_refused(lengths, message):
    with pytest.raises(StrictDataclassError, match=f"`expert_max_lengths` should .*{message}"):
        pool_config(expert_max_lengths=lengths)
