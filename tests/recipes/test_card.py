# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a card says of GLUE, of a user's own data, and with how many digits."""

from hf_securerouter.recipes.card import rounded, task_card
from hf_securerouter.recipes.tasks import TASKS, Task


def test_a_task_of_glue_is_named_as_the_hub_names_it():
    card = task_card(TASKS["mrpc"], "mrpc-router", {"f1": 0.123456}, [0.25, 0.75], {"seed": 1}, figure="curve.png")
    (result,) = card.eval_results
    assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("nyu-mll/glue", "GLUE mrpc", "mrpc")
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("f1", 0.1235, "validation")
    assert card.datasets == ["nyu-mll/glue"] and card.language == "en"
    assert card.securerouter == {
        "routing_shares": [0.25, 0.75],
        "training": {"seed": 1},
        "figure": "curve.png",
    }


def test_own_data_have_no_name_on_the_hub():
    task = Task("reviews", ("text",), ("bad", "good"), ("accuracy", "macro_f1"), ("accuracy",))
    card = task_card(task, "reviews-router", {"accuracy": 1.0, "macro_f1": 0.5}, [1.0], {})
    assert [result.dataset_type for result in card.eval_results] == ["reviews", "reviews"]
    assert not {"datasets", "language"} & set(card.to_dict())


def test_numbers_are_rounded_and_nothing_else():
    assert rounded({"a": [0.123456, 7, None, "0.123456"], "b": {"c": True}}) == {
        "a": [0.1235, 7, None, "0.123456"],
        "b": {"c": True},
    }
