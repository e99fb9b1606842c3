# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts of different cost out of what a user has: checkpoints, one cut by depth, a narrow one; and their answers."""

from __future__ import annotations

import copy
import zlib

import torch
from transformers import AutoModelForSequenceClassification, set_seed

from hf_securerouter import SecureRouterValueError
from hf_securerouter.families import resized
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.pool import cut_layers
from hf_securerouter.recipes.artifacts import save_once
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.distillation import distillation_rows
from hf_securerouter.recipes.prediction import device


EXACT = {"hidden_act": "exact", "softmax": "exact", "precision": "full"}


NARROW_LAYERS, NARROW_WIDTH = 2, 128


def load_classifier(name, task, args):
    """A checkpoint with a head for the task: its own, if it was fine-tuned for as many labels, or a new one, which is
    drawn for this task. A checkpoint of another task that was trained with the same seed has features along the very
    numbers which that seed draws: for this task too, they would be a head of that one."""
    set_seed((args.seed + zlib.crc32(task.name.encode())) % 2**32)
    return AutoModelForSequenceClassification.from_pretrained(
        name,
        id2label=task.id2label,
        label2id={label: index for index, label in task.id2label.items()},
        problem_type="regression" if task.regression else "single_label_classification",
        ignore_mismatched_sizes=True,
        cache_dir=args.cache_dir,
    )


def load_expert(folder, functions=EXACT):
    """A trained expert with the functions that it was trained with."""
    expert = AutoModelForSequenceClassification.from_pretrained(folder)
    use_functions(expert, **functions)
    return expert


def plan_pool(args):
    """The experts to make, from the cheapest on: ("narrow" | "cut" | "checkpoint", layers or name, tokens that it
    reads or None for all). The last one is the largest, which is fine-tuned first and teaches the others."""
    if args.experts and args.expert_layers:
        raise SecureRouterValueError(
            "`experts` names checkpoints and `expert_layers` cuts `model_name_or_path`: pass one of the two."
        )
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
    lengths = args.expert_max_lengths or [None] * len(members)
    longest = max(args.max_seq_length, args.profile_seq_length)
    if args.expert_max_lengths and (len(lengths) != len(members) or min(lengths) < 2 or lengths[-1] < longest):
        raise SecureRouterValueError(
            f"`expert_max_lengths` should hold a number of tokens for each of {len(members)} experts, the last one "
            f"{longest} or more, so that the largest expert reads whole inputs; got {lengths}."
        )
    return [(*member, length) for member, length in zip(members, lengths, strict=True)]


def largest_name(args):
    """The checkpoint of the largest expert, and the router's tokenizer."""
    return args.experts[-1] if args.experts else args.model_name_or_path


def narrow(model):
    """A new classifier of `model`'s family, 2 layers of width 128, whose embeddings are the principal components of
    `model`'s."""
    config = resized(model.config, NARROW_LAYERS, NARROW_WIDTH, heads=2)
    config.name_or_path = ""
    small = type(model)(config)
    words = model.get_input_embeddings().weight.detach().float()
    _, vectors = torch.linalg.eigh(words.T @ words)
    components = vectors[:, -NARROW_WIDTH:]
    own = dict(small.base_model.embeddings.named_parameters())
    with torch.no_grad():
        for name, table in model.base_model.embeddings.named_parameters():
            if table.dim() == 2 and table.shape[1] == words.shape[1] and own[name].shape[0] == table.shape[0]:
                own[name].copy_(table.float() @ components)
    return small


def train_pool(args, task, members, rows, folder, tokenizer, collate, fit):
    """Trains the experts on `rows` into `folder`/0, 1, ...; those that stand there already are left. With
    `args.self_distillation` the largest, once fine-tuned, is `folder`/teacher and learns again from its own answers,
    before the others learn from it.

    Returns:
        The folders.

    Reference:
        Furlanello et al., Born-Again Neural Networks, arXiv 1805.04770.
    """
    folders = [folder / str(index) for index in range(len(members))]
    last = len(members) - 1
    teacher = folder / "teacher" if args.self_distillation else folders[last]

    def make(path, length, model, data, epochs, learning_rate):
        def train():
            if epochs > 0:
                fit(f"{folder.name}-expert-{path.name}", model, shortened(data, length), epochs, learning_rate)

        save_once(path, model, tokenizer, train)

    def student(index, largest):
        set_seed(args.seed)
        kind, value, _ = members[index]
        if kind == "narrow":
            return narrow(largest)
        if kind == "checkpoint" and index != last:
            return load_classifier(value, task, args)
        small = cut_layers(largest, value) if kind == "cut" else copy.deepcopy(largest)
        small.get_input_embeddings().requires_grad_(False)  # half of the weights, and good as they are
        return small

    def teach(indices, teacher):
        if all(folders[index].exists() for index in indices):
            return
        largest = load_classifier(teacher, task, args).to(device())
        data = distillation_rows(rows, largest, collate, task, args, set(tokenizer.all_special_ids))
        largest.cpu()
        for index in indices:
            kind, _, length = members[index]
            rate = args.narrow_learning_rate if kind == "narrow" else args.learning_rate
            make(folders[index], length, student(index, largest).train(), data, args.distillation_epochs, rate)

    kind, value, length = members[last]
    largest = load_classifier(largest_name(args), task, args)
    if kind == "cut":
        largest = cut_layers(largest, value)
    make(teacher, length, largest.train(), rows, args.num_train_epochs, args.learning_rate)
    if args.self_distillation:
        teach([last], teacher)
    teach(range(last), folders[last])
    return folders
