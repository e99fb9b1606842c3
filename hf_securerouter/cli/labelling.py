# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""From a file of texts to the same file with labels, in batches; a stopped run continues where it was."""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Protocol

import typer
from tqdm import tqdm

from hf_securerouter.cli.loading import commit_of
from hf_securerouter.cli.output import log
from hf_securerouter.cli.records import Record, Row, as_line, bad_lines, checked_records, rows_of, text_of
from hf_securerouter.errors import BadRowsError, SecureRouterValueError


if TYPE_CHECKING:  # `securerouter --help` should not wait for torch and transformers
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_securerouter.classification import Classified
    from hf_securerouter.configuration_securerouter import SecureRouterConfig
    from hf_securerouter.mpc.net.cost import Cost
    from hf_securerouter.mpc.sessions.session import Session
    from hf_securerouter.texts import Text


_OF_A_MODEL = {".json", ".safetensors", ".bin", ".txt", ".model"}  # on which its answers depend, in subfolders too
BATCH_SIZE = 32  # most texts of a batch in clear text; with quotas, as many whole quota batches as fit


class OnError(enum.StrEnum):
    """What to do about a line that cannot be answered."""

    STOP = "stop"
    SKIP = "skip"


OnErrorOption = Annotated[
    OnError,
    typer.Option(
        help='A line that cannot be answered: "stop" before the first answer and name it, or "skip" it, and write '
        'the reason as its "error".'
    ),
]


MaxWindowsOption = Annotated[
    int,
    typer.Option(
        min=1, help="Windows into which long texts are cut; every text then costs as many, and the servers see that."
    ),
]
StrideOption = Annotated[int, typer.Option(min=0, help="Tokens that neighbouring windows share.")]
AbstainOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help='Write no label ("label": null) where its probability is below this.'),
]


def label_file(
    made_with: str,
    input_path: Path,
    output_path: Path,
    opened: Callable[[], contextlib.AbstractContextManager[Answering]],
    encrypted: bool,
    on_error: OnError = OnError.STOP,
    windows: tuple[int, int] = (1, 0),
    abstain_below: float | None = None,
    verify: float | None = None,
) -> dict[str, Any]:
    """Label the lines of `input_path`, and return a report as JSON-able values. Its counts are those of the whole
    output, with the lines that a stopped run had written.

    Args:
        made_with: The model's name or folder; a stopped run continues only with the same one.
        input_path: JSON lines with "text" and optionally "text_pair".
        output_path: The file for the same lines with the answers.
        opened: Makes the context that answers, after the input was read.
        encrypted: Whether it answers on secret shares.
        on_error: What to do about a line that cannot be answered.
        windows: Windows of a text, and the tokens that they share; a stopped run continues only with the same.
        abstain_below: The probability below which a label is withheld; the answers come with it.
        verify: Share of the batches that are asked twice, and the answers tell: the report counts those that differ.

    Raises:
        SecureRouterValueError: A line is wrong (its number is named, its text is not repeated), or the output cannot
            be written.
    """
    if output_path.is_dir() or output_path.resolve() == input_path.resolve():
        raise SecureRouterValueError(f"`output` must be a file of its own, got {str(output_path)!r}.")
    if not output_path.absolute().parent.is_dir():
        raise SecureRouterValueError(f"`output` lies in a folder that does not exist: {str(output_path)!r}.")
    content = input_path.read_bytes()
    rows = rows_of(content, input_path)
    if on_error is OnError.STOP:
        checked_records(rows)
    if any("label" in (row.record or {}) for row in rows):
        log('The lines have a "label" already; the output holds the predicted one in its place.')
    # So that a line of a stopped run tells its own answer, and no field of the input.
    asked_once: Record = {"verified": None} if verify else {}
    if any(asked_once.keys() & (row.record or {}).keys() for row in rows):
        log('The lines have a "verified" already; the output holds what --verify found in its place.')

    with contextlib.ExitStack() as stack:
        answering = stack.enter_context(opened())
        partial = _partial_path(output_path, content, made_with, encrypted, on_error, windows, abstain_below, verify)
        file = stack.enter_context(_open_partial(partial))
        bar = stack.enter_context(tqdm(total=len(rows), unit="text"))
        ends = _batch_ends(rows, answering.batch_size)
        answered = _drop_incomplete_batch(file, ends)
        done = len(answered)
        if done:
            log(f"Going on after {done} of {len(rows)} lines.")
            bar.update(done)
        starts = [done, *(end for end in ends if end > done)]
        for start, end in itertools.pairwise(starts):
            batch = rows[start:end]
            answers = _answers(answering, batch, on_error)
            for row in batch:
                file.write(as_line((row.record or {"line": row.number}) | asked_once | answers[row.number]))
            answered += answers.values()
            file.flush()
            bar.update(len(batch))
        os.fsync(file.fileno())
        os.replace(partial, output_path)
    differing = sum(answer.get("verified") is False for answer in answered)
    return {
        "input": str(input_path),
        "output": str(output_path),
        "lines": len(rows),
        "skipped": sum(answer["logits"] is None for answer in answered),
        "abstained": sum(answer["label"] is None and answer["logits"] is not None for answer in answered),
        "resumed_after": done,
        "protocol": answering.protocol,
        "routing_privacy": answering.routing_privacy,
        "cost": answering.cost,
        **({} if verify is None else {"differing": differing if verify else 0}),
    }


def say_what_was_written(report: dict[str, Any]) -> None:
    """Say, on stderr, how many lines a report counts, and how many of them were skipped."""
    log(f"{report['lines']} lines written to {report['output']}.")
    if report["skipped"]:
        log(f'{report["skipped"]} of them have no answer; their "error" says why.')
    if report["abstained"]:
        log(f"{report['abstained']} of them have no label, since the model was not sure enough.")


def _answers(answering: Answering, batch: list[Row], on_error: OnError) -> dict[int, Record]:
    """What is added to each line of a batch, by its number: an answer, or the reason why there is none.

    Raises:
        SecureRouterValueError: A line cannot be answered, and is not to be skipped.
    """
    found = {row.number: _no_answer(row.problem) for row in batch if row.problem is not None}
    asked = [(row.number, row.record) for row in batch if row.problem is None and row.record is not None]
    while asked:
        try:
            answers = answering([text_of(record) for _, record in asked])
        except BadRowsError as error:  # known only once the texts were tokenized
            bad = {asked[place][0]: problem for place, problem in error.rows.items()}
            if on_error is OnError.STOP:
                raise bad_lines(bad) from None
            found |= {number: _no_answer(problem) for number, problem in bad.items()}
            asked = [(number, record) for number, record in asked if number not in bad]
            continue
        for (number, _), answer in zip(asked, answers, strict=True):
            found[number] = {
                "label": answer.label,
                "score": answer.score,
                "logits": answer.logits,
                "expert": answer.expert,
            }
            if answer.labels is not None:
                found[number] |= {"labels": answer.labels, "scores": answer.scores}
            if answer.verified is not None:
                found[number]["verified"] = answer.verified
            if answer.in_bounds is not None:
                found[number]["in_bounds"] = answer.in_bounds
        break
    return found


def _no_answer(problem: str) -> Record:
    return {"label": None, "score": None, "logits": None, "expert": None, "error": f"The line {problem}."}


def _batch_ends(rows: list[Row], size: int) -> list[int]:
    """Where batches end: each has `size` lines that can be answered, and the lines between them that cannot."""
    ends, count = [], 0
    for index, row in enumerate(rows):
        if row.problem is None:
            if count == size:
                ends.append(index)
                count = 0
            count += 1
    return [*ends, len(rows)]


class Answering(Protocol):
    """Answers one batch after another, and adds up their costs."""

    @property
    def protocol(self) -> str: ...

    @property
    def routing_privacy(self) -> str: ...

    @property
    def batch_size(self) -> int:
        """Texts of a batch; a stopped run repeats at most one batch."""

    @property
    def cost(self) -> dict[str, Any] | None: ...

    def __call__(self, texts: list[Text]) -> list[Classified]: ...


class Clear:
    """Answers in clear text, with the experts that would answer under encryption: under "quota" by quotas.

    Args:
        model: A pool or a plain classifier, in evaluation mode.
        tokenizer: Its tokenizer.
        windows: Windows of a text, and the tokens that they share.
        abstain_below: The probability below which a label is withheld.
    """

    protocol = "clear"
    cost = None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        windows: tuple[int, int] = (1, 0),
        abstain_below: float | None = None,
    ) -> None:
        self.model, self.tokenizer, self.windows, self.abstain_below = model, tokenizer, windows, abstain_below
        config: Any = model.config
        self.routing_privacy: str = getattr(config, "routing_privacy", "revealed")  # a plain classifier has none
        self.quotas = quotas_of(config) if self.routing_privacy == "quota" else None
        size = sum(self.quotas) if self.quotas else 1
        self.batch_size = max(1, BATCH_SIZE // size) * size

    def __call__(self, texts: list[Text]) -> list[Classified]:
        from hf_securerouter.classification import classify

        return classify(self.model, self.tokenizer, texts, self.quotas, *self.windows, self.abstain_below)


def quotas_of(config: SecureRouterConfig) -> list[int]:
    """How many texts of a batch each expert serves under "quota": one each unless the config says otherwise."""
    return config.quotas or [1] * config.num_experts


class Encrypted:
    """Answers on secret shares.

    Args:
        config: Names the labels and the problem type.
        session: An open session.
        verify: Share of the batches that are asked twice under fresh masks.
        windows: Windows of a text, and the tokens that they share.
        abstain_below: The probability below which a label is withheld.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        session: Session,
        verify: float = 0.0,
        windows: tuple[int, int] = (1, 0),
        abstain_below: float | None = None,
    ) -> None:
        self.config, self.session, self.verify = config, session, verify
        self.windows, self.abstain_below = windows, abstain_below
        self.protocol, self.routing_privacy = session.manifest.protocol, session.manifest.routing_privacy
        self.batch_size = session.batch_size
        self._costs: list[Cost] = []

    @property
    def cost(self) -> dict[str, Any] | None:
        return type(self._costs[0]).total(self._costs).to_dict() if self._costs else None

    def __call__(self, texts: list[Text]) -> list[Classified]:
        from hf_securerouter.classification import classify_encrypted

        answers, cost = classify_encrypted(
            self.config, self.session, texts, self.verify, *self.windows, self.abstain_below
        )
        self._costs.append(cost)
        return answers


def _partial_path(
    output_path: Path,
    content: bytes,
    model_path: str,
    encrypted: bool,
    on_error: OnError = OnError.STOP,
    windows: tuple[int, int] = (1, 0),
    abstain_below: float | None = None,
    verify: float | None = None,
) -> Path:
    """Name the unfinished output after input, model and mode, so that only a run with the same ones continues it."""
    fingerprint = hashlib.sha256(content)
    fingerprint.update(f"{model_path} {encrypted} {on_error}".encode())
    if windows != (1, 0):
        fingerprint.update(f" {windows}".encode())
    if abstain_below is not None:
        fingerprint.update(f" {abstain_below}".encode())
    if verify:
        fingerprint.update(f" verify {verify}".encode())
    if Path(model_path).is_dir():
        for file in sorted(path for path in Path(model_path).rglob("*") if path.suffix in _OF_A_MODEL):
            if file.is_file():
                status = file.stat()
                name = file.relative_to(model_path)
                fingerprint.update(f"{name} {status.st_size} {status.st_mtime_ns}".encode())
    else:
        fingerprint.update(f" {commit_of(model_path)}".encode())
    return output_path.with_name(f".{output_path.name}.{fingerprint.hexdigest()[:16]}.partial")


def _open_partial(path: Path) -> BinaryIO:
    """Open the unfinished output for this process alone; texts are private, so only the owner may read it.

    Its name can be guessed: in a folder of several users another one may have put a link or a file in its place.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise SecureRouterValueError(f"`output`: {str(path)!r} is a link, which this run did not make.") from None
    file = os.fdopen(descriptor, "r+b")
    if os.fstat(descriptor).st_uid != os.geteuid():
        file.close()
        raise SecureRouterValueError(f"`output`: {str(path)!r} is of another user: remove it, or name another output.")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SecureRouterValueError(
            f"`output`: another run is writing {str(path)!r}; wait for it or stop it."
        ) from None
    return file


def _drop_incomplete_batch(file: BinaryIO, ends: list[int]) -> list[Record]:
    """Cut off the lines after the last complete batch of a stopped run; return the lines that stay.

    The answer to a text may depend on the other texts of its batch (quotas, rounding), so a continued run has to form
    the same batches as an uninterrupted run.
    """
    lines = file.read().splitlines(keepends=True)
    complete = sum(line.endswith(b"\n") for line in lines)
    done = max(end for end in (0, *ends) if end <= complete)
    file.truncate(sum(map(len, lines[:done])))
    file.seek(0, os.SEEK_END)
    return [json.loads(line) for line in lines[:done]]
