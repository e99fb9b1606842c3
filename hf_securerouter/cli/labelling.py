# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""From a file of texts to the same file with labels, in batches; a stopped run continues where it was."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from tqdm import tqdm

from hf_securerouter.cli.output import log
from hf_securerouter.errors import SecureRouterValueError


if TYPE_CHECKING:  # `securerouter --help` should not wait for torch and transformers
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_securerouter.classification import Classified, Text
    from hf_securerouter.configuration_securerouter import SecureRouterConfig
    from hf_securerouter.mpc.net.cost import Cost
    from hf_securerouter.mpc.sessions.session import Session


BATCH_SIZE = 32  # most texts of a batch in clear text; with quotas, as many whole quota batches as fit

Record = dict[str, Any]


def label_file(
    made_with: str,
    input_path: Path,
    output_path: Path,
    opened: Callable[[], contextlib.AbstractContextManager[Answering]],
    encrypted: bool,
) -> dict[str, Any]:
    """Label the lines of `input_path`, and return a report as JSON-able values.

    Args:
        made_with: The model's name or folder; a stopped run continues only with the same one.
        input_path: JSON lines with "text" and optionally "text_pair".
        output_path: The file for the same lines with the answers.
        opened: Makes the context that answers, after the input was read.
        encrypted: Whether it answers on secret shares.

    Raises:
        SecureRouterValueError: A line is wrong (its number is named, its text is not repeated), or the output cannot
            be written.
    """
    if output_path.is_dir() or output_path.resolve() == input_path.resolve():
        raise SecureRouterValueError(f"`output` must be a file of its own, got {str(output_path)!r}.")
    if not output_path.absolute().parent.is_dir():
        raise SecureRouterValueError(f"`output` lies in a folder that does not exist: {str(output_path)!r}.")
    records = read_records(input_path)
    if any("label" in record for record in records):
        log('The lines have a "label" already; the output holds the predicted one in its place.')

    partial = _partial_path(output_path, input_path, made_with, encrypted)
    with (
        opened() as answering,
        _open_partial(partial) as file,
        tqdm(total=len(records), unit="text") as bar,
    ):
        done = _drop_incomplete_batch(file, answering.batch_size, len(records))
        if done:
            log(f"Going on after {done} of {len(records)} lines.")
            bar.update(done)
        size = answering.batch_size
        for start in range(done, len(records), size):
            batch = records[start : start + size]
            for record, answer in zip(batch, answering([text_of(r) for r in batch]), strict=True):
                line = record | {
                    "label": answer.label,
                    "score": answer.score,
                    "logits": answer.logits,
                    "expert": answer.expert,
                }
                if answer.verified is not None:
                    line["verified"] = answer.verified
                file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
            file.flush()
            bar.update(len(batch))
        os.fsync(file.fileno())
        os.replace(partial, output_path)
    return {
        "input": str(input_path),
        "output": str(output_path),
        "lines": len(records),
        "resumed_after": done,
        "protocol": answering.protocol,
        "routing_privacy": answering.routing_privacy,
        "cost": answering.cost,
    }


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
    """

    protocol = "clear"
    cost = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        config: Any = model.config
        self.routing_privacy: str = getattr(config, "routing_privacy", "revealed")  # a plain classifier has none
        self.quotas = quotas_of(config) if self.routing_privacy == "quota" else None
        size = sum(self.quotas) if self.quotas else 1
        self.batch_size = max(1, BATCH_SIZE // size) * size

    def __call__(self, texts: list[Text]) -> list[Classified]:
        from hf_securerouter.classification import classify

        return classify(self.model, self.tokenizer, texts, self.quotas)


def quotas_of(config: SecureRouterConfig) -> list[int]:
    """How many texts of a batch each expert serves under "quota": one each unless the config says otherwise."""
    return config.quotas or [1] * config.num_experts


class Encrypted:
    """Answers on secret shares.

    Args:
        config: Names the labels and the problem type.
        session: An open session.
        verify: Share of the batches that are asked twice under fresh masks.

    Attributes:
        differing: How many answers were other ones when they were asked twice.
    """

    def __init__(self, config: PreTrainedConfig, session: Session, verify: float = 0.0) -> None:
        self.config, self.session, self.verify = config, session, verify
        self.protocol, self.routing_privacy = session.manifest.protocol, session.manifest.routing_privacy
        self.batch_size = session.batch_size
        self.differing = 0
        self._costs: list[Cost] = []

    @property
    def cost(self) -> dict[str, Any] | None:
        return type(self._costs[0]).total(self._costs).to_dict() if self._costs else None

    def __call__(self, texts: list[Text]) -> list[Classified]:
        from hf_securerouter.classification import classify_encrypted

        answers, cost = classify_encrypted(self.config, self.session, texts, self.verify)
        self._costs.append(cost)
        self.differing += sum(answer.verified is False for answer in answers)
        return answers


def read_records(path: Path) -> list[Record]:
    """Read and check JSON lines; empty lines are skipped.

    Raises:
        SecureRouterValueError: The file is not UTF-8, has no line, or has a line that is not as required.
    """
    records = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise SecureRouterValueError(f"`input` {str(path)!r} is not UTF-8 text (byte {error.start}).") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        problem = None
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except ValueError:
            problem = "is not JSON"
        else:
            if not isinstance(record, dict):
                problem = "is not a JSON object"
            elif not isinstance(record.get("text"), str):
                problem = 'has no "text" that is a string'
            elif not isinstance(record.get("text_pair"), str | None):
                problem = 'has a "text_pair" that is not a string'
        if problem is not None:
            raise SecureRouterValueError(
                f'Line {number} of `input` {problem}. Each line must be like {{"text": "..."}}, with "text_pair" for '
                "the second text of a pair."
            )
        records.append(record)
    if not records:
        raise SecureRouterValueError(f"`input` {str(path)!r} holds no line.")
    return records


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")  # Python's json reads and writes NaN, which is not JSON


def text_of(record: Record) -> Text:
    """The text of a line, or its pair of texts."""
    pair = record.get("text_pair")
    return record["text"] if pair is None else (record["text"], pair)


def _partial_path(output_path: Path, input_path: Path, model_path: str, encrypted: bool) -> Path:
    """Name the unfinished output after input, model and mode, so that only a run with the same ones continues it."""
    fingerprint = hashlib.sha256(input_path.read_bytes())
    fingerprint.update(f"{model_path} {encrypted}".encode())
    if Path(model_path).is_dir():
        for file in sorted(
            path for path in Path(model_path).iterdir() if path.suffix in {".json", ".safetensors", ".bin"}
        ):
            status = file.stat()
            fingerprint.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return output_path.with_name(f".{output_path.name}.{fingerprint.hexdigest()[:16]}.partial")


def _open_partial(path: Path) -> BinaryIO:
    """Open the unfinished output for this process alone; texts are private, so only the owner may read it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SecureRouterValueError(
            f"`output`: another run is writing {str(path)!r}; wait for it or stop it."
        ) from None
    return file


def _drop_incomplete_batch(file: BinaryIO, batch_size: int, total: int) -> int:
    """Cut off the lines after the last complete batch of a stopped run; return the number of lines that stay.

    The answer to a text may depend on the other texts of its batch (quotas, rounding), so a continued run has to form
    the same batches as an uninterrupted run.
    """
    lines = file.read().splitlines(keepends=True)
    done = sum(line.endswith(b"\n") for line in lines)
    if done < total:
        done -= done % batch_size
    file.truncate(sum(map(len, lines[:done])))
    file.seek(0, os.SEEK_END)
    return done
