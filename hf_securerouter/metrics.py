# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The metrics of the GLUE tasks, with or without network access, and those of a user's own data."""

import functools
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from transformers import EvalPrediction
from transformers.utils import logging

from hf_securerouter.errors import SecureRouterValueError


logger = logging.get_logger(__name__)

# The metrics of each task, under the names that `evaluate.load("glue", task)` gives them.
GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "mnli": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qnli": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "sst2": ("accuracy",),
    "stsb": ("pearson", "spearmanr"),
    "wnli": ("accuracy",),
}

Metric = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def glue_metric(task: str) -> Metric:
    """Return the metric of a GLUE task.

    The metric of the `evaluate` library is used where it can be loaded (it is fetched from the Hub on first use);
    otherwise scikit-learn and scipy compute the same values under the same names.

    Args:
        task: One of `GLUE_METRICS`, such as "sst2".

    Returns:
        A function of predictions (N,) and references (N,) that returns a float for each metric of the task.
        Predictions are class indices, for "stsb" scores.

    Raises:
        SecureRouterValueError: `task` is not a GLUE task.

    Example:
        ```python
        glue_metric("mrpc")(np.array([1, 0, 1]), np.array([1, 0, 0]))  # {"accuracy": 0.667, "f1": 0.667}
        ```

    Reference:
        Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR 2019.
    """
    if task not in GLUE_METRICS:
        raise SecureRouterValueError(f"`task` must be one of {sorted(GLUE_METRICS)}, got {task!r}.")
    hub_metric = _load_from_evaluate(task)
    if hub_metric is not None:
        return lambda predictions, references: {
            name: float(value)
            for name, value in hub_metric.compute(predictions=predictions, references=references).items()
        }
    return functools.partial(_compute_locally, GLUE_METRICS[task])


def compute_metrics_for(task: str | None = None, regression: bool = False) -> Callable[[EvalPrediction], dict]:
    """Return a `compute_metrics` function for [`~transformers.Trainer`].

    Args:
        task: A GLUE task. If None, the metric is accuracy, for regression the mean squared error. Labels of shape
            (N, C) are those of a multi-label model: accuracy is then the share of texts with all labels right, and
            "micro_f1" comes with it.
        regression: Whether the labels are scores; read only without `task`.

    Inputs:
        An `EvalPrediction` whose predictions are logits: (N, C) for classification, (N, 1) or (N,) for regression.

    Raises:
        SecureRouterValueError: `task` is not a GLUE task. The function itself raises it where predictions and labels
            differ in shape.
    """
    if task is None:
        regression_task = regression
        metric: Metric = functools.partial(_compute_locally, ("mse",) if regression else ("accuracy",))
    else:
        metric = glue_metric(task)
        regression_task = task == "stsb"

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        references = np.asarray(prediction.label_ids)
        if task is None and not regression and references.ndim == 2:
            return _compute_locally(("accuracy", "micro_f1"), logits > 0, references > 0.5)
        predicted = logits.reshape(-1) if regression_task else logits.argmax(axis=-1)
        return metric(predicted, references)

    return compute_metrics


# The metrics whose mean ranks results of a task.
SCORES: dict[str, tuple[str, ...]] = GLUE_METRICS | {"mrpc": ("f1",), "qqp": ("f1",)}


def glue_score(task: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function that scores results of a GLUE task by one number, without network access.

    Accuracy; F1 for "mrpc" and "qqp"; Matthews' correlation for "cola"; the mean of Pearson's and Spearman's
    correlation for "stsb".

    Args:
        task: One of `GLUE_METRICS`.

    Returns:
        A function of predictions (N,) and references (N,) that returns a float of at most 1.

    Raises:
        SecureRouterValueError: `task` is not a GLUE task.
    """
    if task not in SCORES:
        raise SecureRouterValueError(f"`task` must be one of {sorted(SCORES)}, got {task!r}.")
    return mean_score(SCORES[task])


def local_metric(names: Sequence[str]) -> Metric:
    """Return a metric that scikit-learn and scipy compute, without network access.

    Args:
        names: Any of "accuracy", "f1" (of two classes), "macro_f1", "matthews_correlation", "micro_f1", "mse",
            "pearson" and "spearmanr".

    Returns:
        A function of predictions (N,) and references (N,), giving a float for each name.

    Raises:
        SecureRouterValueError: A name is none of these.
    """
    unknown = [name for name in names if name not in _LOCAL_METRICS]
    if unknown:
        raise SecureRouterValueError(f"`names` should be some of {sorted(_LOCAL_METRICS)}, got {unknown}.")
    return functools.partial(_compute_locally, tuple(names))


def mean_score(names: Sequence[str]) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the mean of some metrics as one number.

    A metric that is not defined, such as the correlation with a constant, counts as 0.

    Args:
        names: As for [`local_metric`].

    Returns:
        A function of predictions (N,) and references (N,), giving a float.

    Raises:
        SecureRouterValueError: As for [`local_metric`].
    """
    metric = local_metric(names)

    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a constant prediction has no correlation; it counts as 0, not NaN
            found = metric(predictions, references).values()
        return float(np.mean(np.nan_to_num(list(found))))

    return score


def _compute_locally(names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    if np.shape(predictions) != np.shape(references):
        raise SecureRouterValueError(
            f"`predictions` and `references` must have the same shape, got {np.shape(predictions)} and "
            f"{np.shape(references)}."
        )
    return {name: float(_LOCAL_METRICS[name](predictions, references)) for name in names}


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return (predictions == references).reshape(len(references), -1).all(axis=1).mean()


def _micro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(references, predictions, average="micro", zero_division=0.0)


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(references, predictions, zero_division=0.0)


def _macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(references, predictions, average="macro", zero_division=0.0)


def _matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def _mean_squared_error(predictions: np.ndarray, references: np.ndarray) -> float:
    return np.square(predictions.astype(np.float64) - references).mean()


def _pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return pearsonr(predictions, references).statistic


def _spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return spearmanr(predictions, references).statistic


_LOCAL_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews_correlation,
    "micro_f1": _micro_f1,
    "mse": _mean_squared_error,
    "pearson": _pearson,
    "spearmanr": _spearmanr,
}


@functools.cache
def _load_from_evaluate(task: str):
    """Return evaluate's metric for `task`, or None if the library or the network is missing."""
    try:
        import evaluate

        return evaluate.load("glue", task)
    except Exception as error:  # no library, no network or a proxy's answer; the local metric has equal values
        logger.info("`evaluate` gave no metric for %s (%s); using scikit-learn and scipy.", task, type(error).__name__)
        return None
