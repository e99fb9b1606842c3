# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Fixtures for every test; deprecation messages of transformers are errors."""

import copy
import logging

import pytest
import torch
from hypothesis import settings
from transformers import BertTokenizer

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.mpc.sessions import core_dumps
from hf_securerouter.mpc.sessions.fork_server import shared_fork_server
from tests.tiny import MAX_POSITIONS, VOCABULARY, pool_model


settings.register_profile("patient", deadline=None)  # a busy machine is no fault
settings.load_profile("patient")

# Modules of few tests that take long: they train, or start processes.
_LONG = (
    *("tests/recipes/", "tests/mpc/sessions/", "tests/mpc/deployment/", "tests/mpc/models/", "tests/cli/"),
    *("tests/test_distributed.py", "tests/test_trainer.py", "tests/mpc/protocols/masked/test_routing_privacy.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules come first, so that at the end no worker is left alone with one."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


class _DeprecationIsAnError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage().lower():
            raise AssertionError(f"transformers logged a deprecation: {record.getMessage()}")


@pytest.fixture(scope="session", autouse=True)
def _deprecations_are_errors():
    handler = _DeprecationIsAnError(level=logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    yield
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _this_process_may_leave_core_dumps():
    """Commands that tests call in this process would forbid them for good, and for every process started later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_dumps, "forbid_core_dumps", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server():
    """The process that starts the roles of all sessions; loading PyTorch once for each session would take long."""
    with shared_fork_server():
        yield


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab=VOCABULARY, model_max_length=MAX_POSITIONS)


@pytest.fixture(scope="session")
def _model() -> SecureRouterForSequenceClassification:
    return pool_model()


@pytest.fixture
def model(_model) -> SecureRouterForSequenceClassification:
    return copy.deepcopy(_model)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Twelve rows of different length, padded, without labels."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 13, (12,), generator=generator)
    lengths[0] = 12
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(5, len(VOCABULARY), (12, 12), generator=generator) * mask
    ids[:, 0] = VOCABULARY["[CLS]"]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, 2, (12,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path) -> str:
    """A folder with a saved pool and its tokenizer."""
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
