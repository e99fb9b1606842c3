# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Files of rows: every kind is read, every row knows its place, and what cannot be read is named."""

import gzip

import pytest
from datasets import Dataset, DatasetDict

from hf_securerouter import SecureRouterValueError
from hf_securerouter.recipes.tables import file_stem, read_split, read_table


def written(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_keeps_texts_as_they_are(tmp_path, name):
    text = '\ufefftext,label\n"a, b\nc",NA\n\n"said ""no""", 1\n'
    table = read_table(written(tmp_path / name, text))
    assert table.rows == [{"text": "a, b\nc", "label": "NA"}, {"text": 'said "no"', "label": " 1"}]
    assert table.columns == ["text", "label"] and not table.typed
    assert [table.place(index) for index in range(2)] == [f"{name}, line 2", f"{name}, line 5"]
    assert file_stem(tmp_path / name) == "rows"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_json_lines_keep_their_types(tmp_path, name):
    table = read_table(written(tmp_path / name, '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0.5}\n'))
    assert table.rows == [{"text": "a", "label": 1}, {"text": "b", "label": 0.5}] and table.typed
    assert table.place(1) == f"{name}, line 3"


def test_parquet_is_read(tmp_path):
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}).to_parquet(tmp_path / "rows.parquet")
    table = read_table(tmp_path / "rows.parquet")
    assert table.rows == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert table.place(1) == "rows.parquet, row 2"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.txt", "a", "'rows.txt' should end in .csv, .jsonl, .json, .parquet"),
        ("rows.csv", "text,label\na,b,1\n", "rows.csv, line 2 has 3 fields where the header has 2: quote texts"),
        ("rows.csv", 'text,label\n"a" b,1\n', "rows.csv, line 2 is no CSV"),
        ("rows.csv", "text,text\na,1\n", "rows.csv, line 1 names a column twice: text, text"),
        ("rows.jsonl", '{"text": "a"}\n{"text": \n', "rows.jsonl, line 2 is no JSON"),
        ("rows.jsonl", '{"text": "a"}\n["b"]\n', r"rows.jsonl, line 2 should be a JSON object, got '\[\"b\"\]'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    with pytest.raises(SecureRouterValueError, match=message):
        read_table(written(tmp_path / name, text))


def test_another_encoding_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "rows.csv").write_bytes("text,label\nschön,1\n".encode("latin-1"))
    with pytest.raises(SecureRouterValueError, match="rows.csv cannot be read as UTF-8 CSV"):
        read_table(tmp_path / "rows.csv")
    with pytest.raises(SecureRouterValueError, match="There is no file '.*none.csv'"):
        read_table(tmp_path / "none.csv")


def test_a_saved_data_set_is_read_split_by_split(tmp_path):
    rows = {"text": ["a", "b"], "label": ["x", "y"]}
    DatasetDict(train=Dataset.from_dict(rows), test=Dataset.from_dict(rows)).save_to_disk(tmp_path / "mine")
    table = read_split(tmp_path / "mine", "train")
    assert table.rows == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert table.place(0) == "mine/train, row 1"
    with pytest.raises(SecureRouterValueError, match="`dataset_dir` 'mine' should have a split 'validation', got tra"):
        read_split(tmp_path / "mine", "validation")
    Dataset.from_dict(rows).save_to_disk(tmp_path / "single")
    with pytest.raises(SecureRouterValueError, match="'single' holds a single split: save a `DatasetDict`"):
        read_split(tmp_path / "single", "train")


def test_a_folder_holds_one_file_for_a_split(tmp_path):
    written(tmp_path / "train.csv", "text,label\na,1\n")
    assert read_split(tmp_path, "train").rows == [{"text": "a", "label": "1"}]
    with pytest.raises(SecureRouterValueError, match="should hold one file validation.csv, .* got none"):
        read_split(tmp_path, "validation")
    written(tmp_path / "train.jsonl", '{"text": "a"}\n')
    with pytest.raises(SecureRouterValueError, match="should hold one file train.csv, .* got train.csv, train.jsonl"):
        read_split(tmp_path, "train")
