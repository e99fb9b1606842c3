# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The trainer pushes no pickle of its arguments, which would hold the Hub token, however it is asked to."""

import pytest
from transformers import TrainingArguments

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.trainer import SecureRouterTrainer, SecureRouterTrainingArguments
from tests.test_trainer import make_data, make_model


EVERY_SAVE = "`hub_strategy` should be 'end', got 'every_save'"


def test_by_its_own_arguments(tmp_path):
    with pytest.raises(SecureRouterValueError, match=EVERY_SAVE):
        SecureRouterTrainingArguments(str(tmp_path), push_to_hub=True, hub_strategy="every_save")


def test_by_the_arguments_of_transformers(tmp_path):
    args = TrainingArguments(str(tmp_path), push_to_hub=True, use_cpu=True, report_to="none")
    with pytest.raises(SecureRouterValueError, match=EVERY_SAVE):
        SecureRouterTrainer(make_model(), args, train_dataset=make_data(8))


def test_by_a_later_call(tmp_path):
    args = SecureRouterTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = SecureRouterTrainer(make_model(), args, train_dataset=make_data(8))
    args.set_push_to_hub("me/pool", strategy="checkpoint", token="hf_secret")
    with pytest.raises(SecureRouterValueError, match="`hub_strategy` should be 'end', got 'checkpoint'"):
        trainer.train()
