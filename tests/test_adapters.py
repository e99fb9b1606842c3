# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Adapters of PEFT: the router learns beside them, they are saved, carded, pushed and loaded alone, and merged."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterWarning
from hf_securerouter.adapters import adapter_of, pool_inside
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.metrics import compute_metrics_for
from hf_securerouter.trainer import SecureRouterTrainer, SecureRouterTrainingArguments
from tests.test_trainer import make_data, make_model


peft = pytest.importorskip("peft")

ROUTER = {f"base_model.model.router.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")}


def lora(**fields):
    return peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"]} | fields)


def make_trainer(model, folder, **fields):
    defaults = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.05}
    defaults |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    optimizers = fields.pop("optimizers", (None, None))
    return SecureRouterTrainer(
        model,
        SecureRouterTrainingArguments(str(folder), **defaults | fields),
        train_dataset=make_data(16),
        eval_dataset=make_data(10),
        compute_metrics=compute_metrics_for(),
        optimizers=optimizers,
    )


@pytest.fixture
def saved(tmp_path) -> str:
    make_model(temperature=2.0, min_temperature=1.0).save_pretrained(tmp_path / "pool")
    return str(tmp_path / "pool")


@pytest.fixture
def pool(saved):
    return SecureRouterForSequenceClassification.from_pretrained(saved)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trainer after training and evaluation of an adapter, which it has saved twice."""
    folder = tmp_path_factory.mktemp("adapter")
    make_model(temperature=2.0, min_temperature=1.0).save_pretrained(folder / "pool")
    pool = SecureRouterForSequenceClassification.from_pretrained(folder / "pool")
    trainer = make_trainer(peft.get_peft_model(pool, lora()), folder / "out", seed=1)
    trainer.train()
    trainer.metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_model()
    return trainer


def answers(model) -> torch.Tensor:
    batch = {name: torch.tensor([row[name] for row in make_data(6)]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model.eval()(**batch)
    return torch.cat([output.logits, output.router_logits], dim=1)


def test_temperature_that_is_logged_is_that_of_the_pool(run):
    logs = [entry["temperature"] for entry in run.state.log_history if "temperature" in entry]
    assert logs == [2.0, 1.75, 1.5, 1.25] and pool_inside(run.model).annealed_temperature == 1.25


def test_router_learns_and_is_saved_with_the_adapter_alone(run):
    folder = Path(run.args.output_dir)
    weights = load_file(folder / "adapter_model.safetensors")
    assert weights.keys() >= ROUTER and all("lora" in name or "classifier" in name for name in weights.keys() - ROUTER)
    before = load_file(folder.parent / "pool" / "model.safetensors")
    moved = [name for name in ROUTER if not torch.equal(weights[name], before[name.removeprefix("base_model.model.")])]
    assert set(moved) == ROUTER
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }


def test_saved_adapter_on_its_pool_answers_as_the_trained_one_and_so_when_merged(run):
    folder = Path(run.args.output_dir)
    trained = answers(run.model)
    base = SecureRouterForSequenceClassification.from_pretrained(folder.parent / "pool")
    assert not torch.allclose(answers(base), trained, atol=1e-3)
    again = peft.PeftModel.from_pretrained(base, str(folder))
    torch.testing.assert_close(answers(again), trained)
    merged = again.merge_and_unload()
    assert adapter_of(merged) is None
    torch.testing.assert_close(answers(merged), trained)
    assert merged.to_mpc(max_length=8).manifest.max_length == 8


def test_adapter_folder_loads_by_itself(run):
    loaded = SecureRouterForSequenceClassification.from_pretrained(run.args.output_dir)
    torch.testing.assert_close(answers(loaded), answers(run.model))


def test_card_is_the_adapters_own(run, monkeypatch):
    text = (Path(run.args.output_dir) / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict()["library_name"] == "peft" and card.data.base_model is None  # it is a folder
    assert {"lora", "securerouter"} <= set(card.data.tags)
    assert "an adapter on such a pool, lora of rank 2 with" in text and "merge_and_unload" in text
    assert f"| evaluation data | accuracy | {run.metrics['eval_accuracy']:.4f} |" in text
    assert "More Information Needed" not in text and str(Path(run.args.output_dir).parent) not in text
    monkeypatch.setattr(run.model.peft_config["default"], "base_model_name_or_path", "you/pool")
    run.create_model_card()
    text = (Path(run.args.output_dir) / "README.md").read_text()
    assert ModelCard(text).data.base_model == "you/pool" and 'from_pretrained("you/pool")' in text


def test_only_the_adapter_is_pushed(run, monkeypatch):
    pushed = {}

    class Hub:
        def create_repo(self, repo_id, **given):
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, repo_id, folder_path, **given):
            pushed[repo_id] = {path.name for path in Path(folder_path).iterdir()}

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    run.push_to_hub()
    assert pushed == {"me/out": {"adapter_config.json", "adapter_model.safetensors", "README.md"}}


def test_a_frozen_router_stays_out_of_the_adapter(pool, tmp_path):
    model = peft.get_peft_model(pool, lora())
    make_trainer(model, tmp_path, freeze=["router"])
    assert "router.dense" not in model.peft_config["default"].modules_to_save
    assert not any(parameter.requires_grad for parameter in pool.router.dense.parameters())


def test_a_router_that_the_adapter_names_is_taken_as_it_is(pool, tmp_path):
    model = peft.get_peft_model(pool, lora(modules_to_save=["router.dense", "router.out_proj"]))
    before = list(model.peft_config["default"].modules_to_save)
    make_trainer(model, tmp_path)
    assert model.peft_config["default"].modules_to_save == before


def test_an_optimizer_without_the_router_is_refused(pool, tmp_path):
    model = peft.get_peft_model(pool, lora())
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    with pytest.raises(SecureRouterValueError, match="`optimizers` holds an optimizer that does not know the router"):
        make_trainer(model, tmp_path, optimizers=(optimizer, None))


def test_an_adapter_on_a_pool_that_was_never_saved_is_warned_of(tmp_path):
    with pytest.warns(SecureRouterWarning, match="The pool under the adapter has no name"):
        make_trainer(peft.get_peft_model(make_model(), lora()), tmp_path)


def test_an_adapter_of_the_pool_itself_leaves_the_pool_beside_it_alone(pool, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    pool.add_adapter(lora())
    trainer = make_trainer(pool, tmp_path / "out")
    trainer.train()
    trainer.save_model(saved)
    names = {path.name for path in Path(saved).iterdir()}
    assert names >= {"model.safetensors", "config.json", "adapter_model.safetensors"}
    assert load_file(f"{saved}/adapter_model.safetensors").keys() >= ROUTER
    assert json.loads(Path(saved, "adapter_config.json").read_text())["base_model_name_or_path"] == saved


def test_a_pool_is_not_saved_where_loading_would_put_an_adapter_onto_it(run):
    with pytest.raises(SecureRouterValueError, match="holds an adapter .*, which would be put onto this pool"):
        make_model().save_pretrained(run.args.output_dir)
