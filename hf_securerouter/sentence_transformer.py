# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Reads a classifier from a folder of sentence-transformers or SetFit. Nothing is unpickled.

Such a folder lists its modules in `modules.json`: a transformer, a pooling, and perhaps a dense layer and a division
by the row's length. SetFit saves the head on top as a pickle, which can run any code when it is read, and is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file, find_adapter_config_file

from .configuration_pooled import PooledEncoderConfig
from .errors import SecureRouterValueError
from .files import read_json
from .known_arguments import refuses_unknown
from .linear_head import LinearValues, linear_values, read_head, read_tensors
from .loading import Source
from .modeling_pooled import PooledEncoderForSequenceClassification


MODULES, SETFIT_CONFIG = "modules.json", "config_setfit.json"
HEAD, PICKLED_HEAD = "model_head.safetensors", "model_head.pkl"

_ENCODER_SETTINGS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_DENSE_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


def is_sentence_classifier(source: Source) -> bool:
    """Whether a folder, or an id on the Hub, holds sentence-transformers' modules and a head beside them."""
    try:
        return _file(source, MODULES) is not None and any(_file(source, head) for head in (HEAD, PICKLED_HEAD))
    except OSError:  # no folder and no id, or the Hub is out of reach: whoever loads the checkpoint says so
        return False


@refuses_unknown
def classifier_from_sentence_transformer(
    folder: str | os.PathLike, head: Any = None, labels: Sequence[str] | None = None
) -> tuple[PooledEncoderForSequenceClassification, PreTrainedTokenizerBase]:
    """Make a classifier of a folder that sentence-transformers or SetFit saved.

    Args:
        folder (`str` or `os.PathLike`): The folder, or its id on the Hub: a transformer, mean or first-token pooling,
            at most one dense layer, and perhaps a division by the row's length.
        head (`object`, *optional*): The classification head. A safetensors file with `weight` of shape (C, D) and
            `bias` of shape (C,); a fitted linear classifier of scikit-learn, such as `LogisticRegression`; or a linear
            module of PyTorch, such as SetFit's differentiable head. By default `model_head.safetensors` in the folder.
            A weight of one row is that of a binary classifier, whose second label it favours.
        labels (`list[str]`, *optional*): A name for each row of the head; by default the names in the folder's
            `config_setfit.json`, or else the classes of a scikit-learn classifier.

    Returns:
        `tuple[PooledEncoderForSequenceClassification, PreTrainedTokenizerBase]`: The classifier in float32, in
        evaluation mode, and its tokenizer, which truncates as sentence-transformers does. Both have a
        `save_pretrained`; what they save is an expert of a pool like any other classifier's checkpoint.

    Raises:
        `SecureRouterValueError`: The folder has other modules, or settings that would change its answers; its head is
            a pickle, is missing, or does not fit.

    Example:
        ```python
        model, tokenizer = classifier_from_sentence_transformer("my-setfit", head=setfit_model.model_head)
        model.save_pretrained("my-classifier")
        tokenizer.save_pretrained("my-classifier")
        ```
    """
    return read_sentence_classifier(Source(os.fspath(folder)), head, labels)


def read_sentence_classifier(
    source: Source, head: Any = None, labels: Sequence[str] | None = None
) -> tuple[PooledEncoderForSequenceClassification, PreTrainedTokenizerBase]:
    """What [`classifier_from_sentence_transformer`] gives, of a folder or an id with loader arguments."""
    name = source.name
    body = _read_body(source)
    settings = _json(source, SETFIT_CONFIG) or {}
    linear = _head(source, head)
    rows, width = linear.weight.shape
    names = _labels(name, linear, labels, settings.get("labels"))
    encoder: Any = _load(source, body.path, AutoModel)
    encoder.config.name_or_path = ""  # a saved config must not reveal a path of this machine
    config = PooledEncoderConfig(
        text_config=encoder.config,
        pooling=body.pooling,
        dense_size=None if body.dense is None else body.dense.weight.shape[0],
        dense_act=body.dense_act,
        normalize=body.normalize or bool(settings.get("normalize_embeddings")),
        problem_type="single_label_classification",
        architectures=[PooledEncoderForSequenceClassification.__name__],
    )
    config.num_labels = rows
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {label: index for index, label in enumerate(names)}
    model = PooledEncoderForSequenceClassification(config, body=encoder)
    if width != model.classifier.in_features:
        raise SecureRouterValueError(
            f"`head` reads rows of {width} numbers, and {name!r} makes rows of {model.classifier.in_features}: pass "
            "the head that was fitted on this encoder's embeddings."
        )
    with torch.no_grad():
        for module, values in ((model.classifier, linear), (model.dense, body.dense)):
            if module is not None and values is not None:
                module.weight.copy_(values.weight)
                module.bias.copy_(values.bias)
    return model.eval(), _read_tokenizer(source, body.path)


@dataclass(frozen=True)
class _Body:
    """What `modules.json` describes; `path` is the subfolder of the transformer."""

    path: str
    pooling: Any
    dense: LinearValues | None
    dense_act: Any
    normalize: bool


# Files.


def _file(source: Source, file: str) -> str | None:
    return cached_file(source.name, file, _raise_exceptions_for_missing_entries=False, **source.loading.files)


def _json(source: Source, file: str, kind: type = dict) -> Any:
    path = _file(source, file)
    return None if path is None else read_json(Path(path), kind)


def _load(source: Source, path: str, auto_class: Any) -> Any:
    name, loading = source.name, source.loading
    subfolder = "/".join(part for part in (loading.files.get("subfolder"), path) if part)
    where = {"subfolder": subfolder} if subfolder else {}
    if auto_class is AutoTokenizer:
        return auto_class.from_pretrained(name, **{**loading.config, **where})
    arguments = {**loading.weights, **where}
    model, info = auto_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **arguments)
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise SecureRouterValueError(
            f"The encoder of {name!r} lacks {len(missing)} tensors, first {missing[0]}: download or save it again."
        )
    return model


# The encoder and its modules.


def _read_body(source: Source) -> _Body:
    name = source.name
    modules = _json(source, MODULES, list)
    if modules is None:
        raise SecureRouterValueError(
            f"`folder` {name!r} has no {MODULES}: pass a folder that sentence-transformers or SetFit saved."
        )
    if not all(isinstance(module, dict) and {"type", "path"} <= module.keys() for module in modules):
        raise SecureRouterValueError(
            f"`folder` {name!r} lists modules without a type and a path in {MODULES}: save it again."
        )
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    paths = [str(module["path"]) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in (
        [],
        ["Dense"],
        ["Normalize"],
        ["Dense", "Normalize"],
    ):
        raise SecureRouterValueError(
            f"`folder` {name!r} has the modules {', '.join(kinds)}: only Transformer, Pooling, and then Dense, "
            "Normalize or both in this order can be read."
        )
    if any(path.startswith(".") or "/" in path or "\\" in path for path in paths):
        raise SecureRouterValueError(f"`folder` {name!r} names modules outside of it, {paths}: save it again.")
    if find_adapter_config_file(name, **source.loading.files) is not None:
        raise SecureRouterValueError(
            f"`folder` {name!r} holds a PEFT adapter: merge it (`merge_and_unload()`), save the result, and pass that."
        )
    prompt = (_json(source, "config_sentence_transformers.json") or {}).get("default_prompt_name")
    if prompt is not None:
        raise SecureRouterValueError(
            f"`folder` {name!r} puts the prompt {prompt!r} before every text, which a classifier here does not: set "
            "`default_prompt_name` to None, fit the head again, and save both."
        )
    pooling = _pooling(name, _json(source, f"{paths[1]}/config.json") or {})
    dense, dense_act = (None, "identity") if "Dense" not in kinds else _read_dense(source, paths[2])
    return _Body(paths[0], pooling, dense, dense_act, "Normalize" in kinds)


def _pooling(name: str, config: Mapping[str, Any]) -> str:
    """`mean` or `first`, from one name or from a flag for each kind of pooling."""
    given = config.get("pooling_mode")
    if given is None:
        kinds = [
            key.removeprefix("pooling_mode_") for key, value in config.items() if "pooling_mode_" in key and value
        ]
    else:
        kinds = [given] if isinstance(given, str) else list(given)
    known = {"mean": "mean", "mean_tokens": "mean", "cls": "first", "cls_token": "first"}
    if len(kinds) != 1 or kinds[0] not in known:
        raise SecureRouterValueError(
            f"`folder` {name!r} has the pooling {', '.join(map(str, kinds)) or 'of no kind'}: only mean or cls "
            "alone can be read; train it with one of them."
        )
    return known[kinds[0]]


def _read_dense(source: Source, path: str) -> tuple[LinearValues, str]:
    name = source.name
    config = _json(source, f"{path}/config.json") or {}
    kind = str(config.get("activation_function")).rpartition(".")[2]
    if kind not in _DENSE_ACTIVATIONS or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise SecureRouterValueError(
            f"`folder` {name!r} has a Dense module with the activation {kind!r} on "
            f"{config.get('module_input_name', 'sentence_embedding')}: only {', '.join(_DENSE_ACTIVATIONS)} on the "
            "pooled row can be read."
        )
    file = _file(source, f"{path}/model.safetensors")
    if file is None:
        raise SecureRouterValueError(
            f"`folder` {name!r} has no {path}/model.safetensors, and a pickled pytorch_model.bin is not read: save it "
            "again with sentence-transformers 2.3 or later."
        )
    where = f"`folder` {name!r}, in {path}/model.safetensors,"
    return linear_values(read_tensors(file), where), _DENSE_ACTIVATIONS[kind]


def _read_tokenizer(source: Source, path: str) -> PreTrainedTokenizerBase:
    name = source.name
    tokenizer = _load(source, path, AutoTokenizer)
    prefix = f"{path}/" if path else ""
    found = (_json(source, f"{prefix}sentence_{kind}_config.json") for kind in _ENCODER_SETTINGS)
    settings: dict[str, Any] = next((one for one in found if one is not None), {})
    if settings.get("do_lower_case") and tokenizer.tokenize("A Film") != tokenizer.tokenize("a film"):
        raise SecureRouterValueError(
            f"`folder` {name!r} has `do_lower_case`, and its tokenizer tells upper from lower case: set it to false, "
            "fit the head again, and save both."
        )
    longest = settings.get("max_seq_length")
    if longest is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, int(longest))
    return tokenizer


# The head.


def _head(source: Source, head: Any) -> LinearValues:
    name = source.name
    if head is not None:
        return read_head(head)
    file = _file(source, HEAD)
    if file is None and _file(source, PICKLED_HEAD) is not None:
        raise SecureRouterValueError(
            f"`folder` {name!r} has its head in {PICKLED_HEAD}, a pickle, which can run any code when it is read, and "
            "is not read. Load the model with setfit where you trust it, and pass `head=model.model_head` to "
            "`classifier_from_sentence_transformer`; or save that head's `coef_` as `weight` and its `intercept_` as "
            f"`bias` in {HEAD}."
        )
    if file is None:
        raise SecureRouterValueError(
            f"`folder` {name!r} has no {HEAD}: pass `head`, a fitted classifier or a safetensors file."
        )
    return read_head(file)


def _labels(
    name: str, linear: LinearValues, given: Sequence[str] | None, of_folder: Sequence[str] | None
) -> list[str] | None:
    """The name of each row: as given, of SetFit's config by the number of the class, or the classes themselves."""
    count, classes = len(linear.weight), linear.classes
    names = None if given is None else list(given)
    if names is None and classes is not None and not all(isinstance(one, int) for one in classes):
        names = [str(one) for one in classes]
    if names is None and of_folder is not None:
        numbers = range(count) if classes is None else classes
        if max(numbers) < len(of_folder) and min(numbers) >= 0:
            names = [str(of_folder[number]) for number in numbers]
        else:
            names = list(of_folder)
    if names is None and classes is not None and classes != tuple(range(count)):
        names = [str(one) for one in classes]
    if names is not None and (len(names) != count or len(set(names)) != count):
        raise SecureRouterValueError(
            f"`labels` should name each of the head's {count} classes once, got {names} for {name!r}: pass one name "
            "for each row of the head."
        )
    return names
