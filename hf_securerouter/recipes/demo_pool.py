# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
The embedded demo checkpoint: three small BERT experts and a router on SST-2, from scratch, on one CPU core.

1. A lowercase WordPiece vocabulary from the training text.
2. The experts. With a teacher, an encoder is fine-tuned first, and the experts are distilled from it on the training
   text and on perturbed copies.
3. A copy of each expert in reduced precision, which costs less on shares, distilled from the expert layer by layer.
4. The router, on a tenth of the training rows that the experts have not seen.
5. Lambda, on another tenth. The validation split is read once, at the end.

Reference:
    Tang et al., Distilling Task-Specific Knowledge from BERT into Simple Neural Networks, arXiv 1903.12136.
"""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_securerouter.classification import DEMO_CHECKPOINT
from hf_securerouter.files import write_atomically
from hf_securerouter.known_arguments import refuses_unknown, refuses_unknown_init
from hf_securerouter.loading import only_download_bars
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.recipes.arguments import DataArguments, option
from hf_securerouter.recipes.artifacts import announce
from hf_securerouter.recipes.card import task_card
from hf_securerouter.recipes.data import open_data, split_rows, tokenize
from hf_securerouter.recipes.distillation import distil_layers, widest_value
from hf_securerouter.recipes.experts import load_classifier
from hf_securerouter.recipes.fit_with_trainer import trainer_fit
from hf_securerouter.recipes.fitting import Row
from hf_securerouter.recipes.prediction import decide, labels_of, predict
from hf_securerouter.recipes.router_training import train_router, with_answers
from hf_securerouter.routing import lambda_for_budget
from hf_securerouter.trainer import SecureRouterTrainingArguments


EXPERTS = [(1, 64, 1e-3), (2, 128, 1e-3), (3, 192, 5e-4)]  # layers, width, learning rate
HEAD_SIZE = 32
QUOTAS = [3, 2, 1]  # texts of a batch of six that each expert serves; lambda is chosen for their mean cost
MAX_LENGTH = 64
FUNCTIONS = {"hidden_act": "exact", "softmax": "exact", "precision": "reduced"}
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@refuses_unknown_init
@dataclass
class DemoArguments:
    """Data, teacher and sizes of the demo."""

    train_file: str | None = option(None, "JSON lines (.gz allowed) with `sentence` and `label`; default: the Hub's.")
    validation_file: str | None = option(None, "The same for the figures in the card.")
    teacher: str | None = option(None, "Name or folder of an encoder to fine-tune and to distil from; default: none.")
    teacher_epochs: float = option(2.0, "Epochs of the teacher; 0 if it is fine-tuned already.")
    perturbed_copies: int = option(5, "Perturbed copies of the training text, which the teacher labels.")
    vocab_size: int = option(6000, "Tokens of the vocabulary.")
    epochs: float = option(3.0, "Epochs of the experts and of the router.")
    cotrain_epochs: float = option(1.0, "Epochs of the copies in reduced precision.")
    output_dir: str = option(str(DEMO_CHECKPOINT), "Where the checkpoint goes.")
    card: str = option("model_cards/demo-sst2.md", "Where a second copy of the card goes.")
    seed: int = option(42, "Of everything that is drawn.")


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> BertTokenizer:
    """
    A lowercase WordPiece tokenizer.

    Args:
        texts (sequence of `str`): What it is trained on.
        vocab_size (`int`): Tokens of its vocabulary, at most.
    """
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    letters = sorted(set("".join(texts).lower()) - {" "})
    # Ids decide which of two equal counts is merged first; reserved letters have the same ids in each run.
    reserved = SPECIAL_TOKENS + letters + [f"##{letter}" for letter in letters]
    wordpiece.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=reserved, show_progress=False
    )
    return BertTokenizer(vocab=wordpiece.get_vocab(), do_lower_case=True, model_max_length=MAX_LENGTH)


def perturb_texts(texts: Sequence[str], count: int, words: Sequence[str], rng: random.Random) -> Iterator[str]:
    """
    New texts for a teacher to label: texts joined, cut, and with some of their words replaced.

    Args:
        texts (sequence of `str`): What they are made of.
        count (`int`): How many.
        words (sequence of `str`): The words that replace others.
        rng (`random.Random`): Draws everything.
    """
    for _ in range(count):
        text = rng.choice(texts).split()
        if rng.random() < 0.5:
            text += [rng.choice([",", ".", "and", "but"]), *rng.choice(texts).split()]
        if rng.random() < 0.3:
            start = rng.randrange(len(text))
            text = text[start : start + rng.randint(2, 20)]
        yield " ".join(rng.choice(words) if rng.random() < 0.15 else word for word in text)


class Bench:
    """
    Where the models of one tokenizer are trained: one Trainer for each step.

    Args:
        folder (`str`): For files of the Trainer; it may be removed afterwards.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        seed (`int`): Of every step.
        batch_size (`int`): Rows of one update.
    """

    def __init__(self, folder: str, tokenizer: PreTrainedTokenizerBase, seed: int, batch_size: int = 64) -> None:
        self.folder, self.tokenizer = Path(folder), tokenizer
        self.collate: Any = DataCollatorWithPadding(tokenizer)
        self._fit = trainer_fit(
            SecureRouterTrainingArguments(
                output_dir=folder,
                seed=seed,
                per_device_train_batch_size=batch_size,
                train_sampling_strategy="group_by_length",
                weight_decay=0.05,
                warmup_steps=0.1,
                logging_steps=200,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                use_cpu=True,
            )
        )

    def train(self, name: str, model: torch.nn.Module, rows: Sequence[Row], epochs: float, rate: float) -> None:
        """Trains a model in the place."""
        announce(f"Training {name} on {len(rows)} rows ...")
        self._fit(self, name, model, rows, epochs, rate)


class DemoRun:
    """
    The whole way to the demo checkpoint. To call the run trains, evaluates and saves it.

    Args:
        args ([`DemoArguments`]): What to do.
        command (`str`): The command of the run, for the card.
    """

    @refuses_unknown
    def __init__(self, args: DemoArguments, command: str) -> None:
        self.args, self.command = args, command
        self.data = open_data(
            DataArguments(task_name="sst2", train_file=args.train_file, validation_file=args.validation_file)
        )
        self.task = self.data.task

    def __call__(self) -> None:
        """Takes all steps."""
        torch.set_num_threads(1)
        set_seed(self.args.seed)
        with tempfile.TemporaryDirectory() as folder, only_download_bars():
            self._run(folder)

    def _run(self, folder: str) -> None:
        args, raw = self.args, self.stripped("train")
        parts = split_rows(self.task, raw, [0.1, 0.1], args.seed)
        training, routing, tenth = ([raw[index] for index in part] for part in parts)
        tokenizer = train_tokenizer([row["sentence"] for row in training], args.vocab_size)
        details: dict[str, Any] = {"command": f"`{self.command}`"}
        if args.teacher is not None:
            training, routing = self.labelled_by_teacher(folder, training, routing, tenth, details)
        bench = Bench(folder, tokenizer, args.seed)
        rows, router_rows, tuning_rows = (self.rows(part, tokenizer) for part in (training, routing, tenth))
        exact = [self.expert(shape, rows, bench) for shape in EXPERTS]
        reduced = [cotrained_copy(expert, rows, bench, args.cotrain_epochs) for expert in exact]
        model = self.pool(reduced, tokenizer, folder)
        experts: Any = model.experts
        logits = torch.stack([predict(expert, router_rows, bench.collate)[0] for expert in experts], dim=1)
        answered = with_answers(router_rows, logits)
        train_router(model, answered, self.task, bench.collate, bench.train, args.epochs, 1e-3)
        costs = model.config.expert_costs or []
        budget = sum(quota * cost for quota, cost in zip(QUOTAS, costs, strict=True)) / sum(QUOTAS)
        scores = predict(model, tuning_rows, bench.collate, ("router_logits",))[0]
        model.config.routing_lambda = lambda_for_budget(scores, costs, budget)
        announce(f"On the held-out tenth: {self.figures(model, exact, tuning_rows, bench)}")
        validation = self.rows(self.stripped("validation"), tokenizer)
        figures, shares = self.figures(model, exact, validation, bench)
        announce(f"On the validation split: {figures}, {shares}")
        self.save(model, tokenizer, figures, shares, details)

    def stripped(self, split: str) -> list[Row]:
        """The rows of a split without space around the texts, so that a phrase is found in its sentence."""
        return [row | {"sentence": row["sentence"].strip()} for row in self.data.rows(split)]

    def rows(self, raw: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
        """Rows as token ids, with the teacher's answers if there are any."""
        encoded = tokenize(self.task, raw, tokenizer, MAX_LENGTH)
        answers = [{name: row[name] for name in ("teacher_logits",) if name in row} for row in raw]
        return [row | own for row, own in zip(encoded, answers, strict=True)]

    def labelled_by_teacher(
        self,
        folder: str,
        training: Sequence[Row],
        routing: Sequence[Row],
        tenth: Sequence[Row],
        details: dict[str, Any],
    ) -> tuple[list[Row], list[Row]]:
        """
        Fine-tunes the teacher and asks it for its answers.

        Args:
            folder (`str`): For files of the Trainer.
            training (sequence of `dict`), routing (sequence of `dict`), tenth (sequence of `dict`): Rows of the
                experts, of the router, and the tenth on which the teacher is evaluated.
            details (`dict`): Gets the teacher's accuracy.

        Returns:
            `tuple`: The experts' rows and perturbed copies of them, with `teacher_logits`; and the router's rows and
            perturbed copies of them, with labels that the teacher's probabilities draw.
        """
        args, name = self.args, str(self.args.teacher)
        tokenizer = AutoTokenizer.from_pretrained(name)
        teacher = load_classifier(name, self.task, args.seed)
        bench = Bench(folder, tokenizer, args.seed, batch_size=32)
        if args.teacher_epochs > 0:
            bench.train("teacher", teacher.train(), self.rows(training, tokenizer), args.teacher_epochs, 8e-5)

        def ask(raw: Sequence[Row]) -> torch.Tensor:
            announce(f"The teacher answers {len(raw)} texts ...")
            return predict(teacher, self.rows(raw, tokenizer), bench.collate)[0]

        right = decide(self.task, ask(tenth)) == labels_of(self.rows(tenth, tokenizer)).numpy()
        details["teacher's accuracy, held-out tenth"] = f"{right.mean():.4f}"
        words = [word for word in sorted(tokenizer.get_vocab()) if word.isascii() and word.isalpha() and len(word) > 2]
        words += sorted({word for row in training for word in row["sentence"].split()})
        rng = random.Random(args.seed)

        def more(raw: Sequence[Row]) -> list[Row]:
            texts = perturb_texts([row["sentence"] for row in raw], args.perturbed_copies * len(raw), words, rng)
            rows = [*raw, *({"sentence": text, "label": 0} for text in texts)]
            answered = [row | {"teacher_logits": own.tolist()} for row, own in zip(rows, ask(rows), strict=True)]
            for row in answered[len(raw) :]:
                # Drawn, not the most likely class: in the mean the loss is then that of the teacher's probabilities.
                chances = torch.tensor(row["teacher_logits"]).softmax(dim=0).tolist()
                row["label"] = rng.choices(range(len(chances)), chances)[0]
            return answered

        distilled = more(training)
        return distilled, [{name: row[name] for name in ("sentence", "label")} for row in more(routing)]

    def expert(self, shape: tuple[int, int, float], rows: Sequence[Row], bench: Bench) -> PreTrainedModel:
        """An expert of some layers and some width, trained from scratch."""
        layers, width, learning_rate = shape
        config = BertConfig(
            vocab_size=len(bench.tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD_SIZE,
            intermediate_size=4 * width,
            max_position_embeddings=MAX_LENGTH,
            id2label=self.task.id2label,
            label2id={label: index for index, label in self.task.id2label.items()},
            problem_type=self.task.problem_type,
        )
        expert = BertForSequenceClassification(config).train()
        bench.train(f"expert-{layers}x{width}", expert, rows, self.args.epochs, learning_rate)
        return expert

    def pool(
        self, experts: Sequence[PreTrainedModel], tokenizer: PreTrainedTokenizerBase, folder: str
    ) -> SecureRouterForSequenceClassification:
        """The experts, and a router whose own encoder starts as the smallest of them."""
        names = [f"{folder}/{index}" for index in range(len(experts))]
        for name, expert in zip(names, experts, strict=True):
            expert.save_pretrained(name)
            tokenizer.save_pretrained(name)
        return SecureRouterForSequenceClassification.from_expert_pretrained(
            router=names[0],
            experts=names,
            problem_type=self.task.problem_type,
            expert_mpc=[FUNCTIONS] * len(names),
            router_objective="utility",
            router_hidden_size=64,
            quotas=QUOTAS,
        )

    def figures(
        self,
        model: SecureRouterForSequenceClassification,
        exact: Sequence[PreTrainedModel],
        rows: Sequence[Row],
        bench: Bench,
    ) -> tuple[dict[str, float], list[float]]:
        """Accuracy of the routed pool and of each expert, exact and in reduced precision, with the largest value of
        each over its bound; and the share of the texts that each expert served."""
        labels = labels_of(rows).numpy()

        def accuracy(logits: torch.Tensor) -> float:
            return float((decide(self.task, logits) == labels).mean())

        logits, chosen = predict(model, rows, bench.collate, ("logits", "expert_indices"))
        found = {"accuracy": accuracy(logits)}
        experts: Any = model.experts
        for index, (expert, before) in enumerate(zip(experts, exact, strict=True)):
            name = f"expert {index}"
            found[f"accuracy of {name} alone"] = accuracy(predict(expert, rows, bench.collate)[0])
            found[f"accuracy of {name} before it was co-trained"] = accuracy(predict(before, rows, bench.collate)[0])
            found[f"widest value of {name} over its bound"] = widest_value(expert, rows, bench.collate)
        return found, [(chosen == index).float().mean().item() for index in range(len(exact))]

    def save(
        self,
        model: SecureRouterForSequenceClassification,
        tokenizer: PreTrainedTokenizerBase,
        figures: dict[str, float],
        shares: Sequence[float],
        details: dict[str, Any],
    ) -> None:
        """The checkpoint in half precision and its card, which is copied to `args.card`."""
        details |= {name: f"{figure:.4f}" for name, figure in figures.items()}
        card = task_card(self.task, "demo-sst2", {"accuracy": figures["accuracy"]}, shares, details)
        card.license = "apache-2.0"
        model.model_card_data = card  # type: ignore[assignment]
        folder, copied = Path(self.args.output_dir), Path(self.args.card)
        tokenizer.save_pretrained(folder)
        model.half().save_pretrained(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(copied) as temporary:
            shutil.copyfile(folder / "README.md", temporary)


def cotrained_copy(expert: PreTrainedModel, rows: Sequence[Row], bench: Bench, epochs: float) -> PreTrainedModel:
    """
    A copy of an expert in reduced precision, distilled from it layer by layer.

    Args:
        expert (`PreTrainedModel`): The exact expert.
        rows (sequence of `dict`): Tokenized training rows.
        bench ([`Bench`]): Where it is trained.
        epochs (`float`): Of the copy.
    """
    own = copy.deepcopy(expert)
    use_functions(own, **FUNCTIONS)
    (logits,) = predict(expert, rows, bench.collate)
    answered = [row | {"teacher_logits": answer.tolist()} for row, answer in zip(rows, logits, strict=True)]
    config: Any = expert.config
    name = f"reduced-{config.num_hidden_layers}x{config.hidden_size}"
    distil_layers(name, own, copy.deepcopy(expert), answered, bench.train, epochs, 1e-3)
    return own
