# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts of different cost out of what a user has: checkpoints, one cut by depth, a narrow one; and their answers."""

import copy
import inspect
import os
import shutil
import zlib

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers import AutoModelForSequenceClassification, set_seed

from hf_securerouter import SecureRouterValueError
from hf_securerouter.losses import distillation_loss
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.pool import cut_layers
from hf_securerouter.recipes.data import perturb, shortened


EXACT = {"hidden_act": "exact", "softmax": "exact", "precision": "full"}
NARROW_LAYERS, NARROW_WIDTH = 2, 128


def device():
    """Where inference runs."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


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
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.hidden_size, config.num_attention_heads = NARROW_LAYERS, NARROW_WIDTH, 2
    config.name_or_path = ""
    for name, width in (("intermediate_size", 4), ("hidden_dim", 4), ("embedding_size", 1)):
        if hasattr(config, name):
            setattr(config, name, width * NARROW_WIDTH)
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


@torch.no_grad()
def predict(model, rows, collate, outputs=("logits",), batch_size=64):
    """Outputs of a model for all rows, in their order, on the CPU; one tensor for each name in `outputs`."""
    model.eval()
    device = next(model.parameters()).device
    accepted = inspect.signature(model.forward).parameters
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    found = {name: [] for name in outputs}
    for start in range(0, len(order), batch_size):
        batch = collate([rows[index] for index in order[start : start + batch_size]])
        batch = {name: value.to(device) for name, value in batch.items() if name in accepted and name != "labels"}
        output = model(**batch)
        for name in outputs:
            found[name].append(output[name].float().cpu())
    back = torch.tensor(order).argsort()
    return [torch.cat(found[name])[back] for name in outputs]


class Summary(nn.Module):
    """What a pool's router reads, as a model of its own for [`predict`]."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return {"summary": self.pool.router.summarize(**inputs)}


def expert_loss(model, batch):
    """What an expert trains on: its own task loss, or that and its teacher's answers where the batch has them; and the
    loss that it finds itself, if any."""
    batch = dict(batch)
    teacher = batch.pop("teacher_logits", None)
    labels = batch.pop("labels")
    output = model(**batch)
    config = getattr(model, "module", model).config
    loss = distillation_loss(output.logits, labels, teacher, config.problem_type)
    return (loss if output.loss is None else loss + output.loss), output


def taught(rows, teacher, collate, task, args, special_ids):
    """Rows with the teacher's answers, and perturbed copies that only the teacher has labelled."""
    copies = perturb(rows, args.perturbed_copies, special_ids, args.seed)
    logits = _answered_together(teacher, rows + copies, collate)
    for index in range(len(rows), len(logits)):
        answer = logits[index]
        copies[index - len(rows)]["labels"] = answer.item() if task.regression else answer.argmax().item()
    return [row | {"teacher_logits": own.tolist()} for row, own in zip(rows + copies, logits, strict=True)]


def _answered_together(model, rows, collate):
    """Logits for all rows in every process, each of which computes its part of them."""
    state = PartialState()
    first, step = state.process_index, state.num_processes
    parts = gather_object(predict(model, rows[first::step], collate))
    logits = torch.empty(len(rows), parts[0].shape[1])
    for index, part in enumerate(parts):
        logits[index::step] = part
    return logits


def save_once(folder, model, tokenizer, train):
    """Trains a model, and saves it as a whole, unless the folder stands there already."""
    state = PartialState()
    missing = not folder.exists()
    state.wait_for_everyone()
    if missing:
        train()
        if state.is_main_process:
            staging = folder.with_name(f".{folder.name}")
            shutil.rmtree(staging, ignore_errors=True)
            tokenizer.save_pretrained(staging)
            model.save_pretrained(staging)
            os.rename(staging, folder)
        state.wait_for_everyone()


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
        data = taught(rows, largest, collate, task, args, set(tokenizer.all_special_ids))
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
