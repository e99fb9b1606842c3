# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`torch.compile`: a pool and its experts are one graph each, with the same answers."""

import pytest
import torch

from tests.tiny import family_config, moe_classifier, pool_model


@pytest.fixture
def compiled():
    """Compiles a module without code generation, and counts its graphs and what broke them."""
    found = {"graphs": 0}

    def backend(graph, examples):
        found["graphs"] += 1
        return graph.forward

    def run(module, **inputs):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        found["graphs"] = 0
        output = torch.compile(module, backend=backend)(**inputs)
        assert dict(torch._dynamo.utils.counters["graph_break"]) == {}
        assert found["graphs"] == 1
        return output

    yield run
    torch._dynamo.reset()


def test_a_pool_is_one_graph_in_evaluation_and_in_training(compiled, batch, labels):
    lengths = {"router_config": None, "router_shares_expert": 0, "expert_max_lengths": [8, 12]}
    model = pool_model(("bert", "distilbert"), **lengths)
    alone = model(**batch, labels=labels)
    together = compiled(model, **batch, labels=labels)
    torch.testing.assert_close(together.logits, alone.logits)
    torch.testing.assert_close(together.loss, alone.loss)
    assert together.expert_indices.tolist() == alone.expert_indices.tolist()
    assert set(alone.expert_indices.tolist()) == {0, 1}

    compiled(model.train(), **batch, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.router.dense.parameters())


def test_a_pool_with_a_mixture_of_experts_is_one_full_graph_in_training(batch, labels):
    configs = [moe_classifier(num_labels=2, num_experts=2).config, family_config("bert")]
    shared = {"expert_costs": [1.0, 2.0], "problem_type": "single_label_classification"}
    model = pool_model(expert_configs=configs, **shared).train()
    found = {}
    torch._dynamo.reset()
    for name, run in (("alone", model), ("together", torch.compile(model, backend="eager", fullgraph=True))):
        torch.manual_seed(0)  # of the Gumbel-softmax
        output = run(**batch, labels=labels)
        model.zero_grad()
        output.loss.backward()
        found[name] = output, {key: weight.grad for key, weight in model.named_parameters()}
    torch._dynamo.reset()
    (alone, expected), (together, gradients) = found.values()
    torch.testing.assert_close(together.logits, alone.logits)
    torch.testing.assert_close(together.loss, alone.loss)
    torch.testing.assert_close(gradients, expected)
    assert all(gradient.any() for name, gradient in expected.items() if ".intermediate.router." in name)


def test_the_first_compiled_step_stores_the_problem_type(compiled, batch):
    model = pool_model(("bert", "distilbert"), num_labels=3).train()
    several = torch.ones(len(batch["input_ids"]), 3)
    torch.compile(model, backend="eager")(**batch, labels=several).loss.backward()
    configs = (model.config, *model.config.expert_configs)
    assert {config.problem_type for config in configs} == {"multi_label_classification"}
    compiled(model, **batch, labels=several)  # one graph from then on


def test_an_expert_is_one_graph(compiled, batch, labels):
    expert = pool_model(("bert",)).experts[0]
    torch.testing.assert_close(compiled(expert, **batch).logits, expert(**batch).logits)


def test_experts_that_are_compiled_alone_still_run_only_if_they_are_chosen(batch):
    model = pool_model(("bert", "bert"))
    model.config.routing_lambda = 1e6  # everything to the first
    ran = []
    for index, expert in enumerate(model.experts):
        expert.compile(backend=lambda graph, examples, index=index: ran.append(index) or graph.forward)
    model(**batch)
    assert ran == [0]
