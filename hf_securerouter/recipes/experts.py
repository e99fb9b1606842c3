# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts of different cost, made of what a user has: several checkpoints, one that is cut by depth, a narrow one."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_securerouter.checkpoint_files import not_got
from hf_securerouter.errors import FileError, SecureRouterValueError
from hf_securerouter.families import encoder_config, resized, usable_positions
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.pool import cut_layers
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.artifacts import announce, save_once
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.distillation import distillation_rows
from hf_securerouter.recipes.fitting import Collate, Row, Train
from hf_securerouter.recipes.prediction import to_device
from hf_securerouter.recipes.tasks import Task
from hf_securerouter.recipes.vocabulary import read_tokens_of


EXACT = {"hidden_act": "exact", "softmax": "exact", "precision": "full"}

NARROW_LAYERS, NARROW_WIDTH = 2, 128


class Member(NamedTuple):
    """
    An expert to make.

    Args:
        kind (`str`): `"checkpoint"`, `"cut"` or `"narrow"`.
        value (`str` or `int`, *optional*): The checkpoint's name or folder, or the layers that are kept.
        length (`int`, *optional*): Tokens of an input that it reads; None for all.
    """

    kind: str
    value: str | int | None
    length: int | None


def load_classifier(name: str | Path, task: Task, seed: int, cache_dir: str | None = None) -> PreTrainedModel:
    """
    A checkpoint with a head for a task: its own head, if that has as many labels, or else a new one.

    A new head is drawn with a seed of the task's own. A checkpoint that was trained on another task with the same seed
    would otherwise get the very head that it began with there, and its features are aligned with that one.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        task ([`Task`]): The task.
        seed (`int`): Of the run.
        cache_dir (`str`, *optional*): Where downloads are kept.
    """
    set_seed((seed + zlib.crc32(task.name.encode())) % 2**32)
    return AutoModelForSequenceClassification.from_pretrained(
        name,
        id2label=task.id2label,
        label2id={label: index for index, label in task.id2label.items()},
        problem_type=task.problem_type,
        ignore_mismatched_sizes=True,
        cache_dir=cache_dir,
    )


@refuses_unknown
def load_expert(folder: str | Path, functions: Mapping[str, str] = EXACT) -> PreTrainedModel:
    """
    A trained expert.

    Args:
        folder (`str` or `Path`): Where it was saved.
        functions (`Mapping`): The functions that it was trained with; see
            [`~hf_securerouter.mpc_friendly.use_functions`].
    """
    expert = AutoModelForSequenceClassification.from_pretrained(folder)
    use_functions(expert, **functions)
    return expert


@refuses_unknown
def plan_pool(args: RunArguments) -> list[Member]:
    """
    The experts to make, from the cheapest on. The last one is the largest: it is fine-tuned first, and the others
    learn from it.

    Raises:
        `SecureRouterValueError`: Both `experts` and `expert_layers` are given, there would be fewer than two experts,
            or `expert_max_lengths` does not fit them.
    """
    if args.experts and args.expert_layers:
        raise SecureRouterValueError(
            "`experts` names checkpoints and `expert_layers` cuts `model_name_or_path`: pass one of the two."
        )
    members: list[tuple[str, str | int | None]]
    if args.experts:
        members = [("checkpoint", name) for name in args.experts]
    elif args.expert_layers:
        members = [("cut", layers) for layers in sorted(args.expert_layers)]
    else:
        members = [("checkpoint", args.model_name_or_path)]
    if args.narrow_expert:
        members.insert(0, ("narrow", None))
    if len(members) < 2:
        raise SecureRouterValueError(
            "A pool needs two experts or more: pass `--expert_layers 2 4 6`, `--experts ...` or `--narrow_expert`."
        )
    lengths: Sequence[int | None] = args.expert_max_lengths or [None] * len(members)
    given, longest = args.expert_max_lengths, args.max_seq_length
    if given and (len(given) != len(members) or min(given) < 2 or given[-1] < longest):
        raise SecureRouterValueError(
            f"`expert_max_lengths` should hold a number of tokens for each of {len(members)} experts, the last one "
            f"{longest} or more, so that the largest expert reads whole inputs; got {given}."
        )
    return [Member(*member, length) for member, length in zip(members, lengths, strict=True)]


def largest_name(args: RunArguments) -> str:
    """
    The checkpoint of the largest expert, whose tokenizer serves the whole pool.

    Raises:
        `SecureRouterValueError`: No checkpoint is named.
    """
    name = args.experts[-1] if args.experts else args.model_name_or_path
    if name is None:
        raise SecureRouterValueError("`model_name_or_path` should name the largest expert's checkpoint, got nothing.")
    return name


@refuses_unknown
def check_checkpoints(args: RunArguments) -> None:
    """
    Refuses checkpoints that cannot be got, before anything is trained.

    Raises:
        `FileError`: A folder holds no config.json.
        `SecureRouterError`: The Hub was not reached; a `SecureRouterValueError` if a name may be wrong.
    """
    argument = "experts" if args.experts else "model_name_or_path"
    named = [(argument, name, args.cache_dir) for name in args.experts or [largest_name(args)]]
    if args.router_name_or_path is not None:
        named.append(("router_name_or_path", args.router_name_or_path, None))
    for argument, name, cache_dir in named:
        if Path(name).is_dir() and not Path(name, "config.json").exists():
            where = str(Path(name, "config.json"))
            raise FileError(f"`{argument}` {name!r} has no config.json", where, "pass the folder of a saved model")
        try:
            AutoConfig.from_pretrained(name, cache_dir=cache_dir)
        except OSError as error:
            raise not_got(name, "config.json", error, argument) from error


@refuses_unknown
def check_length(args: RunArguments) -> None:
    """
    Refuses inputs longer than the largest expert reads, before anything is trained.

    Raises:
        `SecureRouterValueError`: `max_seq_length` is more than its positions.
    """
    positions = usable_positions(AutoConfig.from_pretrained(largest_name(args), cache_dir=args.cache_dir))
    if positions is not None and args.max_seq_length > positions:
        raise SecureRouterValueError(
            f"`max_seq_length` is {args.max_seq_length}, and {largest_name(args)!r} has {positions} positions: pass "
            f"`--max_seq_length {positions}` or less."
        )


@refuses_unknown
def check_narrow(args: RunArguments) -> None:
    """
    Refuses a narrow expert that [`narrow`] cannot make of the largest one, before anything is trained.

    Raises:
        `SecureRouterValueError`: The largest expert's embeddings are narrower than 128, or not where those of BERT's
            cousins are.
    """
    if not args.narrow_expert:
        return
    name = largest_name(args)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.from_pretrained(name, cache_dir=args.cache_dir)
        )
    width = cast(torch.Tensor, model.get_input_embeddings().weight).shape[1]
    if width < NARROW_WIDTH:
        raise SecureRouterValueError(
            f"`narrow_expert` adds an expert of width {NARROW_WIDTH}, and the embeddings of {name!r} have the width "
            f"{width}: leave it out, and name the depths of smaller experts by `--expert_layers`, or take a wider "
            "checkpoint."
        )
    if not hasattr(model.base_model, "embeddings"):
        raise SecureRouterValueError(
            f"`narrow_expert` takes over embeddings, which a checkpoint of {model.config.model_type!r} keeps in "
            "another place: leave it out, and name the depths of smaller experts by `--expert_layers`."
        )


def narrow(model: PreTrainedModel) -> PreTrainedModel:
    """
    A new classifier of a model's family, with 2 layers of width 128. Its embeddings are the principal components of
    the model's.

    Args:
        model (`PreTrainedModel`): A classifier whose embeddings have the width 128 or more; see [`check_narrow`].
    """
    config = resized(model.config, NARROW_LAYERS, NARROW_WIDTH, heads=2)
    config.name_or_path = ""
    small = type(model)(config)
    tables: Any = model.base_model.embeddings
    own = dict(cast(Any, small.base_model.embeddings).named_parameters())
    words = cast(torch.Tensor, model.get_input_embeddings().weight).detach().float()
    _, vectors = torch.linalg.eigh(words.T @ words)
    components = vectors[:, -NARROW_WIDTH:]
    with torch.no_grad():
        for name, table in tables.named_parameters():
            if table.dim() == 2 and table.shape[1] == words.shape[1] and own[name].shape[0] == table.shape[0]:
                own[name].copy_(table.float() @ components)
    return small


@refuses_unknown
def reinitialize(model: PreTrainedModel, layers: int, seed: int) -> PreTrainedModel:
    """
    A copy of a classifier whose last layers have random weights, as its family draws them. The last layers of a
    checkpoint that was made for another end, such as sentence embeddings, are a poor start for a task that asks for
    something else, such as grammar.

    Args:
        model (`PreTrainedModel`): The classifier.
        layers (`int`): How many, from 1 to all but one.
        seed (`int`): Of the weights.

    Raises:
        `SecureRouterValueError`: The classifier has too few layers, they share their weights, or its family cannot be
            cut.

    Reference:
        Zhang et al., Revisiting Few-sample BERT Fine-tuning, arXiv 2006.05987.
    """
    kept = encoder_config(model.config).num_hidden_layers - layers
    if layers < 1 or kept < 1:
        raise SecureRouterValueError(
            f"`reinitialized_layers` should be from 1 to {kept + layers - 1}, so that the largest expert keeps a "
            f"layer of its checkpoint, got {layers}."
        )
    weights = cut_layers(model, kept).state_dict()
    set_seed(seed)
    fresh = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    missing, _ = fresh.load_state_dict(weights, strict=False)
    if not missing:
        raise SecureRouterValueError(
            f"`reinitialized_layers` is {layers}, and the layers of {type(model).__name__} share their weights: leave "
            "it out."
        )
    return fresh


@refuses_unknown
def train_pool(
    args: RunArguments,
    task: Task,
    members: Sequence[Member],
    rows: Sequence[Row],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    collate: Collate,
    train: Train,
) -> list[Path]:
    """
    Trains the experts into `folder`/0, 1, ...; one whose folder is there already is left as it is. With
    `self_distillation` the fine-tuned largest expert is `folder`/teacher, and learns once more from its own answers
    before the others learn from it.

    Args:
        args ([`RunArguments`]): Epochs, learning rates, copies and seed.
        task ([`Task`]): The task.
        members (sequence of [`Member`]): The experts, of [`plan_pool`].
        rows (sequence of `dict`): Tokenized training rows.
        folder (`Path`): Where they are saved.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of all experts.
        collate (callable): Rows as one padded batch.
        train (callable): Trains a model.

    Returns:
        list of `Path`: The folder of each expert.

    Reference:
        Furlanello et al., Born-Again Neural Networks, arXiv 1805.04770.
    """
    folders = [folder / str(index) for index in range(len(members))]
    last = len(members) - 1
    teacher = folder / "teacher" if args.self_distillation else folders[last]

    def make(
        path: Path,
        length: int | None,
        model: PreTrainedModel,
        data: Sequence[Row],
        epochs: float,
        learning_rate: float,
    ) -> None:
        def run() -> None:
            if epochs > 0:
                read = shortened(data, length, model.config)
                train(f"{folder.name}-expert-{path.name}", model, read, epochs, learning_rate)

        save_once(path, model, tokenizer, run)

    def student(index: int, largest: PreTrainedModel) -> PreTrainedModel:
        set_seed(args.seed)
        kind, value, _ = members[index]
        if kind == "narrow":
            return narrow(largest)
        if kind == "checkpoint" and index != last:
            model = load_classifier(str(value), task, args.seed, args.cache_dir)
            read_tokens_of(model, str(value), tokenizer, args.cache_dir)
            return model
        small = cut_layers(largest, int(value or 0)) if kind == "cut" else copy.deepcopy(largest)
        # Half of the weights, which come from the fine-tuned expert and need no further training.
        small.get_input_embeddings().requires_grad_(False)
        return small

    def distil(indices: Sequence[int], teacher: Path) -> None:
        if all(folders[index].exists() for index in indices):
            return
        largest = to_device(load_classifier(teacher, task, args.seed, args.cache_dir))
        announce(f"Asking the teacher of the experts for its answers to {len(rows)} rows and perturbed copies ...")
        copies, special_ids = args.perturbed_copies, set(tokenizer.all_special_ids)
        own_rate = args.learning_rate if args.distillation_learning_rate is None else args.distillation_learning_rate
        data = distillation_rows(rows, largest, collate, task, copies, special_ids, args.seed, bool(args.bf16))
        largest.cpu()
        for index in indices:
            kind, _, length = members[index]
            rate = args.narrow_learning_rate if kind == "narrow" else own_rate
            make(folders[index], length, student(index, largest).train(), data, args.distillation_epochs, rate)

    kind, value, length = members[last]
    largest = load_classifier(largest_name(args), task, args.seed, args.cache_dir)
    if kind == "cut":
        largest = cut_layers(largest, int(value or 0))
    if args.reinitialized_layers is not None:
        largest = reinitialize(largest, args.reinitialized_layers, args.seed)
    make(teacher, length, largest.train(), rows, args.num_train_epochs, args.learning_rate)
    if args.self_distillation:
        distil([last], teacher)
    distil(range(last), folders[last])
    return folders
