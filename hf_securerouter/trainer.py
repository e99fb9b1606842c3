# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`transformers.Trainer` for a router: anneals the temperature, logs the parts of the loss and the routing shares."""

import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, enable_full_determinism, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_securerouter.adapters import adapter_of, freeze, pool_inside, train_router_beside_adapter
from hf_securerouter.card_callback import ModelCardCallback
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.model_card import SecureRouterModelCardData, write_model_card
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification


logger = logging.get_logger(__name__)

_LOSSES = ("task_loss", "balance_loss", "cost_loss")


@dataclass
class SecureRouterTrainingArguments(TrainingArguments):
    """Arguments of [`SecureRouterTrainer`].

    Args:
        router_learning_rate (`float`, *optional*):
            Learning rate of the router; defaults to `learning_rate`. Fine-tuned experts need a small rate, the
            router's new layers a larger one.
        class_weights (`list[float]`, *optional*):
            How much an example of each class counts in the task loss, in training and evaluation; of several labels,
            how much a label counts where it holds.
        freeze (`list[str]`, *optional*):
            Names of parameters or modules that are not trained, with `*` as in file names:
            `["experts.*.embeddings.*", "experts.0"]`.
        hub_strategy (`str`, defaults to `"end"`):
            When to push. The strategies that push during training also upload the pickled `training_args.bin`, and
            are refused.

    Raises:
        SecureRouterValueError: `router_learning_rate` is negative, a weight is not a positive number, or `push_to_hub`
            is set with another strategy.
    """

    router_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the router; defaults to `learning_rate`."}
    )
    class_weights: list[float] | None = field(
        default=None, metadata={"help": "How much an example of each class counts in the loss, such as 1 3."}
    )
    freeze: list[str] | None = field(
        default=None, metadata={"help": 'Names of what is not trained, such as "experts.*.embeddings.*".'}
    )
    hub_strategy: str = field(default="end", metadata={"help": 'When to push to the Hub: "end".'})

    def __post_init__(self):
        super().__post_init__()
        if self.router_learning_rate is not None and self.router_learning_rate < 0:
            raise SecureRouterValueError(
                f"`router_learning_rate` should not be negative, got {self.router_learning_rate}."
            )
        for weight in self.class_weights or []:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise SecureRouterValueError(
                    f"`class_weights` should be positive finite numbers, one for each class, got {weight!r}."
                )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nothing to pin it for, and each loader would warn
        _refuse_pushes_in_training(self)


class TemperatureAnnealingCallback(TrainerCallback):
    """Sets the temperature of the Gumbel-softmax before each step.

    The temperature is a function of the step alone (`config.temperature_at`), so that a resumed run continues where it
    stopped. The config, and so the checkpoint, keeps the temperature of the first step.
    """

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        pool = pool_inside(model)
        pool.annealed_temperature = pool.config.temperature_at(state.global_step, state.max_steps)


class UpdateSizeCallback(TrainerCallback, ExportableState):
    """Keeps in a checkpoint how many rows an update has, and refuses to resume it with another number.

    A checkpoint counts updates. With more processes, and so more rows in an update, the same count stands for another
    part of the data, and the rest of the run would train on more or less than was asked for.
    """

    def __init__(self) -> None:
        self.rows = 0

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"rows": self.rows}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            refuse_other_update_size(saved["attributes"]["rows"], self.rows)


def refuse_other_update_size(saved: int, now: int) -> None:
    """
    Refuses to resume a run whose updates had another number of rows.

    Args:
        saved (`int`): Rows of an update when the checkpoint was written, over all processes.
        now (`int`): Rows of an update now.

    Raises:
        SecureRouterValueError: They differ.
    """
    if saved != now:
        raise SecureRouterValueError(
            f"The checkpoint counts updates of {saved} rows, and an update now has {now} (processes x rows of a batch "
            "x `gradient_accumulation_steps`): choose the last two so that it has as many, or start anew in another "
            "`output_dir`."
        )


class SecureRouterTrainer(Trainer):
    """[`~transformers.Trainer`] for [`SecureRouterForSequenceClassification`].

    It anneals the temperature, and logs `task_loss`, `balance_loss`, `cost_loss`, `temperature` and the share of each
    expert beside the loss. It adds the routing shares and the mean cost of the chosen experts to every evaluation, and
    collects both for the model card. Training itself is unchanged, but always starts from the seed of its arguments.

    Args:
        model: The model to train.
        args ([`SecureRouterTrainingArguments`] or [`~transformers.TrainingArguments`], *optional*): The arguments.
        kwargs: All other arguments of the Trainer.

    Raises:
        SecureRouterValueError: `compute_loss_func` or label smoothing would replace the model's own loss;
            `hub_strategy` would push in training; or a checkpoint is resumed with another number of rows in an update.

    Example:
        ```python
        trainer = SecureRouterTrainer(
            model=model,
            args=SecureRouterTrainingArguments("out", learning_rate=3e-5, router_learning_rate=1e-3),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            compute_metrics=compute_metrics_for("sst2"),
        )
        trainer.train()
        trainer.evaluate()  # {"eval_accuracy": ..., "eval_routing_share_0": ..., "eval_routing_cost": ...}
        ```
    """

    def __init__(self, model=None, args=None, **kwargs):
        if args is None:
            args = SecureRouterTrainingArguments("trainer_output")
        if kwargs.get("compute_loss_func") is not None:
            raise SecureRouterValueError(
                "`compute_loss_func` would replace the model's loss and with it the balance and cost terms: remove "
                "it, and set `alpha` and `beta` in the config to weigh these terms."
            )
        if args.label_smoothing_factor:
            raise SecureRouterValueError(
                f"`label_smoothing_factor` should be 0, got {args.label_smoothing_factor}: it would replace the "
                "model's loss and with it the balance and cost terms."
            )
        _refuse_pushes_in_training(args)
        given_optimizer = any(kwargs.get("optimizers") or ())
        if model is not None:
            self._prepare(model, args, given_optimizer)
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(TemperatureAnnealingCallback)
        self.add_callback(ModelCardCallback)
        self.add_callback(UpdateSizeCallback)
        self._training_sum: torch.Tensor | None = None
        self._training_batches = 0
        self._evaluation_shares: list[torch.Tensor] = []

    def train(self, *args, **kwargs):
        """Trains as [`~transformers.Trainer.train`] does, but from the seed of the arguments, whatever was drawn since
        this trainer was made: one seed gives one model, bit by bit on one machine, also after a resume.
        """
        _refuse_pushes_in_training(self.args)  # again: `args.set_push_to_hub` may have been called since
        (enable_full_determinism if self.args.full_determinism else set_seed)(self.args.seed)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(self.processing_class, name, None)
            if token is not None:  # the Trainer sets it too, and warns that the pool's own config had none
                setattr(self._router_model.config, name, token)
        return super().train(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise SecureRouterValueError(
                f"`resume_from_checkpoint` {str(checkpoint)!r} has an optimizer of other parameters ({error}): pass "
                "the `router_learning_rate`, `freeze`, `weight_decay` and adapter that it was trained with."
            ) from error

    def get_train_dataloader(self):
        _refuse_text_labels("train_dataset", self.train_dataset)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None):
        named = isinstance(eval_dataset, str)
        chosen = self.eval_dataset[eval_dataset] if named else eval_dataset or self.eval_dataset  # type: ignore[index]
        _refuse_text_labels("eval_dataset", chosen)
        return super().get_eval_dataloader(eval_dataset)

    def call_model_init(self, trial=None):
        model = super().call_model_init(trial)
        self._prepare(model, self.args, given_optimizer=False)
        return model

    @staticmethod
    def _prepare(model, args, given_optimizer):
        """Sets the weights of the classes, lets the router learn beside an adapter, and freezes what is named."""
        pool, frozen = pool_inside(model), getattr(args, "freeze", None) or []
        weights = getattr(args, "class_weights", None)
        if weights is not None:
            if pool.config.num_labels == 1 or pool.config.problem_type == "regression":
                raise SecureRouterValueError(
                    "`class_weights` are of classes, and this pool answers with numbers: leave them out."
                )
            if len(weights) != pool.config.num_labels:
                raise SecureRouterValueError(
                    f"`class_weights` should have one entry for each of the {pool.config.num_labels} labels, got "
                    f"{weights!r}."
                )
        if hasattr(args, "class_weights"):  # those of an earlier trainer of this model do not stay
            pool.class_weights = None if weights is None else [float(weight) for weight in weights]
        added = train_router_beside_adapter(model, frozen)
        if added and given_optimizer:
            raise SecureRouterValueError(
                f"`optimizers` holds an optimizer that does not know the router: pass `modules_to_save={added!r}` to "
                "the adapter's config, and make the optimizer after that, or pass `freeze=['router.*']`."
            )
        if added:
            logger.warning(f"The router learns beside the adapter, and is saved with it: {', '.join(added)}.")
        freeze(model, frozen)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            # Under DataParallel each loss is a vector, with an entry for each device.
            losses = torch.stack([outputs[name].detach().float().mean() for name in _LOSSES])
            shares = self._shares(outputs["expert_indices"]).mean(dim=0)
            part = torch.cat([losses, shares])
            self._training_sum = part if self._training_sum is None else self._training_sum + part
            self._training_batches += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs and self._training_sum is not None:
            own = self._training_sum / self._training_batches
            mean = self.accelerator.gather(own[None]).mean(dim=0).tolist()
            self._training_sum, self._training_batches = None, 0
            logs |= dict(zip(_LOSSES, mean, strict=False))
            logs |= _named_shares(mean[len(_LOSSES) :])
            logs["temperature"] = self._router_model.annealed_temperature
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        # Predictions leave the routing outputs out (`keys_to_ignore_at_inference`), so a hook reads them.
        seen: list[dict[str, Any]] = []
        hook = model.register_forward_hook(lambda module, arguments, output: seen.append(output))
        try:
            result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            hook.remove()
        for output in seen:
            chosen = self.accelerator.gather_for_metrics(output["expert_indices"])
            self._evaluation_shares.append(self._shares(chosen).cpu())
        return result

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._evaluation_shares.clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        if self._evaluation_shares:
            shares = torch.cat(self._evaluation_shares).mean(dim=0).tolist()
            costs = cast(list[float], self._router_model.config.expert_costs)
            cost = sum(share * cost for share, cost in zip(shares, costs, strict=True))
            routing = _named_shares(shares) | {"routing_cost": cost}
            cast(dict[str, float], output.metrics).update(
                {f"{metric_key_prefix}_{name}": value for name, value in routing.items()}
            )
        return output

    def create_optimizer(self, *args, **kwargs):
        created = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        rate = getattr(self.args, "router_learning_rate", None)
        if created and rate is not None:
            _set_router_learning_rate(optimizer, self._router_model, rate)
        return optimizer

    def create_model_card(
        self,
        language=None,
        license=None,
        tags=None,
        model_name=None,
        finetuned_from=None,
        tasks=None,
        dataset_tags=None,
        dataset=None,
        dataset_args=None,
    ):
        """Write the model's card to the output folder, with the given metadata.

        Takes the arguments of [`~transformers.Trainer.create_model_card`]; `tasks`, `dataset` and `dataset_args` are
        ignored. A person's text is not overwritten, see [`~hf_securerouter.model_card.write_model_card`].
        """
        if not self.is_world_process_zero():
            return
        model = self._router_model
        given = {
            "language": language,
            "license": license,
            "tags": [tags] if isinstance(tags, str) else tags,
            "base_model": finetuned_from,
            "datasets": dataset_tags,
            "model_name": model_name,
        }
        collected: SecureRouterModelCardData | None = getattr(model, "model_card_data", None)
        known = {} if collected is None else collected.to_dict()
        known |= {name: value for name, value in given.items() if value is not None}
        card_data = SecureRouterModelCardData(**known)
        write_model_card(cast(Any, self.model), str(self.args.output_dir), card_data, repo_id=self.hub_model_id)

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or str(self.args.output_dir))
        card = folder / "README.md"
        before = card.read_bytes() if card.exists() else None
        super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save and adapter_of(self.model) is not None:
            # PEFT has put its template there, or added to the card: our card of an adapter takes its place.
            card.unlink(missing_ok=True) if before is None else card.write_bytes(before)
            write_model_card(cast(Any, self.model), folder, repo_id=self.hub_model_id)
        # The training arguments are a pickle that nothing reads again: it must not reach the Hub with the weights.
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    @property
    def _router_model(self) -> SecureRouterForSequenceClassification:
        return pool_inside(self.model)

    def _shares(self, expert_indices: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(expert_indices, self._router_model.config.num_experts).float()


def _refuse_pushes_in_training(args: TrainingArguments) -> None:
    """Refuses the strategies whose pushes hold the pickled arguments, and in them the Hub token."""
    if args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise SecureRouterValueError(
            f"`hub_strategy` should be 'end', got {HubStrategy(args.hub_strategy).value!r}: the others upload the "
            "pickled `training_args.bin` with each checkpoint, and `hub_token` in it."
        )


def _refuse_text_labels(name: str, rows: Any) -> None:
    """Refuses labels that are texts, which a collator leaves out without a word; the first row is looked at."""
    is_table = isinstance(rows, Sized) and hasattr(rows, "__getitem__") and not isinstance(rows, Mapping)
    first = cast(Any, rows)[0] if is_table and len(rows) else None
    for column in ("label", "labels", "label_ids"):
        if isinstance(first, Mapping) and isinstance(first.get(column), str):
            raise SecureRouterValueError(
                f"`{name}` has texts in the column {column!r}, such as {first[column]!r}: map them to the numbers of "
                "their classes first, `model.config.label2id[text]`."
            )


def _named_shares(shares: list[float]) -> dict[str, float]:
    return {f"routing_share_{index}": share for index, share in enumerate(shares)}


def _set_router_learning_rate(optimizer: torch.optim.Optimizer, model: torch.nn.Module, rate: float) -> None:
    """Move the router's parameters to groups of their own, with the weight decay of their old group."""
    router = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("router.")}
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if id(parameter) in router]
        if chosen:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in router]
            optimizer.add_param_group({**group, "params": chosen, "lr": rate})
