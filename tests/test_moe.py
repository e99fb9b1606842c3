# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""BERT classifiers with sparse layers, in clear text."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_securerouter import (
    SecureMoeConfig,
    SecureMoeForSequenceClassification,
    SecureRouterConfig,
    SecureRouterForSequenceClassification,
    SecureRouterValueError,
)
from hf_securerouter.modeling_moe import SecureMoeMixture, SecureMoeModel, SecureMoeOutput
from hf_securerouter.outputs import SecureRouterOutput
from hf_securerouter.trainer import SecureRouterTrainer, SecureRouterTrainingArguments
from tests.tiny import VOCABULARY, moe_classifier, noisy_classifier


IDS = torch.randint(5, len(VOCABULARY), (2, 9), generator=torch.Generator().manual_seed(3))
MASK = (torch.arange(9) < torch.tensor([[9], [4]])).long()


@pytest.mark.parametrize("fields", [{}, {"num_experts_per_tok": 2}, {"expert_capacity": 2, "num_experts_per_tok": 2}])
def test_padding_changes_no_answer(fields):
    model = moe_classifier(**fields)
    with torch.no_grad():
        together = model(IDS, attention_mask=MASK).logits
        alone = model(IDS[1:, :4]).logits
    assert (together[1] - alone).abs().max() < 1e-5


def by_hand(mixture, hidden, is_token):
    """The mixture, token by token, with a count of each expert's tokens."""
    probabilities = mixture.router(hidden).softmax(-1)
    mixed = torch.zeros_like(hidden)
    for text in range(len(hidden)):
        served = [0] * len(mixture.experts)
        for choice in range(mixture.config.num_experts_per_tok):
            for place in range(hidden.shape[1]):
                if not is_token[text, place]:
                    continue
                expert = int(probabilities[text, place].argsort(descending=True)[choice])
                served[expert] += 1
                if mixture.config.expert_capacity is None or served[expert] <= mixture.config.expert_capacity:
                    own = mixture.experts[expert](hidden[text, place])
                    mixed[text, place] += probabilities[text, place, expert] * own
    return mixed


@pytest.mark.parametrize("capacity", [None, 1, 3])
@pytest.mark.parametrize("choices", [1, 2])
def test_experts_serve_tokens_in_order_up_to_their_capacity(capacity, choices):
    torch.manual_seed(0)
    mixture = SecureMoeMixture(moe_classifier(expert_capacity=capacity, num_experts_per_tok=choices).config)
    hidden = torch.randn(2, 9, 16)
    torch.nn.init.normal_(mixture.router.weight)
    with torch.no_grad():
        mixed, logits = mixture(hidden, MASK.bool())
        assert torch.allclose(mixed, by_hand(mixture, hidden, MASK), atol=1e-6)
    assert logits.shape == (2, 9, 4) and not mixed[1, 4:].any()


def test_losses_are_of_tokens_alone_and_reach_every_weight():
    model = moe_classifier()
    labels = torch.tensor([0, 2])
    one = model(IDS, attention_mask=MASK, labels=labels)
    config = model.config
    task = torch.nn.functional.cross_entropy(one.logits, labels)
    expected = task + config.router_aux_loss_coef * one.aux_loss + config.router_z_loss_coef * one.z_loss
    assert torch.allclose(one.loss, expected)
    logits = torch.cat([own[MASK.bool()] for own in one.router_logits])
    share = torch.nn.functional.one_hot(logits.argmax(-1), 4).float().mean(0)
    assert torch.allclose(one.aux_loss, 4 * (share * logits.softmax(-1).mean(0)).sum())
    assert torch.allclose(one.z_loss, logits.logsumexp(-1).square().mean())
    one.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model(IDS).router_logits is None


def pool_with_a_mixture(**fields):
    """A pool of a mixture, whose encoder the router reads, and of a dense expert."""
    experts = [
        moe_classifier(hidden_dropout_prob=0.0, router_aux_loss_coef=3.0, router_z_loss_coef=2.0).config,
        noisy_classifier("bert", width=16, heads=2).config,
    ]
    shared = {"router_shares_expert": 0, "expert_costs": [1.0, 2.0], "num_labels": 3, "router_dropout": 0.0}
    return SecureRouterForSequenceClassification(SecureRouterConfig(expert_configs=experts, **shared | fields))


@pytest.mark.parametrize("make", [moe_classifier, pool_with_a_mixture])
def test_the_predictions_of_a_trainer_are_the_logits_alone(tmp_path, make):
    rows = [{"input_ids": ids, "attention_mask": mask, "labels": 1} for ids, mask in zip(IDS, MASK, strict=True)]
    metrics = []
    trainer = Trainer(
        make(),
        TrainingArguments(str(tmp_path), report_to=[], use_cpu=True),
        eval_dataset=rows,
        compute_metrics=lambda pairs: metrics.append(np.argmax(pairs.predictions, -1).shape) or {},
    )
    predictions = trainer.predict(rows).predictions
    assert isinstance(predictions, np.ndarray) and predictions.shape == (2, 3)
    trainer.evaluate()
    assert metrics == [(2,), (2,)]


@pytest.mark.parametrize(
    ("output", "config"), [(SecureMoeOutput, SecureMoeConfig), (SecureRouterOutput, SecureRouterConfig)]
)
def test_a_trainer_leaves_out_every_output_beside_those_of_any_classifier(output, config):
    own, common = ({field.name for field in dataclasses.fields(kind)} for kind in (output, SequenceClassifierOutput))
    assert own - common == set(config.keys_to_ignore_at_inference)


@pytest.mark.parametrize("objective", ["gumbel", "utility"])
def test_a_pool_in_training_adds_the_weighted_losses_of_a_mixture(objective):
    pool = pool_with_a_mixture(router_objective=objective, alpha=0.5, beta=0.25)
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 2])}
    own = pool.experts[0].eval()(**batch)
    out = pool.train()(**batch)
    parts = out.task_loss + 0.5 * out.balance_loss + 0.25 * out.cost_loss
    torch.testing.assert_close(out.loss, parts + (3.0 * own.aux_loss + 2.0 * own.z_loss) / 2)
    evaluated = pool.eval()(**batch)
    parts = evaluated.task_loss + 0.5 * evaluated.balance_loss + 0.25 * evaluated.cost_loss
    torch.testing.assert_close(evaluated.loss, parts)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_pass_the_gradient_of_their_routers_losses_on(use_reentrant):
    model = moe_classifier(layers=4, router_aux_loss_coef=3.0, router_z_loss_coef=2.0).train()

    def gradients():
        model.zero_grad()
        model(IDS, attention_mask=MASK).router_loss.backward()
        missing = torch.zeros(())  # where one way of checkpointing has none, the other has zeros
        return {
            name: missing if w.grad is None or not w.grad.any() else w.grad for name, w in model.named_parameters()
        }

    expected = gradients()
    assert expected["bert.encoder.layer.3.intermediate.router.weight"].any()
    # The name since transformers 5.23, and the one before it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(gradients(), expected)


def test_what_a_mixture_returns_beside_its_logits_is_that_of_a_bert():
    model = moe_classifier(layers=4)
    model.set_attn_implementation("eager")  # no other returns attention weights
    asked = {"output_hidden_states": True, "output_attentions": True}
    output = model(IDS, attention_mask=MASK, output_router_logits=True, **asked)
    assert [state.shape for state in output.hidden_states] == [(2, 9, 16)] * 5
    assert [weights.shape for weights in output.attentions] == [(2, 2, 9, 9)] * 4
    assert [logits.shape for logits in output.router_logits] == [(2, 9, 4)] * 2
    inner = model.bert(inputs_embeds=model.get_input_embeddings()(IDS), attention_mask=MASK, **asked)
    torch.testing.assert_close(inner.hidden_states, output.hidden_states)
    assert inner.last_hidden_state is inner.hidden_states[-1] and inner.router_logits is None
    assert len(model.bert(IDS, return_dict=False, output_router_logits=True)) == 3
    with pytest.raises(SecureRouterValueError, match="`input_ids` or `inputs_embeds` should be given, got both"):
        model.bert(IDS, inputs_embeds=inner.last_hidden_state)
    with pytest.raises(SecureRouterValueError, match="got neither"):
        model.bert(attention_mask=MASK)


def test_a_router_that_shares_the_encoder_of_a_mixture_reads_the_second_text_as_such():
    pool = pool_with_a_mixture().eval()
    pair = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": (torch.arange(9) > 3).long().expand(2, 9)}
    with torch.no_grad():
        read = pool.experts[0].bert(**pair).last_hidden_state[:, 0]
        torch.testing.assert_close(pool.router.summarize(**pair), read)
        torch.testing.assert_close(pool(**pair).router_logits, pool.router(read))
        del pair["token_type_ids"]
        assert not torch.allclose(pool.router.summarize(**pair), read)


def test_a_mixture_out_of_a_dense_layer_starts_as_that_layer(tmp_path):
    dense = noisy_classifier("bert", width=16, heads=2)
    dense.save_pretrained(tmp_path)
    for source, choices in ((dense, 1), (tmp_path, 2)):
        model = SecureMoeForSequenceClassification.from_dense(source, num_experts=4, num_experts_per_tok=choices)
        with torch.no_grad():
            assert (model(IDS).logits - dense(IDS).logits).abs().max() < 0.05
            model.bert.encoder.layer[1].intermediate.router.weight.zero_()  # all experts alike
            assert (model(IDS).logits - dense(IDS).logits).abs().max() < 1e-5
        assert model.config.num_labels == 2 and model.config.num_experts == 4
    with pytest.raises(SecureRouterValueError, match="got a SecureMoeForSequenceClassification"):
        SecureMoeForSequenceClassification.from_dense(model)
    with pytest.raises(SecureRouterValueError, match="`num_expert` \\(did you mean `num_experts`"):
        SecureMoeForSequenceClassification.from_dense(model, num_expert=4)
    for name, other, own in (("num_labels", 3, 2), ("hidden_size", 8, 16), ("num_hidden_layers", 3, 2)):
        with pytest.raises(SecureRouterValueError, match=f"`{name}` should be {own}, as of `dense`, .* got {other}"):
            SecureMoeForSequenceClassification.from_dense(dense, **{name: other})


def test_it_is_saved_loaded_trained_and_used_in_a_pipeline(tmp_path, tokenizer):
    model = moe_classifier()
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], save_strategy="no", use_cpu=True)
    rows = [{"input_ids": ids, "attention_mask": mask, "labels": 1} for ids, mask in zip(IDS, MASK, strict=True)]
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert set(trainer.evaluate()) >= {"eval_loss"}
    trainer.save_model()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again, SecureMoeForSequenceClassification)
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, model.eval()(IDS).logits, atol=1e-6)
    assert isinstance(again.base_model, SecureMoeModel)
    answers = pipeline("text-classification", model=again, tokenizer=tokenizer)(["a good film", "dull"])
    assert {answer["label"] for answer in answers} <= {"LABEL_0", "LABEL_1", "LABEL_2"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 1}, "`num_experts` should be an integer of at least 2, got 1"),
        ({"num_experts": "x"}, "`num_experts` should be an integer of at least 2, got 'x'"),
        ({"num_experts": 2.5}, "`num_experts` should be an integer of at least 2, got 2.5"),
        ({"num_experts_per_tok": 3}, "`num_experts_per_tok` should be one of 1, 2, got 3"),
        ({"num_experts_per_tok": 1.0}, "`num_experts_per_tok` should be one of 1, 2, got 1.0"),
        ({"expert_capacity": 0}, "`expert_capacity` should be an integer of at least 1, got 0: leave it out for no"),
        ({"expert_capacity": "x"}, "`expert_capacity` should be an integer of at least 1, got 'x'"),
        ({"sparse_step": 1.5}, "`sparse_step` should be an integer of at least 1, got 1.5"),
        ({"router_aux_loss_coef": "x"}, "`router_aux_loss_coef` should be a finite number at least 0, got 'x'"),
        ({"router_z_loss_coef": float("inf")}, "`router_z_loss_coef` should be a finite number at least 0, got inf"),
        ({"num_expert": 4}, "does not know `num_expert` .did you mean `num_experts`"),
        ({"sparse_step": 13}, "or none is sparse"),
        ({"is_decoder": True}, "`is_decoder`"),
    ],
)
def test_what_no_mixture_can_be_is_refused(fields, message):
    with pytest.raises(SecureRouterValueError, match=message):
        SecureMoeConfig(**fields)
    assert AutoConfig.for_model("secure_moe").num_experts == 8


def test_the_gates_of_a_mixture_of_experts_learn_as_its_other_weights(tmp_path):
    moe = moe_classifier().config
    config = SecureRouterConfig(expert_configs=[moe, moe], expert_costs=[1.0, 2.0], router_shares_expert=0)
    args = SecureRouterTrainingArguments(
        str(tmp_path), router_learning_rate=0.5, learning_rate=0.125, report_to="none", use_cpu=True
    )
    trainer = SecureRouterTrainer(SecureRouterForSequenceClassification(config), args)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    names = [name for name, _ in trainer.model.named_parameters()]
    assert any(".router." in name for name in names)
    for name, parameter in trainer.model.named_parameters():
        assert rates[id(parameter)] == (0.5 if name.startswith("router.") else 0.125), name
