# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The config: what it accepts, what reaches the experts, and that it survives JSON."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedConfig

from hf_securerouter import PooledEncoderConfig, SecureRouterConfig, SecureRouterValueError
from hf_securerouter.families import usable_positions
from hf_securerouter.hub_ids import is_hub_id
from tests.tiny import FAMILIES, MAX_POSITIONS, family_config, pool_config


REFUSALS = (StrictDataclassError, SecureRouterValueError)


def test_empty_config_constructs():
    config = SecureRouterConfig()
    assert config.num_experts == 0 and config.expert_configs == [] and config.router_config is None
    assert config.router_objective == "gumbel" and config.routing_lambda == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_dict_rebuilds_the_config(family):
    config = pool_config((family, "bert"), num_labels=3, quotas=[3, 1], routing_privacy="quota")
    rebuilt = SecureRouterConfig(**config.to_dict())
    assert rebuilt.to_dict() == config.to_dict()
    assert type(rebuilt.expert_configs[0]) is type(family_config(family))


@pytest.mark.parametrize("labels", [None, {0: "negative", 1: "positive", 2: "neutral"}])
def test_json_file_rebuilds_the_config(tmp_path, labels):
    config = pool_config(id2label=labels, alpha=0.3, temperature=2, expert_mpc=[{"softmax": "2quad"}, {}, {}])
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SecureRouterConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.id2label == config.id2label and loaded.expert_configs[2].id2label == config.id2label


def test_sub_configs_are_copied_not_shared_with_the_caller():
    expert = family_config("bert")
    config = SecureRouterConfig(router_config=expert, expert_configs=[expert], num_labels=4)
    assert config.expert_configs[0].num_labels == 4 and expert.num_labels == 2


def test_labels_and_problem_type_reach_every_expert():
    names = {0: "no", 1: "yes", 2: "maybe"}
    config = pool_config(FAMILIES, id2label=names, problem_type="single_label_classification")
    assert config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    for expert in config.expert_configs:
        assert expert.id2label == names and expert.label2id == config.label2id and expert.num_labels == 3
        assert expert.problem_type == "single_label_classification"


def test_num_labels_override_in_from_pretrained_reaches_every_expert(tmp_path):
    pool_config(num_labels=3).save_pretrained(tmp_path)
    config = SecureRouterConfig.from_pretrained(tmp_path, num_labels=5)
    assert [expert.num_labels for expert in config.expert_configs] == [5, 5, 5]


def test_labels_are_taken_from_the_experts():
    named = family_config("bert", id2label={0: "neg", 1: "pos"}, problem_type="single_label_classification")
    config = pool_config(expert_configs=[family_config("bert"), named], expert_costs=[1.0, 2.0])
    assert config.id2label == {0: "neg", 1: "pos"} and config.expert_configs[0].id2label == {0: "neg", 1: "pos"}
    assert config.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    "expert_fields, message",
    [
        ([{"num_labels": 2}, {"num_labels": 3}], "different numbers of labels.*num_labels"),
        ([{"id2label": {0: "a", 1: "b"}}, {"id2label": {0: "b", 1: "a"}}], "differently.*id2label"),
        ([{"problem_type": "regression"}, {"problem_type": "multi_label_classification"}], "problem types"),
    ],
)
def test_experts_that_disagree_are_refused(expert_fields, message):
    experts = [family_config("bert", **fields) for fields in expert_fields]
    with pytest.raises(REFUSALS, match=message):
        pool_config(expert_configs=experts, expert_costs=None)


def test_max_length_is_the_smallest_of_router_and_experts():
    config = pool_config(expert_configs=[family_config("bert", max_position_embeddings=64)], expert_costs=[1.0])
    assert config.max_length == MAX_POSITIONS
    assert pool_config(max_length=7).max_length == 7


def test_roberta_positions_start_after_the_padding_token():
    assert usable_positions(family_config("roberta", pad_token_id=1, max_position_embeddings=514)) == 512
    assert usable_positions(family_config("bert", max_position_embeddings=512)) == 512


def test_dtype_is_stated_once():
    config = pool_config(dtype="bfloat16")
    assert all(expert.dtype is torch.bfloat16 for expert in config.expert_configs)
    written = json.loads(config.to_json_string())
    assert written["dtype"] == "bfloat16"
    for sub_config in (*written["expert_configs"], written["router_config"]):
        assert not {"dtype", "id2label", "label2id", "problem_type", "transformers_version"} & set(sub_config)


def test_no_local_path_is_written(tmp_path):
    config = pool_config()
    config.expert_configs[0].name_or_path = str(tmp_path)
    config.expert_configs[1].name_or_path = "google-bert/bert-base-uncased"
    config.router_config.name_or_path = "./somewhere/here"
    written = config.to_json_string()
    assert str(tmp_path) not in written and "somewhere" not in written
    assert json.loads(written)["expert_configs"][1]["_name_or_path"] == "google-bert/bert-base-uncased"


def test_no_local_path_is_written_of_an_encoder_inside_an_expert(tmp_path):
    encoder = family_config("bert")
    encoder.name_or_path = str(tmp_path)
    pooled = PooledEncoderConfig(text_config=encoder)
    for config in (pooled, pool_config(expert_configs=[pooled, pooled], expert_costs=[1.0, 2.0])):
        assert str(tmp_path) not in config.to_json_string()
        assert str(tmp_path) not in config.to_json_string(use_diff=False)
    encoder.name_or_path = "google-bert/bert-base-uncased"
    written = json.loads(PooledEncoderConfig(text_config=encoder).to_json_string())
    assert written["text_config"]["_name_or_path"] == "google-bert/bert-base-uncased"


def test_hub_id_is_told_from_a_path(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert is_hub_id("org/model") and not is_hub_id(str(tmp_path)) and not is_hub_id("")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("org/model")


@pytest.mark.parametrize(
    "field, value, received, remedy",
    [
        ("alpha", -0.1, "-0.1", "at least 0"),
        ("alpha", "much", "'much'", "finite number"),
        ("alpha", math.nan, "nan", "finite number"),
        ("beta", True, "True", "finite number"),
        ("beta", math.inf, "inf", "finite number"),
        ("temperature", 0, "got 0", "above 0"),
        ("min_temperature", -1.0, "-1.0", "above 0"),
        ("temperature_annealing", "cosine", "'cosine'", "constant, linear, exponential"),
        ("temperature_annealing_rate", 0.0, "0.0", "above 0"),
        ("router_objective", "entropy", "'entropy'", "gumbel, utility"),
        ("routing_privacy", "hidden", "'hidden'", "revealed, quota, oblivious"),
        ("routing_lambda", -1, "-1", "at least 0"),
        ("router_hidden_size", 0, "got 0", "at least 1"),
        ("router_dropout", 1.0, "got 1.0", "below 1"),
        ("max_length", 1, "got 1", "at least 2"),
        ("max_length", MAX_POSITIONS + 1, f"got {MAX_POSITIONS + 1}", f"at most {MAX_POSITIONS}"),
        ("expert_costs", [1.0, 2.0], "[1.0, 2.0]", "one entry for each of the 3 experts"),
        ("expert_costs", [1.0, 0.0, 2.0], "got 0.0", "above 0"),
        ("expert_costs", 3.0, "3.0", "list"),
        ("expert_costs_source", "guess", "'guess'", "estimate, given, measured"),
        ("quotas", [1, 2], "[1, 2]", "one entry for each of the 3 experts"),
        ("quotas", [1, -2, 3], "-2", "at least 0"),
        ("quotas", [0, 0, 0], "[0, 0, 0]", "at least one query"),
        ("expert_mpc", [{"softmax": "2quad"}], "'2quad'", "one entry for each of the 3 experts"),
        ("expert_mpc", [{"activation": "relu"}, {}, {}], "'activation'", "hidden_act, softmax"),
        ("expert_mpc", [{"softmax": "3quad"}, {}, {}], "'3quad'", "exact, 2quad, 2relu"),
        ("expert_mpc", ["relu", {}, {}], "'relu'", "one dict"),
    ],
)
def test_wrong_value_is_refused_with_argument_value_and_remedy(field, value, received, remedy):
    with pytest.raises(REFUSALS) as caught:
        pool_config(**{field: value})
    message = str(caught.value)
    assert f"`{field}" in message and received in message and remedy in message


@pytest.mark.parametrize("value", [{"model_type": "no-such-model"}, {"hidden_size": 3}, 7, "bert"])
def test_wrong_expert_config_is_refused(value):
    with pytest.raises(SecureRouterValueError, match=r"`expert_configs\[0\]`"):
        SecureRouterConfig(expert_configs=[value])


def test_pool_inside_a_pool_is_refused():
    with pytest.raises(SecureRouterValueError, match="itself a router"):
        SecureRouterConfig(expert_configs=[pool_config()])


def test_expert_configs_that_are_no_list_are_refused():
    with pytest.raises(SecureRouterValueError, match="`expert_configs` should be a list"):
        SecureRouterConfig(expert_configs=family_config("bert"))


def test_assignment_is_validated_too():
    config = pool_config()
    with pytest.raises(StrictDataclassError, match="`temperature`"):
        config.temperature = -1.0


def test_wrong_lengths_are_caught_when_saving(tmp_path):
    config = pool_config()
    config.expert_costs = [1.0]
    with pytest.raises(StrictDataclassError, match="`expert_costs`"):
        config.save_pretrained(tmp_path)


def test_expert_mpc_is_completed_with_the_exact_functions():
    config = pool_config(expert_mpc=[{"hidden_act": "relu"}, {}, {"softmax": "2relu"}])
    assert config.expert_mpc[0] == {"hidden_act": "relu", "softmax": "exact", "precision": "full"}
    assert config.expert_mpc[1] == {"hidden_act": "exact", "softmax": "exact", "precision": "full"}
    assert config.expert_mpc[2]["softmax"] == "2relu"


def test_given_costs_are_marked_as_given():
    assert pool_config().expert_costs_source == "given"
    assert pool_config(expert_costs_source="measured").expert_costs_source == "measured"
    assert pool_config(expert_costs=None).expert_costs_source is None


def test_linear_annealing_ends_at_the_minimum():
    config = pool_config(temperature=2.0, min_temperature=0.5)
    assert [config.temperature_at(step, 10) for step in (0, 5, 10, 20)] == [2.0, 1.25, 0.5, 0.5]


def test_exponential_annealing_follows_its_rate():
    config = pool_config(temperature=1.0, min_temperature=0.5, temperature_annealing="exponential")
    config.temperature_annealing_rate = 0.01
    assert config.temperature_at(10, 1000) == pytest.approx(math.exp(-0.1))
    assert config.temperature_at(10_000, 10_000) == 0.5


@given(
    kind=st.sampled_from(["constant", "linear", "exponential"]),
    start=st.floats(0.01, 10),
    minimum=st.floats(0.01, 10),
    step=st.integers(0, 2000),
)
def test_temperature_stays_between_its_ends(kind, start, minimum, step):
    config = SecureRouterConfig(temperature=start, min_temperature=minimum, temperature_annealing=kind)
    assert min(start, minimum) <= config.temperature_at(step, 1000) <= start
    assert config.temperature_at(0, 1000) == pytest.approx(start)


def test_generation_parameters_do_not_block_saving(tmp_path):
    # `temperature` and `max_length` are also names of generation parameters, which transformers refuses to save.
    pool_config(temperature=0.7, max_length=9).save_pretrained(tmp_path)
    loaded = SecureRouterConfig.from_pretrained(tmp_path)
    assert (loaded.temperature, loaded.max_length) == (0.7, 9)


def test_config_is_a_transformers_config():
    assert issubclass(SecureRouterConfig, PreTrainedConfig) and SecureRouterConfig.model_type == "secure_router"
    assert "logits" not in SecureRouterConfig.keys_to_ignore_at_inference
