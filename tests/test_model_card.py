# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The model card: true to the model, and careful with what a person wrote."""

import os
import re

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard
from transformers import BertConfig
from transformers.utils import logging

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.model_card import SecureRouterModelCardData, generate_model_card, write_model_card


def bert(hidden_size: int, layers: int, name: str = "") -> BertConfig:
    return BertConfig(
        vocab_size=30,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=hidden_size,
        max_position_embeddings=16,
        name_or_path=name,
    )


@pytest.fixture
def model() -> SecureRouterForSequenceClassification:
    config = SecureRouterConfig(
        router_config=bert(8, 1, "prajjwal1/bert-tiny"),
        expert_configs=[bert(8, 1, "prajjwal1/bert-tiny"), bert(16, 2, "google-bert/bert-base-uncased")],
        expert_costs=[1.0, 7.5],
        id2label={0: "negative", 1: "positive"},
        beta=0.25,
    )
    return SecureRouterForSequenceClassification(config)


@pytest.fixture
def data() -> SecureRouterModelCardData:
    return SecureRouterModelCardData(
        model_name="sst2-router",
        datasets=["nyu-mll/glue"],
        license="apache-2.0",
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="nyu-mll/glue",
                dataset_name="GLUE SST-2",
                metric_type="accuracy",
                metric_value=0.8125,
            )
        ],
        securerouter={"routing_shares": [0.625, 0.375]},
    )


def table_row(text: str, start: str) -> list[str]:
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_metadata_name_the_pool_as_a_list_of_base_models(model):
    metadata = ModelCard(generate_model_card(model)).data
    assert metadata.base_model == ["prajjwal1/bert-tiny", "google-bert/bert-base-uncased"]
    assert metadata.to_dict()["library_name"] == "transformers"
    assert metadata.pipeline_tag == "text-classification"
    assert "securerouter" in metadata.tags


def test_local_paths_are_no_base_models(model, tmp_path):
    model.experts[0].config._name_or_path = str(tmp_path)
    model.config.router_config._name_or_path = "./checkpoints/router"
    content = generate_model_card(model)
    assert ModelCard(content).data.base_model == ["google-bert/bert-base-uncased"]
    assert str(tmp_path) not in content and "checkpoints/router" not in content


def test_a_limit_of_tokens_is_stated_if_there_is_one(model):
    assert "Labels: negative, positive. Texts beyond 16 tokens are truncated.\n" in generate_model_card(model)
    model.config.max_length = None
    assert "Labels: negative, positive.\n" in generate_model_card(model)


def test_expert_table_has_parameters_cost_and_share(model, data):
    content = generate_model_card(model, data)
    for index, share in enumerate(["62.5%", "37.5%"]):
        expert = model.experts[index]
        parameters = sum(parameter.numel() for parameter in expert.parameters())
        row = table_row(content, f"{index} (")
        assert row[1:4] == ["bert", str(expert.config.num_hidden_layers), str(expert.config.hidden_size)]
        assert row[4:] == [f"{parameters:,}", ["1", "7.5"][index], share]


def test_expert_table_tells_experts_made_for_encryption(model):
    plain = generate_model_card(model)
    assert "tokens read" not in plain and "attention" not in plain and "precision" not in plain
    model.config.expert_max_lengths = [8, 128]
    model.config.expert_mpc = [
        {"hidden_act": "quadratic", "softmax": "2quad", "precision": "reduced"},
        {"hidden_act": "exact", "softmax": "exact", "precision": "full"},
    ]
    content = generate_model_card(model)
    assert table_row(content, "expert")[-4:] == ["tokens read", "activation", "attention", "precision"]
    assert table_row(content, "0 (")[-4:] == ["8", "quadratic", "2quad", "reduced"]
    assert table_row(content, "1 (")[-4:] == ["16", "exact", "exact", "full"]


@pytest.mark.parametrize(
    ("source", "note"), [("estimate", "not measured"), ("given", "given by the author"), ("measured", "are measured")]
)
def test_costs_say_where_they_come_from(model, source, note):
    model.config.expert_costs_source = source
    content = generate_model_card(model)
    assert f"cost ({source})" in content and note in content
    assert ("estimate" in content) == (source == "estimate")


def test_results_are_in_the_text_and_in_the_metadata(model, data):
    content = generate_model_card(model, data)
    (result,) = ModelCard(content).data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("nyu-mll/glue", "accuracy", 0.8125)
    assert table_row(content, "GLUE SST-2") == ["GLUE SST-2", "accuracy", "0.8125"]


def test_a_card_without_results_claims_none(model):
    content = generate_model_card(model)
    assert "## Results" not in content and "## Training" not in content and "share of evaluated" not in content
    assert "model-index" not in content


@pytest.mark.parametrize(
    ("mode", "phrase"),
    [("revealed", "which expert each query used"), ("quota", "the public quotas"), ("oblivious", "nothing about")],
)
def test_privacy_mode_is_spelled_out(model, mode, phrase):
    model.config.routing_privacy = mode
    content = generate_model_card(model)
    assert f"Routing privacy `{mode}`: under encryption the servers learn" in content
    assert phrase in content


def test_quotas_are_shown(model):
    model.config.quotas = [3, 1]
    assert "Quotas: 3 / 1 texts of each batch of 4" in generate_model_card(model)


def test_roles_and_collusion_are_stated(model):
    content = generate_model_card(model)
    assert "embedding layers (tables and their norm)" in table_row(content, "client")[1]
    assert "no input" in table_row(content, "dealer")[2]
    assert "dealer and one server together recover them" in content
    assert "The protocol `crypten` is the reference" in content


def test_labels_and_routing_are_those_of_the_config(model):
    model.config.routing_lambda = 0.125
    content = generate_model_card(model)
    assert "Labels: negative, positive." in content
    assert "argmax(router_logits - 0.125 * cost)" in content
    assert "`beta` = 0.25" in content
    assert "beyond 16 tokens" in content
    assert "A cost-aware router over 2 experts:" in content


def test_labels_of_a_foreign_checkpoint_are_text_and_no_markdown(model):
    model.config.id2label = {0: "not_so *good*", 1: "<img src=x>\n# [a](b) | c"}
    content = generate_model_card(model)
    assert r"Labels: not_so \*good\*, \<img src=x\> # \[a\](b) \| c. Texts" in content


def test_wrong_number_of_shares_is_refused(model, data):
    data.securerouter["routing_shares"] = [0.5, 0.25, 0.25]
    with pytest.raises(
        SecureRouterValueError, match="`routing_shares` should have one entry for each of the 2 experts"
    ):
        generate_model_card(model, data)


def test_text_has_no_template_left_and_no_double_blank_lines(model, data):
    content = generate_model_card(model, data)
    assert "{{" not in content and "{%" not in content and "None" not in content
    assert "\n\n\n" not in content
    assert not [line for line in content.splitlines() if line.startswith("|") and not line.endswith("|")]


def test_tables_have_no_gaps(model, data):
    """A blank line inside a table would end it on the Hub."""
    content = generate_model_card(model, data)
    blocks = [block for block in content.split("\n\n") if block.startswith("|")]
    assert blocks and all(re.fullmatch(r"(\| --- )+\|", block.splitlines()[1]) for block in blocks)


def test_save_pretrained_writes_the_card(model, data, tmp_path):
    model.model_card_data = data
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == 0.8125
    assert "# sst2-router" in card.text


def test_saving_again_keeps_results_and_takes_new_costs(model, data, tmp_path):
    write_model_card(model, tmp_path, data)
    model.config.expert_costs = [1.0, 11.0]
    assert write_model_card(model, tmp_path)
    content = (tmp_path / "README.md").read_text()
    assert table_row(content, "1 (")[5] == "11"
    assert table_row(content, "0 (")[6] == "62.5%"
    assert ModelCard(content).data.eval_results[0].metric_value == 0.8125
    assert ModelCard(content).data.license == "apache-2.0"


def test_writing_twice_changes_nothing(model, data, tmp_path):
    write_model_card(model, tmp_path, data)
    first = (tmp_path / "README.md").read_bytes()
    assert write_model_card(model, tmp_path, data)
    assert (tmp_path / "README.md").read_bytes() == first


def test_text_below_the_line_is_kept(model, tmp_path):
    write_model_card(model, tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text() + "\n## My notes\n\nMeasured on a Tuesday.\n")
    model.config.routing_lambda = 0.5
    assert write_model_card(model, tmp_path)
    content = path.read_text()
    assert content.endswith("\n## My notes\n\nMeasured on a Tuesday.\n")
    assert "router_logits - 0.5 * cost" in content


def test_metadata_added_by_others_are_kept(model, tmp_path):
    write_model_card(model, tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.data.tags.append("finance")
    card.data["co2_eq_emissions"] = 0.1
    card.save(tmp_path / "README.md")
    assert write_model_card(model, tmp_path)
    metadata = ModelCard.load(tmp_path / "README.md").data
    assert "finance" in metadata.tags and metadata["co2_eq_emissions"] == 0.1


def test_tags_given_later_join_the_former_ones(model, tmp_path):
    write_model_card(model, tmp_path, SecureRouterModelCardData(tags=["finance"]))
    write_model_card(model, tmp_path, SecureRouterModelCardData(tags=["medicine"]))
    assert {"finance", "medicine", "securerouter"} <= set(ModelCard.load(tmp_path / "README.md").data.tags)


def edited(content: str) -> str:
    return content.replace("## Limits", "## Limits\n\n- Never use this on a Friday.")


@pytest.mark.parametrize("change", [edited, lambda content: "# My own card\n", lambda content: "---\n: [\n---\n"])
def test_text_of_a_person_is_not_overwritten(model, tmp_path, caplog, change):
    write_model_card(model, tmp_path)
    path = tmp_path / "README.md"
    path.write_text(change(path.read_text()))
    before = path.read_bytes()
    logging.enable_propagation()
    try:
        assert not write_model_card(model, tmp_path)
    finally:
        logging.disable_propagation()
    assert path.read_bytes() == before
    assert "left as it is" in caplog.text


def test_failed_write_leaves_the_former_card_and_no_other_file(model, tmp_path, monkeypatch):
    write_model_card(model, tmp_path)
    before = (tmp_path / "README.md").read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    model.config.routing_lambda = 0.5
    with pytest.raises(OSError, match="disk full"):
        write_model_card(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_bytes() == before


def test_figures_of_other_weights_are_left_out(model, data, tmp_path, caplog):
    model.model_card_data = data
    model.save_pretrained(tmp_path)
    model.model_card_data = None
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # the same weights in several files
    assert ModelCard.load(tmp_path / "README.md").data.eval_results[0].metric_value == 0.8125
    with torch.no_grad():
        model.experts[0].classifier.bias += 1
    logging.enable_propagation()
    try:
        model.save_pretrained(tmp_path)
    finally:
        logging.disable_propagation()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and card.data.license == "apache-2.0"
    assert "share of evaluated" not in card.text and "are of other weights" in caplog.text


def test_a_card_that_does_not_say_whose_its_figures_are_keeps_them_where_weights_stay(model, data, tmp_path, caplog):
    model.model_card_data = data
    model.save_pretrained(tmp_path)
    model.model_card_data = None
    card = ModelCard.load(tmp_path / "README.md")
    del card.data.securerouter["weights"]  # as before cards had it
    card.save(tmp_path / "README.md")
    assert write_model_card(model, tmp_path, same_weights=True)
    kept = ModelCard.load(tmp_path / "README.md")
    assert kept.data.eval_results[0].metric_value == 0.8125 and kept.data.securerouter["weights"]
    card.save(tmp_path / "README.md")
    logging.enable_propagation()
    try:
        model.save_pretrained(tmp_path)
    finally:
        logging.disable_propagation()
    assert "may be of other weights" in caplog.text and "# sst2-router" in (tmp_path / "README.md").read_text()
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None


def test_a_pool_of_other_experts_is_saved_over_an_evaluated_one(model, data, tmp_path):
    model.model_card_data = data
    model.save_pretrained(tmp_path)
    config = SecureRouterConfig(router_config=bert(8, 1), expert_configs=[bert(8, 1), bert(8, 1), bert(16, 2)])
    larger = SecureRouterForSequenceClassification(config)
    larger.save_pretrained(tmp_path)
    assert SecureRouterForSequenceClassification.from_pretrained(tmp_path).config.num_experts == 3
    assert "share of evaluated" not in (tmp_path / "README.md").read_text()


def test_report_stands_in_the_card(model):
    report = {
        "metric": "f1",
        "largest_score": 0.86,
        "largest_score_interval": [0.84, 0.88],
        "experts": [{"relative_cost": 0.1, "score": 0.7}, {"relative_cost": 1.0, "score": 0.86}],
        "audc": {"utility": 0.81, "zero": 0.78},
        "audc_interval": {"utility": [0.8, 0.82], "zero": [0.77, 0.79]},
        "qnc": {"utility": 0.45, "zero": None},
        "policies": {
            "utility, quotas": {
                "relative_cost": 0.5,
                "relative_cost_interval": [0.49, 0.51],
                "score": 0.855,
                "score_interval": [0.83, 0.875],
                "lost": 0.005,
                "lost_interval": [-0.01, 0.02],
            }
        },
    }
    data = SecureRouterModelCardData(securerouter={"report": report, "figure": "curve.png"})
    card = generate_model_card(model, data)
    assert "| expert 0 alone | 0.100 | 0.7000 |  |" in card
    assert "| the largest | 1.000 | 0.8600 (0.8400 to 0.8800) |  |" in card
    assert (
        "| utility, quotas | 0.500 (0.490 to 0.510) | 0.8550 (0.8300 to 0.8750) | 0.0050 (-0.0100 to 0.0200) |" in card
    )
    assert "| utility | 0.8100 (0.8000 to 0.8200) | 0.450 |" in card
    assert "| zero | 0.7800 (0.7700 to 0.7900) | never |" in card
    assert "](curve.png)" in card and "Scores are f1" in card
    assert "Measured under encryption" not in card and "on secret shares as well" not in card
    assert "Quality over cost" not in generate_model_card(model, SecureRouterModelCardData())

    report["measured"] = {
        "bounds": {"tightest": "experts.1 layer 0 inner", "least_margin_bits": 0.62},
        "batch": 32,
        "length": 128,
        "seconds": {"routed": 17.0, "largest": 36.0, "relative": 17 / 36},
        "bytes": {"routed": 8.5e8, "largest": 1.764e9, "relative": 0.482},
    }
    report["encrypted"] = {
        "inputs": 224,
        "labels_equal": 223,
        "largest_error": 0.0041,
        "metrics": {"accuracy": 0.84, "f1": 0.8512},
        "clear_metrics": {"accuracy": 0.8356, "f1": 0.85},
    }
    card = generate_model_card(model, SecureRouterModelCardData(securerouter={"report": report}))
    assert "one batch of 32 inputs of 128 tokens" in card
    assert "experts.1 layer 0 inner comes nearest to its bound on shares, with 0.6 bits to spare" in card
    assert "| seconds of the servers, with the input | 17 | 36 | 0.472 |" in card
    assert "| MB between them | 850 | 1,764 | 0.482 |" in card
    assert "The first 224 validation inputs" in card and "223 labels equal those of the clear model" in card
    assert "differ by at most 0.0041; accuracy 0.8400 (0.8356 in clear), f1 0.8512 (0.8500 in clear)." in card
    report["measured"]["counted"] = "online and prepared"
    report["encrypted"] |= {"sure": 222, "sure_labels_equal": 222, "seconds": 1.25, "preprocess_seconds": 0.5}
    report["encrypted"] |= {"bytes": 12.5e6, "dealer_bytes": 250e6}
    card = generate_model_card(model, SecureRouterModelCardData(securerouter={"report": report}))
    assert "| seconds of the servers, with the input and before it | 17 | 36 | 0.472 |" in card
    assert "of the clear model (222 of 222 whose clear logits differ by more than 0.05), logits" in card
    assert "in clear). A query took 1.25 seconds with its input and 0.5 before it, 12.5 MB between the servers" in card
    report["encrypted"] |= {"labels_equal": None, "served_elsewhere": 2}
    card = generate_model_card(model, SecureRouterModelCardData(securerouter={"report": report}))
    assert "as well: logits differ by at most 0.0041, but for 2 that another expert answered" in card
    assert "Experts that were tried" not in card
    report["calibration"] = {
        "temperatures": [1.5, 2.0],
        "before": {"experts": [0.1, 0.2], "policies": {"utility, lambda": 0.15}},
        "after": {"experts": [0.01, 0.02], "policies": {"utility, lambda": 0.015}},
    }
    card = generate_model_card(model, SecureRouterModelCardData(securerouter={"report": report}))
    assert "| expert 1 alone | 2.000 | 0.2000 | 0.0200 |" in card and "Probabilities are calibrated" in card
    assert "| utility, lambda |  | 0.1500 | 0.0150 |" in card
    report["variants"] = [
        {"expert": 0, "hidden_act": "exact", "softmax": "exact", "precision": "full", "score": 0.8},
        {"expert": 0, "hidden_act": "quadratic", "softmax": "2quad", "precision": "reduced", "score": 0.795}
        | {"seconds": 0.25, "bytes": 2.5e7, "rounds": 112, "widest": 0.7},
    ]
    card = generate_model_card(model, SecureRouterModelCardData(securerouter={"report": report}))
    assert "Experts that were tried" in card and "| 0 | exact | 0.8000 |  |  |  |" in card
    assert "| 0 | quadratic, 2quad, reduced | 0.7950 | 25 | 112 | 0.25 |" in card
