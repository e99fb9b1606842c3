# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a Trainer's evaluations put into the model card."""

import pytest
from transformers import BertConfig, TrainerControl, TrainerState

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification
from hf_securerouter.card_callback import ModelCardCallback
from hf_securerouter.model_card import SecureRouterModelCardData, generate_model_card, write_model_card
from hf_securerouter.trainer import SecureRouterTrainingArguments
from tests.test_model_card import table_row


@pytest.fixture
def model() -> SecureRouterForSequenceClassification:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    small, large = (BertConfig(num_hidden_layers=layers, **sizes) for layers in (1, 2))
    config = SecureRouterConfig(router_config=small, expert_configs=[small, large], expert_costs=[1.0, 7.5])
    return SecureRouterForSequenceClassification(config)


@pytest.fixture
def arguments(tmp_path):
    return SecureRouterTrainingArguments(
        str(tmp_path), learning_rate=0.0125, num_train_epochs=3, report_to="none", use_cpu=True
    )


def evaluate(model, arguments, **metrics):
    callback = ModelCardCallback()
    callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=model)
    callback.on_evaluate(arguments, TrainerState(), TrainerControl(), metrics=metrics, model=model)
    return model.model_card_data


def test_metrics_become_results_of_the_named_dataset(model, arguments):
    model.model_card_data = SecureRouterModelCardData(datasets=["nyu-mll/glue"])
    data = evaluate(model, arguments, eval_accuracy=0.75, eval_loss=0.5, eval_runtime=2.0, epoch=1.0)
    assert [(r.metric_type, r.metric_value, r.dataset_type) for r in data.eval_results] == [
        ("accuracy", 0.75, "nyu-mll/glue")
    ]


def test_metrics_without_a_dataset_are_only_a_table(model, arguments):
    data = evaluate(model, arguments, eval_accuracy=0.75, eval_loss=0.5)
    assert data.eval_results is None
    content = generate_model_card(model)
    assert table_row(content, "evaluation data") == ["evaluation data", "accuracy", "0.7500"]
    assert "model-index" not in content


def test_routing_shares_are_kept_in_the_order_of_the_experts(model, arguments):
    data = evaluate(model, arguments, eval_routing_share_1=0.75, eval_routing_share_0=0.25)
    assert data.securerouter["routing_shares"] == [0.25, 0.75]
    assert "routing_share_0" not in data.securerouter["metrics"]


def test_training_arguments_are_in_the_card(model, arguments):
    evaluate(model, arguments, eval_accuracy=0.75)
    content = generate_model_card(model)
    assert table_row(content, "learning_rate") == ["learning_rate", "0.0125"]
    assert table_row(content, "num_train_epochs") == ["num_train_epochs", "3"]


def test_last_evaluation_wins(model, arguments):
    evaluate(model, arguments, eval_accuracy=0.5)
    assert evaluate(model, arguments, eval_accuracy=0.75).securerouter["metrics"] == {"accuracy": 0.75}


def test_the_score_is_that_of_the_best_weights_where_they_are_loaded_at_the_end(model, arguments):
    model.model_card_data = SecureRouterModelCardData(datasets=["nyu-mll/glue"])
    arguments.load_best_model_at_end = True
    callback, state = ModelCardCallback(), TrainerState()
    for step, accuracy in ((4, 0.9), (8, 0.5)):
        state.global_step = step
        metrics = {"eval_accuracy": accuracy, "eval_routing_share_0": accuracy}
        callback.on_evaluate(arguments, state, TrainerControl(), metrics=metrics, model=model)
    state.best_global_step = 4
    callback.on_train_end(arguments, state, TrainerControl(), model=model)
    assert model.model_card_data.securerouter["metrics"] == {"accuracy": 0.9}
    assert model.model_card_data.securerouter["routing_shares"] == [0.9]
    assert [result.metric_value for result in model.model_card_data.eval_results] == [0.9]
    state.best_global_step = 2  # evaluated before this process began
    callback.on_train_end(arguments, state, TrainerControl(), model=model)
    assert "accuracy" not in str(model.model_card_data.to_dict())
    callback.on_step_end(arguments, state, TrainerControl(), model=model)  # without figures none are outdated
    assert "Training went on" not in generate_model_card(model)


@pytest.mark.parametrize("prefix, name", [("eval_", "evaluated"), ("eval_mnli_mm_", "mnli_mm")])
def test_figures_of_weights_that_training_changed_since_are_said_to_be_outdated(
    model, arguments, tmp_path, prefix, name
):
    sentence = f"Training went on after the evaluation of the {name} texts: their figures are of earlier weights."
    callback, state, control = ModelCardCallback(), TrainerState(), TrainerControl()

    def step():
        state.global_step += 1
        callback.on_step_end(arguments, state, control, model=model)

    def evaluate():
        metrics = {f"{prefix}accuracy": 0.75, f"{prefix}routing_share_0": 1.0, f"{prefix}runtime": 1.0}
        metrics |= {f"{prefix}routing_share_1": 0.0}
        callback.on_evaluate(arguments, state, control, metrics=metrics, model=model)

    step()
    assert "Training went on" not in generate_model_card(model)
    evaluate()
    assert "Training went on" not in generate_model_card(model)
    step()
    write_model_card(model, tmp_path)
    assert sentence in (tmp_path / "README.md").read_text()
    evaluate()
    write_model_card(model, tmp_path)
    assert "Training went on" not in (tmp_path / "README.md").read_text()
    step()
    arguments.load_best_model_at_end, state.best_global_step = True, 2
    callback.on_train_end(arguments, state, control, model=model)
    assert "Training went on" not in generate_model_card(model)
