# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The model: mixture in training, chosen experts in evaluation, losses, gradients, and what transformers asks."""

import dataclasses
import inspect
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, XLNetConfig

from hf_securerouter import (
    SecureRouterConfig,
    SecureRouterForSequenceClassification,
    SecureRouterOutput,
    SecureRouterValueError,
    SecureRouterWarning,
)
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.pool import accepted_inputs
from tests.tiny import EAGER_ONLY, FAMILIES, family_config, pool_config, pool_model


FIELDS = "loss logits router_logits router_probs expert_indices expert_logits expected_cost".split()
FIELDS += ["task_loss", "balance_loss", "cost_loss"]
OBJECTIVES = ("gumbel", "utility")


def all_expert_logits(model, batch):
    """(B, K, C) of every expert by itself, from its own forward."""
    outputs = []
    for expert in model.experts:
        takes_types = getattr(expert.config, "type_vocab_size", 0) > 1 and expert.config.model_type != "distilbert"
        inputs = batch if takes_types else {k: v for k, v in batch.items() if k != "token_type_ids"}
        outputs.append(expert(**inputs).logits)
    return torch.stack(outputs, dim=1)


def test_output_has_the_fields_in_order():
    assert [field.name for field in dataclasses.fields(SecureRouterOutput)] == FIELDS


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("training", [True, False])
def test_shapes_and_dtypes(model, batch, labels, objective, training):
    model.config.router_objective = objective
    out = model.train(training)(**batch, labels=labels)
    assert out.logits.shape == (12, 2) and out.router_logits.shape == out.router_probs.shape == (12, 3)
    assert out.expert_indices.shape == out.expected_cost.shape == (12,)
    assert out.expert_indices.dtype is torch.int64
    assert (out.expert_logits.shape == (12, 3, 2)) if training else (out.expert_logits is None)
    for name in ("loss", "task_loss", "balance_loss", "cost_loss"):
        assert out[name].shape == () and torch.isfinite(out[name])
    torch.testing.assert_close(out.router_probs.sum(dim=1), torch.ones(12))


def test_without_labels_there_is_no_loss(model, batch):
    out = model(**batch)
    assert out.loss is None and out.task_loss is None and out.balance_loss is None and out.cost_loss is None


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_equals_running_every_expert(family, batch):
    model = pool_model((family, "bert", family))
    with torch.no_grad():
        out = model(**batch)
        everything = all_expert_logits(model, batch)
    assert len(set(out.expert_indices.tolist())) > 1, "the batch should use several experts"
    rows = torch.arange(12)
    torch.testing.assert_close(out.logits, everything[rows, out.expert_indices], atol=1e-5, rtol=1e-5)


def test_all_families_in_one_pool(batch, labels):
    model = pool_model(FAMILIES, num_labels=2).train()
    loss = model(**batch, labels=labels).loss
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == [], "every weight takes part in training"


def test_evaluation_runs_only_the_chosen_experts(model, batch):
    ran = []
    for index, expert in enumerate(model.experts):
        expert.register_forward_hook(lambda *_, index=index: ran.append(index))
    chosen = model(**batch).expert_indices
    assert sorted(ran) == sorted(set(chosen.tolist()))
    ran.clear()
    model(**{name: value[:1] for name, value in batch.items()})
    assert ran == [chosen[0].item()]


def test_evaluation_does_not_depend_on_the_rest_of_the_batch(model, batch):
    whole = model(**batch).logits
    alone = torch.cat([model(**{k: v[i : i + 1] for k, v in batch.items()}).logits for i in range(12)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)


def test_decision_subtracts_lambda_times_cost(model, batch):
    out = model(**batch)
    assert torch.equal(out.expert_indices, out.router_logits.argmax(dim=1))
    model.config.routing_lambda = 0.7
    costs = torch.tensor(model.config.expert_costs)
    priced = model(**batch)
    assert torch.equal(priced.expert_indices, (out.router_logits - 0.7 * costs).argmax(dim=1))
    assert not torch.equal(priced.expert_indices, out.expert_indices)
    torch.testing.assert_close(priced.router_probs, out.router_probs)
    model.config.routing_lambda = 1e6
    assert set(model(**batch).expert_indices.tolist()) == {0}


def test_ties_go_to_the_first_expert(model, batch):
    torch.nn.init.zeros_(model.router.out_proj.weight)
    torch.nn.init.ones_(model.router.out_proj.bias)
    assert set(model(**batch).expert_indices.tolist()) == {0}


def test_router_reads_the_first_token_through_a_two_layer_perceptron(model, batch):
    router = model.router
    summary = router.encoder(**batch).last_hidden_state[:, 0]
    hidden = F.relu(F.linear(summary, router.dense.weight, router.dense.bias))
    expected = F.linear(hidden, router.out_proj.weight, router.out_proj.bias)
    torch.testing.assert_close(model(**batch).router_logits, expected)
    assert router.encoder.pooler is None and router.dropout.p == model.config.router_dropout


@pytest.mark.parametrize("family", FAMILIES)
def test_router_of_any_family(family, batch, labels):
    model = pool_model(("bert", "bert"), router_config=family_config(family, width=8)).train()
    model(**batch, labels=labels).loss.backward()
    assert model.router.encoder.config.model_type == family
    assert getattr(model.router.encoder, "pooler", None) is None
    assert all(parameter.grad is not None for parameter in model.router.parameters())


def test_training_mixes_the_logits_with_the_reported_weights(model, batch):
    out = model.train()(**batch)
    expected = (out.router_probs[:, :, None] * out.expert_logits).sum(dim=1)
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.expert_logits, all_expert_logits(model, batch), atol=1e-5, rtol=1e-5)


def test_training_weights_are_gumbel_softmax_samples(model, batch):
    model.train()
    torch.manual_seed(5)
    out = model(**batch)
    torch.manual_seed(5)
    expected = F.gumbel_softmax(out.router_logits, tau=model.config.temperature)
    torch.testing.assert_close(out.router_probs, expected)
    assert not torch.allclose(model(**batch).router_probs, out.router_probs)


def test_temperature_sharpens_the_weights(model, batch):
    model.train()
    sharpest = {}
    for name, temperature in (("config", 5.0), ("annealed", 0.05)):
        torch.manual_seed(5)
        if name == "config":
            model.config.temperature = temperature
        else:
            model.annealed_temperature = temperature
        sharpest[name] = model(**batch).router_probs.max(dim=1).values.mean().item()
    assert sharpest["config"] < 0.6 < 0.95 < sharpest["annealed"]
    assert model.config.temperature == 5.0, "annealing leaves the config alone"


def test_evaluation_probabilities_are_the_softmax(model, batch):
    out = model(**batch)
    torch.testing.assert_close(out.router_probs, out.router_logits.softmax(dim=1))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("training", [True, False])
def test_loss_is_the_weighted_sum_of_its_parts(model, batch, labels, objective, training):
    model.config.router_objective, model.config.alpha, model.config.beta = objective, 0.7, 0.3
    out = model.train(training)(**batch, labels=labels)
    torch.testing.assert_close(out.loss, out.task_loss + 0.7 * out.balance_loss + 0.3 * out.cost_loss)
    costs = torch.tensor(model.config.expert_costs)
    loads = out.router_probs.sum(dim=0)
    torch.testing.assert_close(out.balance_loss, ((loads - loads.mean()) ** 2).mean() / loads.mean() ** 2)
    torch.testing.assert_close(out.expected_cost, (out.router_probs * costs).sum(dim=1))
    torch.testing.assert_close(out.cost_loss, out.expected_cost.mean())


@pytest.mark.parametrize("training", [True, False])
def test_task_loss_is_the_cross_entropy_of_the_logits(model, batch, labels, training):
    out = model.train(training)(**batch, labels=labels)
    torch.testing.assert_close(out.task_loss, F.cross_entropy(out.logits, labels))


def test_utility_task_loss_trains_each_expert_and_the_predictions(model, batch, labels):
    model.config.router_objective = "utility"
    out = model.train()(**batch, labels=labels)
    own = torch.stack([F.cross_entropy(out.expert_logits[:, k], labels) for k in range(3)]).mean()
    torch.testing.assert_close(out.task_loss, own + F.mse_loss(out.router_logits, utilities(out, labels)))


def utilities(out, labels):
    """Targets are half from the labels, half from the experts' joint belief."""
    answers = out.expert_logits.argmax(dim=2)
    believed = out.expert_logits.mean(dim=1).softmax(dim=1).gather(1, answers)
    return ((answers == labels[:, None]).float() + believed).detach() / 2


def gradients(model, loss, part):
    parameters = [parameter for name, parameter in model.named_parameters() if name.startswith(part)]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return sum(gradient.abs().sum().item() for gradient in found if gradient is not None)


def test_balance_and_cost_reach_only_the_router(model, batch, labels):
    out = model.train()(**batch, labels=labels)
    for loss in (out.balance_loss, out.cost_loss):
        assert gradients(model, loss, "router.") > 0 and gradients(model, loss, "experts.") == 0
    assert gradients(model, out.task_loss, "router.") > 0 and gradients(model, out.task_loss, "experts.") > 0


def test_utility_predictions_are_not_bent_by_balance_and_cost(model, batch, labels):
    model.config.router_objective = "utility"
    out = model.train()(**batch, labels=labels)
    assert not out.balance_loss.requires_grad and not out.cost_loss.requires_grad
    expected = gradients(model, F.mse_loss(out.router_logits, utilities(out, labels)), "router.")
    assert gradients(model, out.loss, "router.") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_on_a_batch_lowers_its_loss(batch, labels, objective):
    model = pool_model(("bert", "distilbert"), router_objective=objective, num_labels=2).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_cost_loss_teaches_the_router_the_cheap_expert(model, batch, labels):
    model.config.beta = 5.0
    model.config.alpha = 0.0
    optimizer = torch.optim.Adam(model.router.parameters(), lr=2e-2)
    before = model(**batch).expected_cost.mean().item()
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    after = model.eval()(**batch)
    assert after.expected_cost.mean().item() < min(before, 1.2)
    assert (after.expert_indices == 0).all()


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_regression(batch, shape):
    model = pool_model(num_labels=1)
    values = torch.linspace(0, 5, 12).view(shape)
    out = model(**batch, labels=values)
    assert model.config.problem_type == "regression"
    torch.testing.assert_close(out.task_loss, F.mse_loss(out.logits.view(-1), values.view(-1)))
    model.config.router_objective = "utility"
    assert torch.isfinite(model.train()(**batch, labels=values).loss)


def test_several_labels_at_once(batch):
    model = pool_model(num_labels=3)
    labels = torch.randint(0, 2, (12, 3)).float()
    out = model.train()(**batch, labels=labels)
    assert model.config.problem_type == "multi_label_classification"
    assert all(expert.config.problem_type == "multi_label_classification" for expert in model.experts)
    torch.testing.assert_close(out.task_loss, F.binary_cross_entropy_with_logits(out.logits, labels))


def test_one_expert_is_allowed(batch, labels):
    model = pool_model(("bert",))
    out = model(**batch, labels=labels)
    assert set(out.expert_indices.tolist()) == {0} and out.balance_loss.item() == 0.0
    assert torch.isfinite(model.train()(**batch, labels=labels).loss)


def test_token_types_reach_the_families_that_have_them(batch):
    model = pool_model(("bert", "roberta", "distilbert"))
    second = dict(batch, token_type_ids=(torch.arange(12) > 5).long().expand(12, 12).contiguous())
    one, other = all_expert_logits(model, batch), all_expert_logits(model, second)
    with torch.no_grad():
        out = model.train()(**second)
    torch.testing.assert_close(out.expert_logits, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one[:, 0], other[:, 0]) and torch.allclose(one[:, 1:], other[:, 1:])


def test_token_types_do_not_reach_a_member_that_takes_none():
    member = torch.nn.Module()
    member.config = family_config("bert")  # has a table of two types
    member.forward = lambda input_ids, attention_mask=None: input_ids
    ids = torch.ones(1, 2, dtype=torch.long)
    assert accepted_inputs(member, {"input_ids": ids, "token_type_ids": ids}).keys() == {"input_ids"}


def test_missing_costs_are_estimated_from_parameter_counts_with_one_warning():
    with pytest.warns(SecureRouterWarning, match="`expert_costs` was not given") as caught:
        model = SecureRouterForSequenceClassification(pool_config(expert_costs=None))
    assert len(caught) == 1
    counts = [sum(p.numel() for p in expert.parameters()) for expert in model.experts]
    assert model.config.expert_costs == pytest.approx([count / counts[0] for count in counts], rel=1e-3)
    assert model.config.expert_costs[0] == 1.0 and model.config.expert_costs_source == "estimate"
    assert model.experts[2].num_parameters() > model.experts[0].num_parameters()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation_reaches_every_member(attention):
    config = pool_config([family for family in FAMILIES if attention == "eager" or family not in EAGER_ONLY])
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    for member in (model.router.encoder, *model.experts):
        assert member.config._attn_implementation == attention
    model.set_attn_implementation("eager")
    assert all(expert.config._attn_implementation == "eager" for expert in model.experts)


def test_dtype_reaches_every_member(batch, labels):
    model = AutoModelForSequenceClassification.from_config(pool_config(FAMILIES), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    out = model(**batch, labels=labels)
    assert out.logits.dtype is torch.bfloat16 and out.loss.dtype is torch.float32


def test_construction_gives_all_members_the_default_dtype():
    router_config = family_config("bert", dtype="float16")
    model = SecureRouterForSequenceClassification(pool_config(dtype="bfloat16", router_config=router_config))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_autocast_trains(model, batch, labels):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(**batch, labels=labels).loss
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_return_dict_false_gives_a_tuple_with_the_loss_first(model, batch, labels):
    out = model(**batch, labels=labels)
    values = model(**batch, labels=labels, return_dict=False)
    assert isinstance(values, tuple)
    torch.testing.assert_close(values[0], out.loss)
    torch.testing.assert_close(values[1], out.logits)


def test_activation_checkpointing_changes_nothing(model, batch, labels):
    model.train()
    torch.manual_seed(3)
    plain = model(**batch, labels=labels).loss
    # The name since transformers 5.23, and the one before it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    torch.manual_seed(3)
    checkpointed = model(**batch, labels=labels).loss
    torch.testing.assert_close(plain, checkpointed)
    checkpointed.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Elsewhere:
    """A tensor on another device, with which nothing can be computed before it is brought home."""

    def __init__(self, tensor):
        self._tensor = tensor

    def to(self, device):
        assert device == torch.device("cpu")
        return self._tensor


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fields", [{}, {"router_config": None, "router_shares_expert": 0}])
def test_members_may_lie_on_other_devices(batch, labels, fields, training):
    """Hooks of accelerate move what a member is given to its device, and leave there what it answers."""
    model = pool_model(**fields).train(training)
    torch.manual_seed(0)
    alone = model(**batch, labels=labels)
    for expert in model.experts:
        expert.register_forward_hook(lambda module, given, out: out | {"logits": Elsewhere(out.logits)})
    encoder = model.router.encoder
    if not fields:
        encoder.register_forward_hook(
            lambda module, given, out: out | {"last_hidden_state": Elsewhere(out.last_hidden_state)}
        )
    torch.manual_seed(0)
    apart = model(**batch, labels=labels)
    torch.testing.assert_close(apart.logits, alone.logits)
    torch.testing.assert_close(apart.loss, alone.loss)


def test_layers_that_must_not_be_split_are_those_of_the_members():
    model = pool_model(("bert", "roberta"))
    assert {"BertLayer", "RobertaLayer"} <= set(model._no_split_modules)


def test_embeddings_of_all_members_are_resized_together(model):
    model.resize_token_embeddings(40)
    assert {m.get_input_embeddings().num_embeddings for m in (model.router.encoder, *model.experts)} == {40}
    assert model.get_input_embeddings() is model.router.encoder.get_input_embeddings()


def test_labels_set_on_the_config_reach_the_heads(batch):
    config = pool_config()
    config.num_labels = 3
    assert SecureRouterForSequenceClassification(config)(**batch).logits.shape == (12, 3)


def test_members_and_config_share_their_configs(model):
    assert model.config.router_config is model.router.encoder.config
    assert all(a is b.config for a, b in zip(model.config.expert_configs, model.experts, strict=True))


def test_empty_pool_is_refused():
    with pytest.raises(SecureRouterValueError, match="`expert_configs` is empty.*from_expert_pretrained"):
        SecureRouterForSequenceClassification(SecureRouterConfig())


def test_missing_router_is_refused():
    config = SecureRouterConfig(expert_configs=[family_config("bert")])
    with pytest.raises(SecureRouterValueError, match="`router_config` is None"):
        SecureRouterForSequenceClassification(config)


def test_family_without_a_sequence_classifier_is_refused():
    from transformers import ViTConfig

    config = SecureRouterConfig(router_config=BertConfig(), expert_configs=[ViTConfig(num_labels=2)])
    with pytest.raises(SecureRouterValueError, match=r"`expert_configs\[0\]` is a ViTConfig"):
        SecureRouterForSequenceClassification(config)


def test_family_that_reads_the_last_place_is_refused():
    xlnet = XLNetConfig(vocab_size=30, d_model=16, n_layer=1, n_head=2, d_inner=32)
    with pytest.raises(SecureRouterValueError, match=r"`expert_configs\[1\].summary_type` is 'last': .*use an"):
        SecureRouterForSequenceClassification(pool_config(("bert",) * 2, expert_configs=[BertConfig(), xlnet]))


def test_to_mpc_without_the_package_names_the_remedy(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "hf_securerouter.mpc.convert", None)
    with pytest.raises(ImportError, match="pip install hf_securerouter"):
        model.to_mpc()


def test_to_mpc_passes_its_arguments_on(model, monkeypatch):
    module = type(sys)("hf_securerouter.mpc.convert")
    module.to_mpc = lambda *given: inspect.signature(to_mpc).bind(*given).arguments
    monkeypatch.setitem(sys.modules, "hf_securerouter.mpc.convert", module)
    chosen = {
        name: f"any {name}" for name in inspect.signature(SecureRouterForSequenceClassification.to_mpc).parameters
    }
    del chosen["self"]
    assert model.to_mpc(**chosen) == {"model": model, **chosen}


def test_to_mpc_of_a_model_has_the_signature_of_the_function():
    own = inspect.signature(SecureRouterForSequenceClassification.to_mpc).parameters
    function = inspect.signature(to_mpc).parameters
    assert [(name, one.default) for name, one in own.items()][1:] == [
        (name, one.default) for name, one in function.items()
    ][1:]
