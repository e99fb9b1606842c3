# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""GLUE's tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Columns and labels of a GLUE task; no labels stand for a score."""

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def regression(self):
        return not self.labels

    @property
    def id2label(self):
        return dict(enumerate(self.labels or ("score",)))


TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable")),
        Task("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
        Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
        Task("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        Task("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("stsb", ("sentence1", "sentence2"), ()),
    )
}
