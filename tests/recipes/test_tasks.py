# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Descriptions of data sets: the metrics of a task."""

import numpy as np
import pytest

from hf_securerouter.recipes.tasks import Task


@pytest.mark.parametrize("predictions", [[1.0, 2.0, 4.0], [2.0, 2.0, 2.0]])
def test_a_metric_that_is_not_defined_is_0(predictions):
    task = Task("own", ("text",), (), ("pearson", "mse"), ("pearson",))
    found = task.metric()(np.array(predictions), np.full(3, 2.0))
    assert found == {"pearson": 0.0, "mse": pytest.approx(np.square(np.array(predictions) - 2).mean())}
    assert task.score()(np.array(predictions), np.full(3, 2.0)) == 0.0
