# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a run has to know of a data set: its columns, its labels and how answers are scored. GLUE's are constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hf_securerouter.configuration_securerouter import ProblemType
from hf_securerouter.known_arguments import refuses_unknown_init
from hf_securerouter.metrics import GLUE_METRICS, SCORES, Metric, glue_metric, local_metric, mean_score
from hf_securerouter.reports import Score


GLUE = "nyu-mll/glue"


@refuses_unknown_init
@dataclass(frozen=True)
class Task:
    """
    The description of a data set.

    Args:
        name (`str`): Its name in reports, cards and folders.
        columns (`tuple[str, ...]`): The column of the text, or of the first and the second text of a pair.
        labels (`tuple[str, ...]`): Names of the classes, in the order of their ids; none for a regression.
        metrics (`tuple[str, ...]`): Names of the metrics that a report lists; see
            [`~hf_securerouter.metrics.local_metric`].
        scored (`tuple[str, ...]`): Those whose mean ranks answers.
        label_column (`str`): The column of the label.
        hub_id (`str`, *optional*): The data set's name on the Hub.
        has_phrases (`bool`): Whether texts are parts of other texts, as SST-2's are, which a split has to keep
            together.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    scored: tuple[str, ...]
    label_column: str = "label"
    hub_id: str | None = None
    has_phrases: bool = False

    @property
    def is_glue(self) -> bool:
        """Whether it is a task of GLUE."""
        return self.hub_id == GLUE

    @property
    def regression(self) -> bool:
        """Whether a label is a number."""
        return not self.labels

    @property
    def problem_type(self) -> ProblemType:
        """What transformers calls the kind of the task."""
        return "regression" if self.regression else "single_label_classification"

    @property
    def id2label(self) -> dict[int, str]:
        """The names of a classifier's outputs, one for a regression."""
        return dict(enumerate(self.labels or ("score",)))

    @property
    def score_name(self) -> str:
        """The scored metrics, such as "accuracy" or "pearson+spearmanr"."""
        return "+".join(self.scored)

    def metric(self) -> Metric:
        """A function of predictions (N,) and references (N,), giving every metric; GLUE's are those of `evaluate`
        where that library can load them. A metric that is not defined, such as the correlation of answers that are all
        the same, is 0, as in a score: JSON has no NaN."""
        metric = glue_metric(self.name) if self.is_glue else local_metric(self.metrics)

        def finite(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
            found = metric(predictions, references)
            return {name: value if math.isfinite(value) else 0.0 for name, value in found.items()}

        return finite

    def score(self) -> Score:
        """A function of predictions (N,) and references (N,), giving one number, at most 1, by which answers are
        ranked."""
        return mean_score(self.scored)


def _glue(name: str, columns: tuple[str, ...], labels: tuple[str, ...], has_phrases: bool = False) -> Task:
    return Task(name, columns, labels, GLUE_METRICS[name], SCORES[name], hub_id=GLUE, has_phrases=has_phrases)


TASKS = {
    task.name: task
    for task in (
        _glue("cola", ("sentence",), ("unacceptable", "acceptable")),
        _glue("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
        _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
        _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
        _glue("sst2", ("sentence",), ("negative", "positive"), has_phrases=True),
        _glue("stsb", ("sentence1", "sentence2"), ()),
    )
}
