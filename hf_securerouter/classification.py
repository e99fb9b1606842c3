# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Texts in, labelled texts out, in clear text or on secret shares."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoTokenizer, BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_securerouter.abstention import LIKELY, AbstainBelow
from hf_securerouter.errors import BadRowsError, SecureRouterValueError
from hf_securerouter.families import usable_positions
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.lengths import padded_right
from hf_securerouter.loading import only_download_bars
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.mpc.conversion.client import Labels
from hf_securerouter.pool import accepted_inputs
from hf_securerouter.routing import assign_by_quota, check_quotas, fill_batch
from hf_securerouter.texts import Text, as_texts
from hf_securerouter.token_ids import check_ids, vocabulary_of
from hf_securerouter.windows import Windows


if TYPE_CHECKING:
    from hf_securerouter.mpc.net.cost import Cost
    from hf_securerouter.mpc.sessions.session import Session


logger = logging.getLogger(__name__)

DEMO_CHECKPOINT = Path(__file__).parent / "assets" / "demo"


@dataclass(frozen=True)
class Classified:
    """A model's answer to one text.

    Attributes:
        label: The name of the most probable class, or the predicted score of a regression; None if it is withheld.
        score: The probability of the most probable class, None for a regression.
        logits: The C logits.
        expert: The expert that answered, or a list with that of each window; None if the routing privacy keeps it
            secret.
        verified: Whether a second run under fresh masks gave the same answer; None: there was none.
        in_bounds: Whether all values of the answer's batch were within their bounds; None: there is no guard.
        labels: Of a multi-label model all labels that are more likely than not; else None.
        scores: Of a multi-label model the probability of each label by its name; else None.
    """

    label: str | float | None
    score: float | None
    logits: list[float]
    expert: int | list[int] | None
    verified: bool | None = None
    in_bounds: bool | None = None
    labels: list[str] | None = None
    scores: dict[str, float] | None = None


def checked_name(path: str | Path) -> str:
    """A checkpoint's folder or name on the Hub, as a text.

    Raises:
        `SecureRouterValueError`: `path` is neither.
    """
    name = str(path)
    if not Path(name).exists() and name.count("/") != 1:
        raise SecureRouterValueError(f"`model` {name!r} is neither a folder nor a name on the Hub (`owner/name`).")
    return name


@refuses_unknown
def load_checkpoint(path: str | Path) -> tuple[SecureRouterForSequenceClassification, PreTrainedTokenizerBase]:
    """Load a pool in float32, in evaluation mode, and its tokenizer.

    Raises:
        `SecureRouterValueError`: `path` is neither a folder nor a name on the Hub, or its pool is not whole.
        `OSError`: A file is missing, or the Hub was not reached; of transformers.
    """
    name = checked_name(path)
    with only_download_bars():
        model = SecureRouterForSequenceClassification.from_pretrained(name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(name)


@refuses_unknown
def classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    quotas: Sequence[int] | None = None,
    max_windows: int = 1,
    stride: int = 0,
    abstain_below: AbstainBelow | None = None,
) -> list[Classified]:
    """Route and classify texts in clear text, on the device of the model.

    Args:
        model: A pool, or a plain classifier, which is the one expert of all texts; in evaluation mode.
        tokenizer: Its tokenizer.
        texts: Texts and (text, pair) tuples, in one batch; see `as_texts`.
        quotas: How many texts each expert of a pool serves, as under `routing_privacy="quota"`; a smaller batch is
            filled up with copies. Without quotas every text gets the expert that the router prefers.
        max_windows: Windows into which long texts are cut, see [`~hf_securerouter.windows.Windows`]; the answer is the
            mean of their logits.
        stride: Tokens that neighbouring windows share.
        abstain_below: The probability below which a label is withheld, for all or by label; None withholds none.

    Raises:
        `SecureRouterValueError`: There is no text; `quotas` serve no text, are not one count for each expert, or are
            given for a plain classifier;
            `max_windows` or `stride` does not fit; `abstain_below` is no probability or of no label, or the model
            predicts a number.
        `BadRowsError`: A row is no text, is empty, has half of a surrogate pair, or a token id beyond the vocabulary.
    """
    windows = Windows(max_windows, stride)
    if quotas is not None:
        check_quotas(quotas)
        if not isinstance(model, SecureRouterForSequenceClassification):
            raise SecureRouterValueError(
                f"`quotas` are of the experts of a pool, and a {type(model).__name__} has none, got {list(quotas)}: "
                "leave them out."
            )
    encoded, counts = _encoded(model, tokenizer, as_texts(texts), windows)
    size = len(encoded) if quotas is None else sum(quotas)
    logits, experts = [], []
    for start in range(0, len(encoded), size):
        part = encoded[start : start + size]
        rows = part if quotas is None else [part[row] for row in fill_batch(len(part), size)]
        own, chosen = _answers(model, tokenizer, rows, quotas)
        logits.append(own[: len(part)])
        experts += chosen[: len(part)]
    answers = from_logits(model.config, windows.averaged(torch.cat(logits), counts), windows.grouped(experts, counts))
    return _withhold(model.config, answers, abstain_below)


def _encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[Text], windows: Windows
) -> tuple[list[BatchEncoding], list[int]]:
    """The rows of each text, and how many of them count."""
    limit = _longest_input(model, tokenizer)
    if windows.most == 1:
        encoded, counts = _truncated(tokenizer, texts, limit), [1] * len(texts)
    elif limit is None:
        raise SecureRouterValueError(
            "`max_windows` cuts texts where the model's positions end, and it reads any length: leave it out."
        )
    else:
        rows, counts = windows.split(tokenizer, texts, limit)
        encoded = [BatchEncoding(row) for row in rows]
    config: Any = model.config
    members = [config.router_config, *config.expert_configs] if hasattr(config, "expert_configs") else [config]
    try:
        check_ids("inputs", tokenizer.pad(encoded, return_tensors="pt")["input_ids"], vocabulary_of(*members))
    except BadRowsError as error:
        bad = {row // windows.most: problem for row, problem in error.rows.items()}
        raise BadRowsError("inputs", bad) from None
    return encoded, counts


def _truncated(tokenizer: PreTrainedTokenizerBase, texts: list[Text], limit: int | None) -> list[BatchEncoding]:
    encoded = [tokenizer(*(text if isinstance(text, tuple) else (text,)), verbose=False) for text in texts]
    too_long = [index for index, one in enumerate(encoded) if limit is not None and len(one["input_ids"]) > limit]
    for index in too_long:
        text = texts[index]
        encoded[index] = tokenizer(*(text if isinstance(text, tuple) else (text,)), truncation=True, max_length=limit)
    if too_long:
        logger.warning(f"{len(too_long)} of {len(texts)} texts are longer than {limit} tokens and were truncated.")
    return encoded


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[BatchEncoding],
    quotas: Sequence[int] | None,
) -> tuple[torch.Tensor, list[int]]:
    """The logits of each row, and the expert that gave them."""
    batch = padded_right(tokenizer.pad(encoded, return_tensors="pt").to(model.device))
    with torch.inference_mode():
        if not isinstance(model, SecureRouterForSequenceClassification):
            return model(**accepted_inputs(model, batch)).logits, [0] * len(encoded)
        output = model(**batch)
        logits, experts = output.logits, output.expert_indices
        if quotas is not None:
            experts = assign_by_quota(output.router_logits, quotas, cast(list[float], model.config.expert_costs))
            logits = model.run_experts(batch, experts)
    return logits, experts.tolist()


def _longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most tokens that a model reads of a text, as under encryption; None without a limit."""
    is_pool = isinstance(model, SecureRouterForSequenceClassification)
    limits = (model.config.max_length if is_pool else usable_positions(model.config), tokenizer.model_max_length)
    return min((limit for limit in limits if limit is not None and limit < VERY_LARGE_INTEGER), default=None)


@refuses_unknown
def classify_encrypted(
    config: PreTrainedConfig,
    session: Session,
    texts: Iterable[Text],
    verify: float = 0.0,
    max_windows: int = 1,
    stride: int = 0,
    abstain_below: AbstainBelow | None = None,
) -> tuple[list[Classified], Cost]:
    """Route and classify texts on secret shares.

    Args:
        config: The config of the model that was shared, or one with its labels and problem type.
        session: An open session.
        texts: Texts and (text, pair) tuples.
        verify: Share of the batches that are asked twice under fresh masks, as for a session.
        max_windows: Windows into which long texts are cut, as for a session.
        stride: Tokens that neighbouring windows share.
        abstain_below: The probability below which a label is withheld, as for a session.

    Returns:
        The answers and their cost.

    Raises:
        `SecureRouterValueError`: As for a session.
    """
    result = session(texts, verify=verify, max_windows=max_windows, stride=stride, abstain_below=abstain_below)
    answers = _withhold(config, from_logits(config, result.logits, result.expert_indices), abstain_below)
    flags = zip(answers, result.verified, result.in_bounds, strict=True)
    return [replace(one, verified=agreed, in_bounds=inside) for one, agreed, inside in flags], result.cost


@refuses_unknown
def from_logits(
    config: PreTrainedConfig, logits: torch.Tensor, expert_indices: Sequence[int] | Sequence[list[int]] | None
) -> list[Classified]:
    """Turn logits into labels and scores.

    Args:
        config: Has the labels and the problem type.
        logits: (B, C) logits, on any device.
        expert_indices: (B,) the experts that answered, or lists of them by windows, or None if they are secret.
    """
    logits = logits.detach().float().cpu()
    experts: list[Any] = [None] * len(logits) if expert_indices is None else list(expert_indices)
    several = config.problem_type == "multi_label_classification"
    if Labels.of(config).regression:
        return [
            Classified(label=row[0].item(), score=None, logits=row.tolist(), expert=expert)
            for row, expert in zip(logits, experts, strict=True)
        ]
    names = cast(dict[int, str], config.id2label)
    found = logits.sigmoid() if several else logits.softmax(dim=-1)
    scores, classes = found.max(dim=-1)
    answers = [
        Classified(label=names[index], score=score, logits=row.tolist(), expert=expert)
        for index, score, row, expert in zip(classes.tolist(), scores.tolist(), logits, experts, strict=True)
    ]
    if not several:
        return answers
    return [
        replace(
            answer,
            labels=[names[index] for index, score in enumerate(row) if score >= LIKELY],
            scores={names[index]: score for index, score in enumerate(row)},
        )
        for answer, row in zip(answers, found.tolist(), strict=True)
    ]


def _withhold(
    config: PreTrainedConfig, answers: list[Classified], abstain_below: AbstainBelow | None
) -> list[Classified]:
    """The answers, without the labels whose probability is below `abstain_below`."""
    if abstain_below is None:
        return answers
    labels = Labels.of(config)
    least = {labels.names[index]: one for index, one in enumerate(labels.least(abstain_below))}
    return [_sure(answer, least) for answer in answers]


def _sure(answer: Classified, least: dict[str, float]) -> Classified:
    """The answer, without labels that are less likely than their `least`."""
    if cast(float, answer.score) < least[cast(str, answer.label)]:
        answer = replace(answer, label=None)
    if answer.scores is None:
        return answer
    return replace(answer, labels=[name for name, score in answer.scores.items() if score >= least[name]])
