# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Texts in, labelled texts out."""

import pytest
import torch

from hf_securerouter import SecureRouterValueError, classification
from hf_securerouter.classification import classify, from_logits
from hf_securerouter.mpc.conversion.client import Labels
from tests.tiny import noisy_classifier


class TestClassify:
    def test_logits_scores_and_labels_belong_together(self, model, tokenizer):
        model.eval()
        (answer,) = classify(model, tokenizer, ["good film"])
        with torch.no_grad():
            output = model(**tokenizer("good film", return_tensors="pt"))
        assert answer.logits == pytest.approx(output.logits[0].tolist(), abs=1e-6)
        assert answer.score == pytest.approx(output.logits[0].softmax(-1).max().item(), abs=1e-6)
        assert answer.label == model.config.id2label[output.logits[0].argmax().item()]
        assert answer.expert == output.expert_indices.item()

    def test_batching_and_padding_change_nothing(self, model, tokenizer):
        model.eval()
        texts = ["good", "a good film and a bad film", ("good film", "bad film"), "bad"]
        together = classify(model, tokenizer, texts)
        for text, one in zip(texts, together, strict=True):
            (alone,) = classify(model, tokenizer, [text])
            assert alone.logits == pytest.approx(one.logits, abs=1e-5)
            assert (alone.expert, alone.label) == (one.expert, one.label)

    @pytest.mark.parametrize("quotas", [[0, 0, 0], [], [-2, 1, 0], [1.5, 1, 1], "111", 3])
    def test_quotas_that_serve_no_text_are_refused(self, model, tokenizer, quotas):
        with pytest.raises(SecureRouterValueError, match="`quotas` should be counts of queries"):
            classify(model, tokenizer, ["good"], quotas)

    def test_a_plain_classifier_has_no_quotas(self, tokenizer):
        plain = noisy_classifier("bert", 16, 2)
        with pytest.raises(SecureRouterValueError, match=r"`quotas` are of the experts of a pool, .* got \[2, 1\]"):
            classify(plain, tokenizer, ["good"], [2, 1])

    @pytest.mark.parametrize("quotas", [None, [1, 1, 1]])
    def test_the_side_of_padding_changes_nothing(self, model, tokenizer, monkeypatch, quotas):
        model.eval()
        texts = ["good", "a good film and a bad film", "bad"]
        right = classify(model, tokenizer, texts, quotas)
        monkeypatch.setattr(tokenizer, "padding_side", "left")
        for one, other in zip(right, classify(model, tokenizer, texts, quotas), strict=True):
            assert one.logits == pytest.approx(other.logits, abs=1e-6) and one.expert == other.expert

    def test_long_text_is_truncated_and_counted(self, model, tokenizer, caplog):
        model.eval()
        limit = model.config.max_length
        long = "good " * (limit + 10)
        (answer,) = classify(model, tokenizer, [long])
        (same,) = classify(model, tokenizer, ["good " * (limit - 2)])
        assert answer.logits == pytest.approx(same.logits, abs=1e-6)
        assert caplog.messages.count(f"1 of 1 texts are longer than {limit} tokens and were truncated.") == 1

    def test_a_text_is_cut_where_the_tokenizer_ends_too(self, model, tokenizer, monkeypatch):
        model.eval()
        monkeypatch.setattr(tokenizer, "model_max_length", 6)
        (answer,) = classify(model, tokenizer, ["good bad film and movie was awful"])
        (same,) = classify(model, tokenizer, ["good bad film and"])
        assert answer.logits == pytest.approx(same.logits, abs=1e-6)

    def test_regression_gives_the_score_as_label(self, model):
        model.config.num_labels = 1
        (answer,) = from_logits(model.config, torch.tensor([[2.5]]), [0])
        assert (answer.label, answer.score, answer.logits, answer.expert) == (2.5, None, [2.5], 0)

    def test_several_labels_at_once_have_independent_probabilities(self, model):
        model.config.problem_type = "multi_label_classification"
        (answer,) = from_logits(model.config, torch.tensor([[2.0, 1.0]]), [0])
        assert answer.score == pytest.approx(torch.tensor(2.0).sigmoid().item())
        names = list(model.config.id2label.values())
        assert answer.labels == names and list(answer.scores) == names and max(answer.scores.values()) == answer.score
        (one,) = from_logits(model.config, torch.tensor([[-2.0, 1.0]]), [0])
        (none,) = from_logits(model.config, torch.tensor([[-2.0, -1.0]]), [0])
        assert (one.labels, none.labels) == ([names[1]], [])
        model.config.problem_type = "single_label_classification"
        (answer,) = from_logits(model.config, torch.tensor([[2.0, 1.0]]), [0])
        assert answer.labels is None and answer.scores is None

    def test_secret_experts_stay_unnamed(self, model):
        answers = from_logits(model.config, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), None)
        assert [answer.expert for answer in answers] == [None, None]

    @pytest.mark.parametrize("quotas", [None, [1, 1, 1]])
    def test_a_label_below_the_threshold_is_withheld_and_nothing_else(self, model, tokenizer, quotas):
        model.eval()
        texts = ["good", "a good film and a bad film", "bad"]
        answers = classify(model, tokenizer, texts, quotas)
        least = sorted(answer.score for answer in answers)[1]
        for one, other in zip(answers, classify(model, tokenizer, texts, quotas, abstain_below=least), strict=True):
            assert other.label == (one.label if one.score >= least else None)
            assert (one.score, one.logits, one.expert) == (other.score, other.logits, other.expert)

    def test_thresholds_that_are_no_probability_are_refused(self, model, tokenizer):
        for wrong in (-0.1, 1.5, "0.5", True, {model.config.id2label[0]: "0.5"}):
            with pytest.raises(SecureRouterValueError, match="`abstain_below` should be a probability"):
                classify(model, tokenizer, ["good"], abstain_below=wrong)
        first = model.config.id2label[0]
        for wrong in ({"nonsense": 0.5}, {first.lower() + "x": 0.5}):
            with pytest.raises(
                SecureRouterValueError, match="`abstain_below` has the label .*, and the model has not"
            ):
                classify(model, tokenizer, ["good"], abstain_below=wrong)
        model.config.problem_type = "regression"
        with pytest.raises(SecureRouterValueError, match="predicts a number: leave it out"):
            classify(model, tokenizer, ["good"], abstain_below=0.5)

    @pytest.mark.parametrize("several", [False, True])
    def test_each_label_has_its_threshold(self, model, several):
        model.config.problem_type = "multi_label_classification" if several else "single_label_classification"
        first, second = model.config.id2label.values()
        logits = torch.tensor([[2.0, -3.0], [-3.0, 2.0], [0.4, -0.4]])

        def given(abstain_below):
            found = classification._withhold(model.config, from_logits(model.config, logits, None), abstain_below)
            labels = Labels.of(model.config)(logits, abstain_below)
            if several:
                assert [one.labels for one in found] == labels
            else:
                assert [one.label for one in found] == labels
            return labels

        if several:
            assert given(None) == given({}) == [[first], [second], [first]]
            assert given({first: 0.7, second: 0.01}) == [[first, second], [second], [second]]
            assert given(0.9) == [[], [], []]
        else:
            assert given(None) == given({}) == [first, second, first]
            assert given({first: 0.7}) == [first, second, None]
            assert given({second: 1.0}) == [first, None, first]
