# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A user's own data: columns, labels and their order, every error, and a whole run of the script."""

import json
import random

import pytest
import run_glue
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import pipeline

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.recipes.arguments import DataArguments
from hf_securerouter.recipes.own_data import OwnData
from tests.recipes.made_up import KINDS, TRAINER, model_arguments


NAMES = {0: "bad", 1: "good", 2: "mixed"}


def review(rng):
    kind = rng.randrange(3)
    words = [rng.choice(KINDS[own]) for own in ((0, 0), (1, 1), (0, 1))[kind]]
    return f"the film is {words[0]} and {words[1]}", NAMES[kind]


def csv_file(path, count, seed, header="text,label"):
    rng = random.Random(seed)
    path.write_text("\n".join([header, *(",".join(review(rng)) for _ in range(count))]) + "\n")
    return str(path)


def json_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own(tmp_path, train, validation=None, **fields):
    """Rows of JSON lines as a data set."""
    files = {
        "train_file": json_file(tmp_path / "train.jsonl", train),
        "validation_file": json_file(tmp_path / "dev.jsonl", train if validation is None else validation),
    }
    return OwnData(DataArguments(**files | fields))


def labelled(*labels):
    return [{"text": f"text {index}", "label": label} for index, label in enumerate(labels)]


def test_a_run_on_a_csv_file_with_three_named_classes(made, tmp_path):
    table, out = tmp_path / "results.json", tmp_path / "out"
    argv = [
        *("--train_file", csv_file(tmp_path / "reviews.csv", 120, 0)),
        *("--validation_file", csv_file(tmp_path / "reviews-dev.csv", 40, 1)),
        *("--text_column", "text", "--label_column", "label", "--results_file", str(table)),
        *model_arguments(made, out, *TRAINER),
    ]
    report = run_glue.main(argv)
    labels = ["bad", "good", "mixed"]
    assert report["task"] == "reviews" and report["metric"] == "accuracy" and report["labels"] == labels
    policy = report["policies"]["utility, quotas"]
    assert policy["metrics"]["accuracy"] == policy["score"] and set(policy["metrics"]) == {"accuracy", "macro_f1"}

    model = SecureRouterForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == NAMES and model.config.label2id == {name: key for key, name in NAMES.items()}
    answer = pipeline("text-classification", model=str(out))("the film is great", top_k=None)
    assert {one["label"] for one in answer} == set(labels)

    card = (out / "README.md").read_text()
    assert "Labels: bad, good, mixed." in card and "type: reviews" in card and "nyu-mll/glue" not in card
    (row,) = json.loads(table.read_text())["tasks"]
    assert row["task"] == "reviews" and row["labels"] == labels
    page = table.with_suffix(".md").read_text()
    assert (
        page.startswith("# Routed pools\n")
        and "| [reviews](reviews/README.md) (bad, good, mixed) | accuracy |" in page
    )

    # The names are those that the run began with.
    assert run_glue.main(argv) == report
    with open(tmp_path / "reviews.csv", "a") as file:
        file.write("the film is not,a fourth\n")
    with pytest.raises(
        SecureRouterValueError, match="labels bad, good, mixed, and the training rows have a fourth, bad"
    ):
        run_glue.main(argv)


def test_a_run_on_a_folder_with_a_score(made, tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "ratings"
    folder.mkdir()
    for split, count in (("train", 100), ("validation", 30)):
        kinds = [rng.randrange(2) for _ in range(count)]
        rows = [{"text": f"the film is {rng.choice(KINDS[kind])}", "label": kind + rng.random()} for kind in kinds]
        json_file(folder / f"{split}.jsonl", rows)
    report = run_glue.main(["--dataset_dir", str(folder), *model_arguments(made, tmp_path / "out", *TRAINER)])
    assert report["task"] == "ratings" and report["metric"] == "pearson+spearmanr" and report["labels"] == []
    metrics = report["policies"]["utility, quotas"]["metrics"]
    assert report["policies"]["utility, quotas"]["score"] == pytest.approx(sum(metrics.values()) / 2)
    config = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert config.problem_type == "regression" and config.id2label == {0: "score"}


def test_pairs_of_json_lines(tmp_path):
    rows = [{"text": "a", "text_pair": "b", "label": "yes"}, {"text": "c", "text_pair": "d", "label": "no"}]
    data = own(tmp_path, rows)
    assert data.task.columns == ("text", "text_pair") and data.task.labels == ("no", "yes")
    assert data.rows("train") == [rows[0] | {"label": 1}, rows[1] | {"label": 0}]
    assert (data.task.name, data.task.metrics, data.task.scored) == ("train", ("accuracy", "macro_f1"), ("accuracy",))


def test_a_saved_data_set_keeps_the_order_of_its_classes(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["worse", "better"])})
    split = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    DatasetDict(train=split, validation=split).save_to_disk(tmp_path / "mine")
    data = OwnData(DataArguments(dataset_dir=str(tmp_path / "mine")))
    assert data.task.name == "mine" and data.task.labels == ("worse", "better")
    assert [row["label"] for row in data.rows("validation")] == [1, 0]
    hidden = Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    DatasetDict(train=split, validation=hidden).save_to_disk(tmp_path / "hidden")
    with pytest.raises(
        SecureRouterValueError, match="hidden/validation, row 2 has no label in column 'label', but -1"
    ):
        OwnData(DataArguments(dataset_dir=str(tmp_path / "hidden")))


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        (["10", "9", "a"], ("10", "9", "a"), [0, 1, 2]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([0.5, 2, 1.5], (), [0.5, 2.0, 1.5]),
        (["0.5", "2", "1.5"], ("0.5", "1.5", "2"), [0, 2, 1]),
    ],
)
def test_labels_are_classes_or_values(tmp_path, labels, names, ids):
    data = own(tmp_path, labelled(*labels))
    assert data.task.labels == names and data.task.regression == (not names)
    found = [row["label"] for row in data.rows("train")]
    assert found == ids and {type(label) for label in found} == {int if names else float}


@pytest.mark.parametrize(
    ("labels", "names"),
    [("2 10 2", ("2", "10")), ("0.5 1 2", ()), ("1 a 2", ("1", "2", "a")), ("nan a a", ("a", "nan"))],
)
def test_labels_of_a_csv_file_have_no_types(tmp_path, labels, names):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "".join(f"a, {label} \n" for label in labels.split()))
    assert OwnData(DataArguments(train_file=str(path), validation_file=str(path))).task.labels == names


@pytest.mark.parametrize(
    ("columns", "fields", "found"),
    [
        (["sentence", "label"], {}, (("sentence",), "label")),
        (["sentence1", "sentence2", "label_text"], {}, (("sentence1", "sentence2"), "label_text")),
        (["premise", "hypothesis", "idx", "class"], {}, (("premise", "hypothesis"), "class")),
        (["text", "sentence", "label", "label_text"], {}, (("text",), "label")),
        (["body", "title", "topic"], {"text_column": "body", "label_column": "topic"}, (("body",), "topic")),
        (
            ["title", "body", "topic"],
            {"text_column": "body", "text_pair_column": "title", "label_column": "topic"},
            (("body", "title"), "topic"),
        ),
        (["text", "reply", "label"], {"text_pair_column": "reply"}, (("text", "reply"), "label")),
    ],
)
def test_columns_are_named_or_plain(tmp_path, columns, fields, found):
    rows = [{column: f"{column} {index}" for column in columns} for index in range(2)]
    task = own(tmp_path, rows, **fields).task
    assert (task.columns, task.label_column) == found


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        (["label", "y"], {"text_column": "label", "label_column": "y"}, "has texts in a column 'label', .*: rename"),
        (["a", "label"], {}, "train.jsonl has the columns a, label: name that of the text by `--text_column`"),
        (["sentence", "sentence1", "sentence2", "label"], {}, "name that of the text by `--text_column`"),
        (["text", "topic"], {}, "has the columns text, topic: name that of the label by `--label_column`"),
        (["text", "class", "category"], {}, "name that of the label by `--label_column`"),
        (
            ["text", "label"],
            {"text_column": "body"},
            "has no column 'body', only text, label: pass another --text_column",
        ),
        (
            ["text", "label"],
            {"label_column": "topic"},
            "has no column 'topic', only text, label: pass another --label_",
        ),
        (
            ["body", "label"],
            {"text_pair_column": "body"},
            "has no column 'text', only body, label: pass another --text_",
        ),
    ],
)
def test_columns_that_are_missing_or_ambiguous_are_refused(tmp_path, columns, fields, message):
    with pytest.raises(SecureRouterValueError, match=message):
        own(tmp_path, [{column: f"{column} {index}" for column in columns} for index in range(2)], **fields)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " ", "label": "a"}, "dev.jsonl, line 3 has no text in column 'text'"),
        ({"label": "a"}, "dev.jsonl, line 3 has no text in column 'text'"),
        ({"text": 7, "label": "a"}, "dev.jsonl, line 3 should have a text in column 'text', got 7"),
        ({"text": "c", "label": None}, "dev.jsonl, line 3 has no label in column 'label'"),
        ({"text": "c", "label": float("nan")}, "dev.jsonl, line 3 has no label in column 'label'"),
        ({"text": "c", "label": ""}, "dev.jsonl, line 3 has no label in column 'label'"),
        ({"text": "c"}, "dev.jsonl, line 3 has no label in column 'label'"),
        ({"text": "c", "label": ["a"]}, r"dev.jsonl, line 3 should have a string or a number in .*, got \['a'\]"),
        (
            {"text": "c", "label": "d"},
            "dev.jsonl, line 3 has the label 'd', which training has not: its labels are a, b",
        ),
    ],
)
def test_rows_that_are_not_whole_are_refused(tmp_path, row, message):
    good = labelled("a", "b")
    with pytest.raises(SecureRouterValueError, match=message):
        own(tmp_path, good, [*good, row])
    if "has the label" not in message:
        with pytest.raises(SecureRouterValueError, match=message.replace("dev", "train")):
            own(tmp_path, [*good, row])


@pytest.mark.parametrize("label", ["high", float("inf"), "2.5"])
def test_a_value_is_a_finite_number(tmp_path, label):
    with pytest.raises(
        SecureRouterValueError, match="dev.jsonl, line 2 should have a finite number in column 'label'"
    ):
        own(tmp_path, labelled(0.5, 1), labelled(0.5, label))


def test_one_class_and_no_rows_are_refused(tmp_path):
    with pytest.raises(
        SecureRouterValueError, match="has one label only in column 'label', 'a': a classifier needs two"
    ):
        own(tmp_path, labelled("a", "a"))
    with pytest.raises(SecureRouterValueError, match="dev.jsonl holds no row"):
        own(tmp_path, labelled("a", "b"), [])
    with pytest.raises(SecureRouterValueError, match="dev.jsonl has no column 'label', only text: both splits need"):
        own(tmp_path, labelled("a", "b"), [{"text": "a"}])


def test_only_some_rows_are_used_and_all_labels_are_known(tmp_path):
    data = own(tmp_path, labelled("a", "b", "c"), max_train_samples=2, max_eval_samples=1, dataset_name="my/data set")
    assert len(data.rows("train")) == 2 and len(data.rows("validation")) == 1
    assert data.task.labels == ("a", "b", "c") and data.task.name == "my-data-set"


def test_a_trained_pool_needs_validation_rows_only(tmp_path):
    args = DataArguments(validation_file=json_file(tmp_path / "dev.jsonl", labelled("b", "a")))
    data = OwnData(args, ["b", "a", "c"])
    assert [row["label"] for row in data.rows("validation")] == [0, 1] and data.task.name == "dev"
    args.train_file = json_file(tmp_path / "train.jsonl", labelled("c", "b"))  # read when it is asked for
    assert data.rows("train")[0]["label"] == 2
    args.validation_file = json_file(tmp_path / "ids.jsonl", labelled(1, 0, 2))
    assert [row["label"] for row in OwnData(args, ["b", "a", "c"]).rows("validation")] == [1, 0, 2]
    assert [row["label"] for row in OwnData(args, ["2", "1", "0"]).rows("validation")] == [1, 2, 0]
