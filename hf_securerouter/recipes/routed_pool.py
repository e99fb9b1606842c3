# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
From a GLUE task to a routed pool with its report: the steps that both scripts take.

1. The experts: the largest is fine-tuned, the others are distilled from it.
2. Their answers to training data that they have not seen, computed once.
3. The cost of each expert and of the router, measured under encryption.
4. A router for each objective, on those answers.
5. Lambda and quotas for the budget, on a seeded tenth of the training data that the router has not seen either.
6. What a batch with these quotas costs under encryption, against the largest expert alone.
7. The validation split, once: the report, the figure, the card.

Each step leaves a file in the output folder and is skipped where that file stands, so that a run that was stopped goes
on where it was.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub import HfApi
from transformers import AutoTokenizer, DataCollatorWithPadding, set_seed
from transformers.utils import logging

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.files import write_json
from hf_securerouter.losses import expert_utilities, fit_temperature
from hf_securerouter.metrics import SCORES, glue_metric, glue_score
from hf_securerouter.recipes.artifacts import once, once_tensors
from hf_securerouter.recipes.card import card_data
from hf_securerouter.recipes.closed_form_router import fit_closed_form_router
from hf_securerouter.recipes.costs import measure_costs, measure_routed, shares_encoder
from hf_securerouter.recipes.data import load_split, shortened, split_rows, tokenize
from hf_securerouter.recipes.encrypted_check import compare_with_clear, encrypted_answers
from hf_securerouter.recipes.experts import EXACT, largest_name, load_expert, plan_pool, train_pool
from hf_securerouter.recipes.prediction import Summary, device, predict
from hf_securerouter.recipes.results import publish
from hf_securerouter.recipes.tasks import TASKS
from hf_securerouter.reports import PoolAnswers, draw_report, make_report
from hf_securerouter.routing import choose_expert, lambda_for_budget, quotas_for_budget, serve_by_quota


logger = logging.get_logger(__name__)


ROUTER_SHARE, TUNING_SHARE = 0.2, 0.1  # of the training data, which the experts do not see


ROUTER_ROWS = 2000  # at most, of a large task: experts learn from the rest


OBJECTIVES = ("gumbel", "utility")


UPLOADED = ["config.json", "*.safetensors.index.json", "model*.safetensors", "tokenizer*", "README.md"]


UPLOADED += ["curve.png", "report.json"]


class RoutedPoolRun:
    """One task, one seed.

    Args:
        args (`RunArguments`): What to do.
        fit (callable): Of the run, a name, a model, rows, epochs and a learning rate: trains the parameters that
            require it.
        command (`str`): For the card.
    """

    def __init__(self, args, fit, command):
        self.args, self.command = args, command
        self.train = partial(fit, self)
        self.task = TASKS[args.task_name]
        self.members = plan_pool(args)
        self.functions = {}  # by folder, of the experts that were trained with others than exact ones
        self.folder = Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(args.fingerprint()))
        found = once(self.folder / "arguments.json", lambda: wanted)
        different = sorted(name for name in wanted if found.get(name) != wanted[name])
        if different:
            raise SecureRouterValueError(
                f"`output_dir` {str(self.folder)!r} holds a run with another `{'`, `'.join(different)}`: name another "
                "folder, or remove that one."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(largest_name(args), cache_dir=args.cache_dir)
        self.collate = DataCollatorWithPadding(self.tokenizer)

    def __call__(self):
        """All steps; returns the report."""
        rows = load_split(self.args, "train")
        folders, answers, parts = self.experts_and_answers(rows)
        costs = self.costs(folders)
        models, tuning = self.routers(folders, answers, parts, costs)
        model = models[self.args.router_objective]
        if costs["source"] == "measured":
            once(
                self.folder / "routed.json",
                lambda: measure_routed(self.args, self.largest(folders), model.cpu(), model.config.quotas),
            )
        report = once(self.folder / "report.json", lambda: self.report(models, folders, costs, tuning))
        if PartialState().is_main_process:
            self.save(model, report)
        return report

    def costs(self, folders):
        """The experts' costs, measured or given; see [`measure_costs`]."""
        make_pool = partial(self.pool, folders, objective="utility")
        return once(
            self.folder / "costs.json",
            lambda: measure_costs(self.args, self.experts(folders), self.lengths, self.largest(folders), make_pool),
        )

    @property
    def lengths(self):
        """Tokens that each expert reads; None for all."""
        return [length for _, _, length in self.members]

    @property
    def kind(self):
        """The task's problem type."""
        return "regression" if self.task.regression else "single_label_classification"

    def rows(self, raw):
        return tokenize(self.task, raw, self.tokenizer, self.args.max_seq_length)

    def experts_and_answers(self, raw):
        """The final experts' folders, rows with answers of experts that have not seen them, and the router's and the
        tuning part of these rows."""
        args, rows = self.args, self.rows(raw)
        if args.cross_fit_folds >= 2:
            folds = split_rows(self.task, raw, [1 / args.cross_fit_folds] * (args.cross_fit_folds - 1), args.seed)
            logits = torch.empty(len(rows), len(self.members), len(self.task.id2label))
            for number, fold in enumerate(folds):
                others = sorted(set(range(len(rows))) - set(fold))
                path = self.folder / f"answers-{number}.safetensors"
                unseen = [rows[index] for index in fold]
                logits[fold] = once_tensors(
                    path, lambda n=number, o=others, u=unseen: self.answers(self.trained(f"fold-{n}", rows, o), u)
                )["logits"]
            router_part, tuning_part = split_rows(self.task, raw, [TUNING_SHARE], args.seed + 1)
            folders = self.trained("final", rows, range(len(rows)))
        else:
            shares = [min(ROUTER_SHARE, ROUTER_ROWS / len(raw)), TUNING_SHARE]
            own, router_part, tuning_part = split_rows(self.task, raw, shares, args.seed)
            folders = self.final_experts(rows, own, router_part + tuning_part)
            part = router_part + tuning_part
            logits = torch.zeros(len(rows), len(self.members), len(self.task.id2label))
            logits[part] = once_tensors(
                self.folder / "answers.safetensors", lambda: self.answers(folders, [rows[index] for index in part])
            )["logits"]
        for expert in range(len(self.members)):  # the router learns from what they believe, too
            own, labels = logits[router_part, expert], torch.tensor([rows[index]["labels"] for index in router_part])
            logits[:, expert] /= fit_temperature(own, labels, self.kind)
        answered = [row | {"expert_logits": own.tolist()} for row, own in zip(rows, logits, strict=True)]
        return folders, answered, (router_part, tuning_part)

    def trained(self, name, rows, part):
        """Folders of experts that are trained on a part of the rows."""
        return train_pool(
            self.args,
            self.task,
            self.members,
            [rows[index] for index in part],
            self.folder / "experts" / name,
            self.tokenizer,
            self.collate,
            self.train,
        )

    def final_experts(self, rows, own, held_out):
        """Folders of the pool's experts, which have seen the rows `own` and not the rows `held_out`."""
        return self.trained("final", rows, own)

    def experts(self, folders):
        """The trained experts, each with its functions."""
        return [load_expert(folder, self.functions.get(folder, EXACT)) for folder in folders]

    def largest(self, folders):
        """The expert that the routed pool is compared with."""
        return self.experts(folders[-1:])[0]

    def largest_answers(self, logits, rows):
        """Its logits (N, C), where those of the pool's experts are (N, K, C)."""
        return logits[:, -1]

    def answers(self, folders, rows):
        """Logits (N, K, C) of the experts."""
        found = [
            predict(expert.to(device()), shortened(rows, length), self.collate)[0]
            for expert, length in zip(self.experts(folders), self.lengths, strict=True)
        ]
        return {"logits": torch.stack(found, dim=1)}

    def pool(self, folders, costs, objective, lengths=None):
        """A pool with a fresh router; `lengths` are those of some of the experts, if it has not all of them."""
        args, seconds = self.args, costs["routed_seconds"]
        set_seed(args.seed)
        router = args.router_name_or_path
        if router is None and not shares_encoder(args):
            router = folders[int(np.argmin(seconds))]
        return SecureRouterForSequenceClassification.from_expert_pretrained(
            router=router,
            experts=folders,
            id2label=self.task.id2label,
            problem_type=self.kind,
            router_objective=objective,
            expert_costs=seconds,
            expert_costs_source=costs["source"],
            expert_mpc=[self.functions.get(folder, EXACT) for folder in folders],
            expert_max_lengths=(lengths or self.lengths) if args.expert_max_lengths else None,
            alpha=args.alpha,
            beta=0.13 / seconds[-1] if args.beta is None else args.beta,
            temperature=args.temperature,
            min_temperature=args.min_temperature,
            max_length=args.max_seq_length,
        )

    def routers(self, folders, answered, parts, costs):
        """A trained pool for each objective, with lambda and quotas for the budget."""
        training, tenth = ([answered[index] for index in part] for part in parts)
        models, tuning = {}, {}
        for objective in OBJECTIVES:
            path = self.folder / f"router-{objective}.safetensors"
            model = self.pool(folders, costs, objective)
            weights = once_tensors(path, lambda model=model: self.train_router(model, training))
            model.router.load_state_dict({name: value.to(model.dtype) for name, value in weights.items()})
            models[objective] = model.eval()
            tuning[objective] = once(
                self.folder / f"tuning-{objective}.json", lambda model=model: self.tune(model, tenth, costs)
            )
            model.config.routing_lambda = tuning[objective]["routing_lambda"]
            model.config.quotas = tuning[objective]["quotas"]
        return models, tuning

    def summarized(self, model, rows):
        """Rows with what a shared encoder makes of them: it stays as its expert needs it, and reads every row once."""
        if model.config.router_shares_expert is None:
            return rows
        (summaries,) = predict(Summary(model).to(device()), rows, self.collate, ("summary",))
        return [row | {"router_summary": own.tolist()} for row, own in zip(rows, summaries, strict=True)]

    def train_router(self, model, rows):
        """The router's weights, trained on the experts' answers."""
        model.experts.requires_grad_(False)
        rows, objective = self.summarized(model, rows), model.config.router_objective
        if objective == "utility" and model.config.router_shares_expert is not None:
            fit_closed_form_router(
                model.cpu(), rows, glue_score(self.task.name)
            )  # it read the rows where inference runs
        else:
            if objective == "utility":
                # A linear output starts where it would have to go first: at the experts' mean utility.
                logits = torch.tensor([row["expert_logits"] for row in rows])
                utilities = expert_utilities(logits, torch.tensor([row["labels"] for row in rows]), self.kind)
                model.router.out_proj.bias.data.copy_(utilities.mean(dim=0))
            epochs, rate = self.args.router_num_train_epochs, self.args.router_learning_rate
            self.train(f"router-{objective}", model.train(), rows, epochs, rate)
        model.experts.requires_grad_(True)
        return {name: value.cpu() for name, value in model.cpu().router.state_dict().items()}

    def tune(self, model, rows, costs):
        """Lambda and quotas that keep the budget on held-out rows."""
        args, seconds = self.args, costs["routed_seconds"]
        scores = predict(model.to(device()), rows, self.collate, ("router_logits",))[0]
        budget = args.budget_seconds
        if budget is None:
            budget = max(max(costs["seconds"]) / 2, min(seconds))
        return {
            "budget_seconds": budget,
            "routing_lambda": lambda_for_budget(scores, seconds, budget),
            "quotas": quotas_for_budget(scores, seconds, budget, args.quota_batch_size),
        }

    def report(self, models, folders, costs, tuning):
        """Everything that the validation split tells; it is read here, and nowhere else."""
        rows = self.rows(load_split(self.args, "validation"))
        logits = self.answers(folders, rows)["logits"]
        regression, seconds = self.task.regression, costs["routed_seconds"]
        labels = torch.tensor([row["labels"] for row in rows])
        largest = self.largest_answers(logits, rows)
        predictions = (logits[:, :, 0] if regression else logits.argmax(dim=2)).numpy()
        answers = PoolAnswers(
            predictions,
            labels.numpy(),
            expert_utilities(logits, labels, self.kind).numpy(),
            costs["seconds"],
            seconds,
            (largest[:, 0] if regression else largest.argmax(dim=1)).numpy(),
            costs["largest_seconds"],
            glue_score(self.task.name),
        )
        scores, chosen = {}, {}
        answered = [row | {"expert_logits": own.tolist()} for row, own in zip(rows, logits, strict=True)]
        read = self.summarized(next(iter(models.values())), answered)
        for objective, model in models.items():
            scores[objective] = predict(model.to(device()), read, self.collate, ("router_logits",))[0]
            settings = tuning[objective]
            by_lambda = choose_expert(scores[objective], seconds, settings["routing_lambda"])
            by_quota = serve_by_quota(scores[objective], settings["quotas"], seconds)
            chosen |= {f"{objective}, lambda": by_lambda.numpy(), f"{objective}, quotas": by_quota.numpy()}
        found = make_report(answers, scores, chosen, self.args.bootstrap_resamples)
        metric, everyone = glue_metric(self.task.name), np.arange(len(rows))
        for name, served in chosen.items():
            found["policies"][name]["metrics"] = metric(predictions[everyone, served], answers.references)
        found["largest_metrics"] = metric(answers.largest, answers.references)
        if count := self.args.encrypted_eval_samples:
            objective = self.args.router_objective
            quotas, some = tuning[objective]["quotas"], slice(count)
            encrypted = encrypted_answers(
                models[objective].cpu(), quotas, rows[some], self.collate, self.args.max_seq_length
            )
            policy = scores[objective][some], logits[some], quotas, seconds
            narrow = any(own["precision"] != "full" for own in models[objective].config.expert_mpc)
            found["encrypted"] = compare_with_clear(self.task, encrypted, *policy, labels[some], narrow)
        longest = [own or self.args.max_seq_length for own in self.lengths]
        found["cut"] = [np.mean([len(row["input_ids"]) > own for row in rows]) for own in longest]
        return found | {"task": self.task.name, "metric": "+".join(SCORES[self.task.name]), "tuning": tuning}

    def save(self, model, report):
        """The model with its card, the figure, and the row of results."""
        objective, args = self.args.router_objective, self.args
        policy = report["policies"][f"{objective}, quotas"]
        draw_report(report, self.folder / "curve.png", f"{self.task.name}, seed {args.seed}", report["metric"])
        path = self.folder / "routed.json"
        measured = json.loads(path.read_text()) if path.exists() else None
        row = {
            "task": self.task.name,
            "metric": report["metric"],
            "seeds": [args.seed],
            "experts": [self.describe(model, index) for index in range(len(model.experts))],
            "cut": report["cut"],
            "largest_score": 100 * report["largest_score"],
            "routed_score": 100 * policy["score"],
            "relative_cost": measured and measured["seconds"]["relative"],
            "relative_bytes": measured and measured["bytes"]["relative"],
            "audc": report["audc"],
            "qnc": report["qnc"][objective],
            "command": self.command,
        }
        if "variants" in report:
            row["variants"] = report["variants"]
        write_json(row, self.folder / "row.json")
        model.cpu().model_card_data = card_data(self.task, args, report, policy, measured, self.command)
        self.tokenizer.save_pretrained(self.folder)
        model.save_pretrained(self.folder)
        if args.results_file:
            publish(args.results_file, [self.folder])
        shutil.rmtree(self.folder / "steps", ignore_errors=True)  # the training checkpoints, of no use any more

    def describe(self, model, index):
        """An expert in a few words, such as "bert 2x128, 64 tokens, quadratic"."""
        config, functions = model.experts[index].config, model.config.expert_mpc[index]
        length = [f"{model.config.length_of(index)} tokens"] if model.config.expert_max_lengths else []
        special = [choice for choice in functions.values() if choice not in ("exact", "full")]
        return ", ".join([f"{config.model_type} {config.num_hidden_layers}x{config.hidden_size}", *length, *special])

    def push(self, repo_id, token=None, private=None):
        """Upload the checkpoint, its card, the figure and the report; nothing else of the folder."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=self.folder, allow_patterns=UPLOADED)
