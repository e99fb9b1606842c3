# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tiny pools of four kinds under transformers' tests. pytest collects this file only when it is named."""

import functools
import unittest
from typing import Any
from unittest import mock

import torch
from transformers import logging
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification
from tests.peer.source import load
from tests.tiny import family_config


common = load("test_modeling_common")
ModelTesterMixin = common.ModelTesterMixin
ConfigTester = load("test_configuration_common").ConfigTester

logging.set_verbosity_warning()  # some tests read what is logged

# The tests look here for classes that take one label for each row.
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["secure_router"] = SecureRouterForSequenceClassification.__name__

_steady = common.set_config_for_less_flaky_test


def steady_members(config: Any) -> None:
    """Sets fields of many families, which make a test's numbers steady, in the members: the pool's own config refuses
    fields that it does not know."""
    for member in config._members:
        _steady(member)


def comparing_logits(test: Any) -> Any:
    """A test that asks for hidden states, which a pool refuses, and then compares what there is: the logits."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with mock.patch("hf_securerouter.modeling_securerouter.check_forward"):
            test(*args, **kwargs)

    return run


common.set_config_for_less_flaky_test = steady_members
common._test_eager_matches_sdpa_inference = comparing_logits(common._test_eager_matches_sdpa_inference)
ModelTesterMixin.test_batching_equivalence = comparing_logits(ModelTesterMixin.test_batching_equivalence)

TOKENS = 64
KINDS: dict[str, dict[str, Any]] = {
    "ThreeBerts": {},
    "SharedRouter": {"router_config": None, "router_shares_expert": 1},
    "MixedFamilies": {"families": ("distilbert", "roberta", "albert")},
    "NarrowedFunctions": {
        "expert_mpc": [
            {"hidden_act": "relu"},
            {"hidden_act": "quadratic", "softmax": "2quad"},
            {"hidden_act": "quadratic", "softmax": "2relu", "precision": "reduced"},
        ]
    },
}


def fields(families: tuple[str, ...] = ("bert", "bert", "bert"), **others: Any) -> dict[str, Any]:
    """The fields of a pool's config, as plain values."""
    experts = [family_config(family, vocab_size=TOKENS).to_dict() for family in families]
    return {
        "router_config": family_config("bert", width=8, vocab_size=TOKENS).to_dict(),
        "expert_configs": experts,
        "expert_costs": [float(2**i) for i in range(len(families))],
        "router_hidden_size": 8,
        "router_dropout": 0.0,
        **others,
    }


class PoolTester:
    """What the tests ask of a model: a config, a batch, and its sizes."""

    batch_size, seq_length = 8, 7
    num_hidden_layers, hidden_size, num_attention_heads = 1, 16, 2
    is_training = True

    def __init__(self, kind: str):
        self.kind = kind

    def prepare_config_and_inputs_for_common(self) -> tuple[SecureRouterConfig, dict[str, torch.Tensor]]:
        ids = torch.randint(5, TOKENS, (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        mask[1::2, -2:] = 0
        inputs = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        return SecureRouterConfig(**fields(**KINDS[self.kind])), inputs


def model_tests(kind: str) -> type:
    """A class with every test of a model, for pools of one kind."""

    def set_up(self: Any) -> None:
        self.model_tester = PoolTester(kind)

    classes = (SecureRouterForSequenceClassification,)
    return type(f"{kind}Model", (ModelTesterMixin, unittest.TestCase), {"all_model_classes": classes, "setUp": set_up})


def config_tests(kind: str) -> type:
    """A class with every part of the test of a config, for pools of one kind, as a test of its own."""

    def test(part: str) -> Any:
        def run(self: Any) -> None:
            own = ["num_labels", "num_experts", "max_length"]
            tester = ConfigTester(
                self, SecureRouterConfig, has_text_modality=False, common_properties=own, router_hidden_size=8
            )
            getattr(tester, part)()

        return run

    parts = [name for name in dir(ConfigTester) if name.startswith(("create_and_test_", "check_"))]
    return type(f"{kind}Config", (unittest.TestCase,), {f"test_{part}": test(part) for part in parts})


for _kind in KINDS:
    globals()[f"{_kind}Model"] = model_tests(_kind)
globals()["PoolConfig"] = config_tests("Pool")
