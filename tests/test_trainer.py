# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The trainer: annealing, logs, reports, and files on disk."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, Trainer, TrainingArguments, set_seed

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.metrics import compute_metrics_for
from hf_securerouter.model_card import SecureRouterModelCardData
from hf_securerouter.trainer import (
    _LOSSES,
    SecureRouterTrainer,
    SecureRouterTrainingArguments,
    UpdateSizeCallback,
)


def make_model(**config_fields) -> SecureRouterForSequenceClassification:
    def bert(hidden_size: int) -> BertConfig:
        return BertConfig(
            vocab_size=20,
            hidden_size=hidden_size,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=hidden_size,
            max_position_embeddings=16,
        )

    set_seed(0)
    fields = {"expert_costs": [1.0, 3.0, 8.0], "num_labels": 2} | config_fields
    config = SecureRouterConfig(router_config=bert(8), expert_configs=[bert(8), bert(8), bert(16)], **fields)
    return SecureRouterForSequenceClassification(config)


def make_data(size: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(5, 20, (6,), generator=generator).tolist(),
            "attention_mask": [1] * 6,
            "labels": index % 2,
        }
        for index in range(size)
    ]


class Around(torch.nn.Module):
    """Stands around a pool as PEFT does: reads attributes through, and keeps those that are set on it."""

    def __init__(self, pool):
        super().__init__()
        self.base_model = pool

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    def forward(self, **batch):
        return self.base_model(**batch)


class TwoDevices(Around):
    """Runs halves of a batch, and gathers as DataParallel does: numbers become a vector with one for each device."""

    def forward(self, **batch):
        parts = [self.base_model(**{name: value[half::2] for name, value in batch.items()}) for half in range(2)]
        columns = {name: [part[name] for part in parts] for name in parts[0]}
        return type(parts[0])(
            {
                name: torch.cat([value.reshape(-1, *value.shape[1:]) for value in values])
                for name, values in columns.items()
            }
        )


@pytest.fixture
def make_trainer(tmp_path):
    def make(model=None, data=None, callbacks=None, compute_metrics=None, **arguments):
        defaults = {
            "max_steps": 4,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return SecureRouterTrainer(
            model=model or make_model(),
            args=SecureRouterTrainingArguments(str(tmp_path / "out"), **defaults | arguments),
            train_dataset=data or make_data(16),
            eval_dataset=make_data(10),
            callbacks=callbacks,
            compute_metrics=compute_metrics,
        )

    return make


def training_logs(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class TestAnnealing:
    def test_temperature_follows_the_schedule_of_the_config(self, make_trainer):
        trainer = make_trainer(make_model(temperature=2.0, min_temperature=1.0, temperature_annealing="linear"))
        trainer.train()
        assert [entry["temperature"] for entry in training_logs(trainer)] == pytest.approx([2.0, 1.75, 1.5, 1.25])

    def test_config_keeps_the_temperature_that_training_starts_with(self, make_trainer):
        trainer = make_trainer(make_model(temperature=2.0))
        trainer.train()
        assert trainer.model.config.temperature == 2.0

    def test_resumed_training_goes_on_at_the_same_temperature(self, make_trainer):
        whole = make_trainer(save_strategy="steps", save_steps=2)
        whole.train()
        resumed = make_trainer()
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
        expected = [entry["temperature"] for entry in training_logs(whole)]
        assert [entry["temperature"] for entry in training_logs(resumed)] == pytest.approx(expected)
        assert len(set(expected)) == 4

    def test_annealed_temperature_reaches_the_gumbel_softmax(self, make_trainer, monkeypatch):
        seen = []
        gumbel_softmax = torch.nn.functional.gumbel_softmax

        def recording(logits, tau=1, **kwargs):
            seen.append(tau)
            return gumbel_softmax(logits, tau=tau, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", recording)
        make_trainer(make_model(temperature=2.0, min_temperature=1.0)).train()
        assert seen == pytest.approx([2.0, 1.75, 1.5, 1.25])

    def test_a_pool_inside_another_model_is_annealed_and_logged(self, make_trainer):
        pool = make_model(temperature=2.0, min_temperature=1.0)
        trainer = make_trainer(Around(pool), remove_unused_columns=False)
        trainer.train()
        assert pool.annealed_temperature == 1.25 and "annealed_temperature" not in vars(trainer.model)
        assert [entry["temperature"] for entry in training_logs(trainer)] == [2.0, 1.75, 1.5, 1.25]


class TestLogs:
    def test_nothing_is_pinned_on_a_cpu_which_each_loader_would_warn_of(self, make_trainer):
        assert not make_trainer().args.dataloader_pin_memory

    def test_losses_of_two_devices_are_averaged(self, make_trainer, monkeypatch):
        monkeypatch.setattr("torch.nn.functional.gumbel_softmax", lambda logits, tau: (logits / tau).softmax(dim=-1))
        trainer = make_trainer()
        batch = {name: torch.tensor([row[name] for row in make_data(4)]) for name in make_data(1)[0]}
        outputs = trainer.compute_loss(TwoDevices(trainer.model.eval()).train(), batch, return_outputs=True)[1]
        recorded = trainer._training_sum[:3].tolist()
        assert outputs["task_loss"].shape == (2,)
        assert recorded == pytest.approx([outputs[name].mean().item() for name in _LOSSES])

    def test_parts_of_the_loss_add_up_to_it(self, make_trainer):
        trainer = make_trainer(make_model(alpha=0.5, beta=0.25))
        trainer.train()
        for entry in training_logs(trainer):
            total = entry["task_loss"] + 0.5 * entry["balance_loss"] + 0.25 * entry["cost_loss"]
            assert entry["loss"] == pytest.approx(total, abs=1e-5)

    def test_evaluation_in_between_leaves_the_parts_alone(self, make_trainer):
        trainer = make_trainer(make_model(alpha=0.5, beta=0.25), eval_strategy="steps", eval_steps=1, logging_steps=2)
        trainer.train()
        assert len(training_logs(trainer)) == 2
        for entry in training_logs(trainer):
            total = entry["task_loss"] + 0.5 * entry["balance_loss"] + 0.25 * entry["cost_loss"]
            assert entry["loss"] == pytest.approx(total, abs=1e-5)

    def test_parts_are_means_over_accumulated_batches(self, make_trainer):
        trainer = make_trainer(
            make_model(alpha=0.5, beta=0.25), logging_steps=2, gradient_accumulation_steps=2, max_steps=2
        )
        trainer.train()
        (entry,) = training_logs(trainer)
        total = entry["task_loss"] + 0.5 * entry["balance_loss"] + 0.25 * entry["cost_loss"]
        assert entry["loss"] == pytest.approx(total, abs=1e-5)

    def test_shares_sum_to_one_and_follow_the_router(self, make_trainer):
        model = make_model()
        with torch.no_grad():
            model.router.out_proj.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        trainer = make_trainer(model)
        trainer.train()
        for entry in training_logs(trainer):
            assert [entry[f"routing_share_{index}"] for index in range(3)] == pytest.approx([0.0, 1.0, 0.0])

    def test_each_log_covers_its_own_batches_only(self, make_trainer):
        trainer = make_trainer()
        trainer.train()
        costs = [entry["cost_loss"] for entry in training_logs(trainer)]
        assert len(set(costs)) == len(costs)
        assert trainer._training_batches == 0


class TestEvaluation:
    def test_routing_shares_are_those_of_the_decisions(self, make_trainer):
        trainer = make_trainer(compute_metrics=compute_metrics_for())
        metrics = trainer.evaluate()
        batch = {name: torch.tensor([row[name] for row in make_data(10)]) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            decisions = trainer.model.eval()(**batch).expert_indices
        expected = [(decisions == index).float().mean().item() for index in range(3)]
        shares = [metrics[f"eval_routing_share_{index}"] for index in range(3)]
        assert shares == pytest.approx(expected)
        assert metrics["eval_routing_cost"] == pytest.approx(
            sum(s * c for s, c in zip(shares, [1, 3, 8], strict=True))
        )
        assert 0 <= metrics["eval_accuracy"] <= 1

    def test_several_labels_at_once_are_learnt_and_measured(self, make_trainer):
        data = [row | {"labels": [1.0, 0.0, float(row["labels"])]} for row in make_data(16)]
        trainer = make_trainer(
            make_model(num_labels=3, router_objective="utility"),
            data,
            compute_metrics=compute_metrics_for(),
            max_steps=40,
            learning_rate=1e-2,
        )
        trainer.train()
        metrics = trainer.evaluate(data)
        assert trainer.model.config.problem_type == "multi_label_classification"
        assert metrics["eval_micro_f1"] > 0.7  # the first two labels are constant

    def test_shares_are_reported_without_other_metrics_and_over_all_batches(self, make_trainer):
        model = make_model()
        trainer = make_trainer(model, per_device_eval_batch_size=3)
        decided = []
        model.register_forward_hook(lambda module, arguments, output: decided.append(output.expert_indices))
        metrics = trainer.evaluate()
        decisions = torch.cat(decided)
        assert len(decisions) == 10
        assert metrics["eval_routing_share_0"] == pytest.approx((decisions == 0).float().mean().item())

    def test_second_evaluation_forgets_the_first(self, make_trainer):
        trainer = make_trainer()
        trainer.evaluate()
        with torch.no_grad():
            trainer.model.router.out_proj.bias.copy_(torch.tensor([0.0, 0.0, 100.0]))
        assert trainer.evaluate()["eval_routing_share_2"] == 1.0

    def test_predict_reports_shares_under_its_own_prefix_and_plain_logits(self, make_trainer):
        output = make_trainer().predict(make_data(5))
        assert output.predictions.shape == (5, 2)
        assert sum(output.metrics[f"test_routing_share_{index}"] for index in range(3)) == pytest.approx(1.0)

    def test_no_hook_stays_on_the_model(self, make_trainer):
        trainer = make_trainer()
        before = dict(trainer.model._forward_hooks)
        trainer.evaluate()
        assert dict(trainer.model._forward_hooks) == before


class TestOptimizer:
    def test_router_has_its_own_learning_rate(self, make_trainer):
        trainer = make_trainer(router_learning_rate=0.5, learning_rate=0.125, weight_decay=0.01)
        optimizer = trainer.create_optimizer()
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in trainer.model.named_parameters():
            assert rates[id(parameter)] == (0.5 if name.startswith("router.") else 0.125), name
        assert decays[id(trainer.model.router.dense.weight)] == 0.01
        assert decays[id(trainer.model.router.dense.bias)] == 0.0
        assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups)

    def test_without_it_the_optimizer_is_the_trainers(self, make_trainer, tmp_path):
        ours = make_trainer().create_optimizer()
        plain = Trainer(model=make_model(), args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
        groups = [(len(group["params"]), group["weight_decay"]) for group in plain.create_optimizer().param_groups]
        assert [(len(group["params"]), group["weight_decay"]) for group in ours.param_groups] == groups

    def test_training_moves_router_and_experts(self, make_trainer):
        model = make_model()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        make_trainer(model, learning_rate=0.01, router_learning_rate=0.02).train()
        moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {"router", "experts"}

    def test_schedule_scales_both_rates(self, make_trainer):
        trainer = make_trainer(router_learning_rate=0.4, learning_rate=0.1, lr_scheduler_type="linear")
        trainer.train()
        for group in trainer.optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.0)
            assert group["initial_lr"] in (0.4, 0.1)


class TestChoices:
    def test_weights_of_classes_reach_the_loss_of_training_and_evaluation(self, make_trainer):
        for objective in ("gumbel", "utility"):
            trainer = make_trainer(make_model(router_objective=objective), class_weights=[1.0, 4.0], max_steps=1)
            assert trainer.model.class_weights == [1.0, 4.0]
            trainer.train()
            loss = trainer.evaluate()["eval_loss"]
            assert make_trainer(trainer.model).evaluate()["eval_loss"] != loss  # a trainer without weights of classes

    def test_weights_that_fit_no_class_are_refused(self, make_trainer):
        with pytest.raises(SecureRouterValueError, match="`class_weights` should have one entry for each of the 2"):
            make_trainer(class_weights=[1.0, 2.0, 3.0])
        for wrong in (0.0, -1.0, float("nan"), "2"):
            with pytest.raises(SecureRouterValueError, match="`class_weights` should be positive finite numbers"):
                make_trainer(class_weights=[1.0, wrong])
        with pytest.raises(SecureRouterValueError, match="this pool answers with numbers"):
            make_trainer(make_model(num_labels=1), class_weights=[1.0])

    def test_what_a_pattern_names_is_not_trained(self, make_trainer):
        model = make_model()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        make_trainer(model, learning_rate=0.1, freeze=["experts.0", "*.embeddings.*", "router.encoder.*"]).train()
        still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
        named = {n for n in before if n.startswith(("experts.0.", "router.encoder.")) or ".embeddings." in n}
        assert named <= still and {"router.dense.weight", "experts.1.classifier.weight"}.isdisjoint(still)

    def test_a_pattern_that_names_nothing_is_refused_with_the_nearest_name(self, make_trainer):
        with pytest.raises(SecureRouterValueError, match="'expert.0', which fits no .* nearest name is 'experts.0'"):
            make_trainer(freeze=["expert.0"])
        with pytest.raises(SecureRouterValueError, match="`freeze` should leave something to train"):
            make_trainer(freeze=["*"])

    def test_a_model_that_is_made_anew_for_each_run_is_prepared_too(self, tmp_path):
        args = SecureRouterTrainingArguments(
            str(tmp_path), max_steps=1, freeze=["experts"], class_weights=[1, 2], report_to="none", save_strategy="no"
        )
        trainer = SecureRouterTrainer(None, args, train_dataset=make_data(8), model_init=lambda: make_model())
        first = trainer.model
        trainer.train()
        assert trainer.model is not first and trainer.model.class_weights == [1.0, 2.0]
        assert not any(parameter.requires_grad for parameter in trainer.model.experts.parameters())

    def test_several_evaluation_sets_keep_their_names_in_metrics_and_card(self, make_trainer):
        trainer = make_trainer(compute_metrics=compute_metrics_for())
        trainer.eval_dataset = {"reviews": make_data(10), "news": make_data(7)}
        metrics = trainer.evaluate()
        trainer.save_model()
        card = (Path(trainer.args.output_dir) / "README.md").read_text()
        for name in trainer.eval_dataset:
            assert f"| {name} | accuracy | {metrics[f'eval_{name}_accuracy']:.4f} |" in card
            assert f"The {name} texts cost {metrics[f'eval_{name}_routing_cost']:.4g} each" in card
        assert "| share of reviews texts | share of news texts |" in card and "runtime" not in card

    def test_results_of_several_evaluation_sets_are_listed_side_by_side_on_the_hub(self, make_trainer):
        trainer = make_trainer(compute_metrics=compute_metrics_for())
        trainer.model.model_card_data = SecureRouterModelCardData(datasets=["me/texts"])
        trainer.eval_dataset = {"reviews": make_data(10), "news": make_data(7)}
        trainer.evaluate()
        metrics = trainer.evaluate()
        found = {
            (one.dataset_split, one.metric_type): one.metric_value
            for one in trainer.model.model_card_data.eval_results
        }
        assert found["news", "accuracy"] == metrics["eval_news_accuracy"]
        assert {split for split, _ in found} == {"reviews", "news"}
        assert len(found) == len(trainer.model.model_card_data.eval_results)


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


class TestSeeds:
    def test_one_seed_gives_one_model_bit_by_bit_also_after_a_resume(self, make_trainer):
        arguments = {"seed": 7, "learning_rate": 0.01, "router_learning_rate": 0.02, "max_steps": 2}
        whole = make_trainer(**arguments, save_strategy="steps", save_steps=1)
        whole.train()
        again, resumed, other = (
            make_trainer(**arguments),
            make_trainer(**arguments),
            make_trainer(**arguments | {"seed": 8}),
        )
        torch.rand(3)  # what is drawn between does not count
        again.train()
        other.train()
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-1")
        expected = weights_of(whole)
        for trainer, same in ((again, True), (resumed, True), (other, False)):
            found = weights_of(trainer)
            assert all(torch.equal(found[name], value) for name, value in expected.items()) == same


class TestRefusals:
    def test_labels_that_are_texts_are_refused_before_training(self, make_trainer):
        texts = [row | {"labels": "good"} for row in make_data(8)]
        with pytest.raises(
            SecureRouterValueError, match="`train_dataset` has texts in the column 'labels', such as 'go"
        ):
            make_trainer(data=texts).train()
        for given in (texts, {"one": texts}):
            with pytest.raises(SecureRouterValueError, match="`eval_dataset` has texts in the column 'labels'"):
                make_trainer().evaluate(given)

    def test_a_resume_with_other_parameters_says_what_has_to_be_the_same(self, make_trainer):
        make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
        with pytest.raises(
            SecureRouterValueError, match="has an optimizer of other parameters .*: pass the `router_l"
        ):
            trainer = make_trainer(router_learning_rate=0.1)
            trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")

    def test_a_resume_with_another_number_of_rows_in_an_update_is_refused(self, make_trainer):
        make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()

        def resume(rows, accumulated):
            trainer = make_trainer(
                max_steps=2, per_device_train_batch_size=rows, gradient_accumulation_steps=accumulated
            )
            trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")
            return trainer.state.global_step

        with pytest.raises(SecureRouterValueError, match="counts updates of 4 rows, and an update now has 8"):
            resume(8, 1)
        assert resume(2, 2) == 2

    def test_a_checkpoint_of_another_trainer_is_resumed_and_saved_again(self, make_trainer):
        trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
        trainer.remove_callback(UpdateSizeCallback)
        trainer.train()
        resumed = make_trainer(max_steps=2, save_strategy="steps", save_steps=1)
        resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")
        assert resumed.state.stateful_callbacks["UpdateSizeCallback"]["attributes"] == {"rows": 4}

    def test_a_model_that_is_no_pool_is_refused(self, make_trainer):
        with pytest.raises(
            SecureRouterValueError, match="`model` should be a `SecureRouterForSequenceClassification`"
        ):
            make_trainer(make_model().experts[0])

    def test_label_smoothing_is_refused(self, make_trainer):
        with pytest.raises(SecureRouterValueError, match="`label_smoothing_factor` should be 0, got 0.1"):
            make_trainer(label_smoothing_factor=0.1)

    def test_foreign_loss_is_refused(self, tmp_path):
        with pytest.raises(SecureRouterValueError, match="`compute_loss_func` would replace"):
            SecureRouterTrainer(model=make_model(), compute_loss_func=lambda *arguments, **kwargs: None)

    def test_negative_router_learning_rate_is_refused(self, tmp_path):
        with pytest.raises(SecureRouterValueError, match="`router_learning_rate` should not be negative, got -1"):
            SecureRouterTrainingArguments(str(tmp_path), router_learning_rate=-1.0)


class TestFiles:
    def test_nothing_pickled_of_the_arguments_is_saved(self, make_trainer):
        trainer = make_trainer(save_strategy="steps", save_steps=2)
        trainer.train()
        trainer.save_model()
        out = trainer.args.output_dir
        assert not list(Path(out).rglob("training_args.bin"))
        assert (Path(out) / "model.safetensors").is_file() and (Path(out) / "checkpoint-4").is_dir()

    def test_card_of_the_saved_model_reports_the_evaluation(self, make_trainer):
        trainer = make_trainer(compute_metrics=compute_metrics_for())
        trainer.train()
        metrics = trainer.evaluate()
        trainer.save_model()
        card = (Path(trainer.args.output_dir) / "README.md").read_text()
        assert f"| evaluation data | accuracy | {metrics['eval_accuracy']:.4f} |" in card
        assert f"cost {metrics['eval_routing_cost']:.4g} each on average" in card
        assert "| learning_rate | 5e-05 |" in card

    def test_create_model_card_keeps_what_a_person_wrote(self, make_trainer):
        trainer = make_trainer()
        trainer.save_model()
        path = Path(trainer.args.output_dir) / "README.md"
        path.write_text("# Mine\n")
        trainer.create_model_card()
        assert path.read_text() == "# Mine\n"

    def test_saved_config_is_the_one_trained_from(self, make_trainer):
        trainer = make_trainer(make_model(temperature=2.0))
        trainer.train()
        trainer.save_model()
        saved = json.loads((Path(trainer.args.output_dir) / "config.json").read_text())
        assert saved["temperature"] == 2.0
        again = SecureRouterForSequenceClassification.from_pretrained(trainer.args.output_dir)
        assert again.annealed_temperature is None
