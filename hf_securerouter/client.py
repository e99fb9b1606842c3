# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Classifies texts by deployed servers, with the call and the result of transformers' text-classification pipeline."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import CommitInfo, HfApi, TextClassificationOutputElement
from torch import Tensor
from transformers import PreTrainedConfig

from hf_securerouter.errors import FileError, SecureRouterValueError, warn
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.mpc.deployment.public_folder import CARD, copy_public, find_folder, is_on_the_hub
from hf_securerouter.mpc.deployment.remote_session import RETRIES, RemoteSession
from hf_securerouter.mpc.deployment.role_folder import RoleFolder, read_manifest
from hf_securerouter.mpc.models.manifest import PARTIES
from hf_securerouter.mpc.net.sockets import Address, parse_address
from hf_securerouter.texts import Text
from hf_securerouter.value_checks import check_integer


BEST: Any = ""  # in place of `top_k`: the best label alone, as in transformers' pipeline

Answer = dict[str, Any]
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": lambda logits: logits.sigmoid(),
    "none": lambda logits: logits,
}
_OF_PROBLEM = {"regression": "none", "multi_label_classification": "sigmoid"}  # softmax for one label of several


class SecureRouterClient:
    """Asks two servers, neither of which sees a text or an answer; made by `from_pretrained`.

    It is called as a text-classification pipeline of transformers, or by the method of huggingface_hub's
    `InferenceClient`. It connects when it is first asked, or in a `with` block, and again after a failure. Threads may
    share it; their questions are asked one after another.

    It differs from a pipeline for a model of one output whose config names no `problem_type`: this is a regression
    here, as in training, and the score is its value. A pipeline applies a sigmoid: pass `function_to_apply="sigmoid"`.

    Args:
        folder (`Path`): The client's folder.
        session (`RemoteSession`, *optional*): Of the two servers; None for a folder that is only saved or pushed.

    Example:
        ```python
        servers = {"party0": "first.example:9000", "party1": "second.example:9000"}
        with SecureRouterClient.from_pretrained("you/sst2-client", **servers, key="ada-key") as client:
            print(client("A warm, funny film."))  # [{"label": "positive", "score": 0.98}]
            print(client([{"text": "A text", "text_pair": "and its pair"}, "Bad."], top_k=None))
        ```
    """

    def __init__(self, folder: Path, session: RemoteSession | None = None) -> None:
        self.folder = folder
        self._session, self._lock = session, threading.Lock()

    @classmethod
    @refuses_unknown
    def from_pretrained(
        cls,
        model: str | os.PathLike,
        *,
        party0: str | Address | None = None,
        party1: str | Address | None = None,
        key: str | os.PathLike | None = None,
        pins: Mapping[str, str] | None = None,
        timeout: float = 600.0,
        retries: int = RETRIES,
        share_batches: bool = False,
        log: Callable[[str], None] = warn,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load a client's folder, from this machine or from the Hub.

        Args:
            model (`str` or `os.PathLike`): The folder `client` of a sharing, or the name of a repository with it.
            party0 (`str`), party1 (`str`): Where the servers listen, `"host:port"`, or a tuple of both. Left out for
                a client that only is to be saved or pushed.
            key (`str` or `os.PathLike`, *optional*): The folder of this client's key, made by `securerouter keygen`;
                None if it is in the client's folder, as in a trial. A repository has none.
            pins (`Mapping[str, str]`, *optional*): Fingerprints of the servers' keys by role, as their operators tell
                them. What is not pinned is said: whoever made the folder could have put own keys into it.
            timeout (`float`): Seconds to wait for the servers, and for the answer to each text.
            retries (`int`): How often a query that failed is asked again, with fresh shares.
            share_batches (`bool`): Under `quota`, whether other users' texts may fill a batch; see `RemoteSession`.
            log (callable): Takes a line that a person should read; a warning by default.
            revision (`str`), token (`str` or `bool`), cache_dir (`str` or `os.PathLike`), force_download (`bool`),
                local_files_only (`bool`): Of the Hub, as for every `from_pretrained`.

        Raises:
            `FileError`: A file of the folder is missing, cut or wrong.
            `SecureRouterValueError`: `model` is neither a client's folder nor open to this user on the Hub; one
                address is missing or wrong; `timeout` is no time to wait, or `retries` no number of times; a key is
                missing, has ended, or is not that of its pin.
            `SecureRouterError`: The Hub was not reached.
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        switches = {"force_download": force_download, "local_files_only": local_files_only}
        retries = check_integer("retries", retries, 0)
        folder = find_folder(model, **options, **switches)
        if party0 is None and party1 is None:
            read_manifest(folder)
            return cls(folder)
        if party0 is None or party1 is None:
            raise SecureRouterValueError("`party0` and `party1`: pass the addresses of both servers, `host:port`.")
        if key is None and is_on_the_hub(model):
            raise SecureRouterValueError(
                f"`key` is missing, and {str(model)!r} is a repository, which has none: make one with `securerouter "
                "keygen client`, have the servers' operators add its certificate, and pass its folder."
            )
        own = RoleFolder.load(folder, "client", key=None if key is None else Path(key), pins=pins)
        if not (folder / "tokenizer_config.json").is_file():
            what = "The client's folder has no tokenizer, without which no text can be read"
            raise FileError(what, str(folder), "share the model again, from a folder that has its tokenizer")
        for peer in own.identity.peers:
            if peer.role in PARTIES and peer.role not in (pins or {}):
                log(
                    f"Not compared with its operator's word: {peer}. Ask the operator, and if it is the same, pass it "
                    f"in `pins` (`--pin {peer.role}={peer.fingerprint}`)."
                )
        first, second = (parse_address(one) if isinstance(one, str) else one for one in (party0, party1))
        return cls(folder, RemoteSession(own, first, second, timeout, retries, share_batches, log))

    @property
    def session(self) -> RemoteSession:
        """The session behind it, whose results also have logits, experts and cost.

        Raises:
            `SecureRouterValueError`: The client was loaded without addresses.
        """
        if self._session is None:
            raise SecureRouterValueError(
                "This client has no servers to ask: pass `party0` and `party1` to `from_pretrained`."
            )
        return self._session

    @property
    def config(self) -> PreTrainedConfig:
        """The labels (`id2label`) and the problem type of the model."""
        labels = self.session.client.labels
        problem_type: Any = labels.problem_type
        return PreTrainedConfig(id2label=labels.names, problem_type=problem_type)

    def __enter__(self) -> Self:
        self.session.refuse_in_a_fork()
        with self._lock:
            self.session.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect from the servers, after a question that is being asked. Safe to call twice."""
        if self.session.in_a_fork:  # where the lock may be held by a thread of the other process
            self.session.close()
            return
        with self._lock:
            self.session.close()

    @refuses_unknown
    def __call__(
        self,
        inputs: Text | Mapping[str, Any] | Iterable[Text | Mapping[str, Any]],
        top_k: int | None = BEST,
        function_to_apply: str | None = None,
    ) -> Any:
        """Classify one text, or as many as there are in whole batches; as transformers' pipeline.

        Args:
            inputs (`str`, `dict` or iterable): A text, a dict with `text` and `text_pair`, or a list of such, see
                `as_texts`.
            top_k (`int`, *optional*): How many labels each result has, the best one first; None: all.
            function_to_apply (`str`, *optional*): What makes scores of logits: `"softmax"`, `"sigmoid"` or `"none"`;
                by default what the model's problem type asks for. A regression has its value as the score.

        Returns:
            `list[dict]`: `{"label": ..., "score": ...}` for each input; with `top_k`, a list of them for each input.
            For one input that is no list, its result alone, of a text without `top_k` in a list of one.

        Raises:
            `BadRowsError`: Inputs cannot be read; they are named, and nothing was sent.
            `SecureRouterValueError`: The inputs are no texts, there is no such function, or `top_k` is no number of
                labels.
            `MeetingError`: A server was not reached, or does not know this client.
            `SessionError`: A server failed or did not answer in time, as often as it was asked.
        """
        rows, shape = as_rows(inputs, top_k)
        ranked = self.ranking(function_to_apply)
        return shape(ranked(self.ask(rows)))

    @refuses_unknown
    def text_classification(
        self, text: str, *, top_k: int | None = None, function_to_apply: str | None = None
    ) -> list[TextClassificationOutputElement]:
        """Classify one text, as `InferenceClient.text_classification`.

        Args:
            text (`str`): The text.
            top_k (`int`, *optional*): How many labels the result has; by default all.
            function_to_apply (`str`, *optional*): As for a call.

        Returns:
            `list[TextClassificationOutputElement]`: Labels with their scores, the best one first.

        Raises:
            As a call.
        """
        return as_elements(self(text, top_k, function_to_apply))

    def ask(self, inputs: Any) -> Tensor:
        """The logits of a batch, (B, C) float32, asked over an open connection or a new one.

        Args:
            inputs: As for a session.

        Raises:
            As a call.
        """
        self.session.refuse_in_a_fork()
        with self._lock:
            if not self.session.is_open:
                self.session.__enter__()
            return self.session(inputs).logits

    def ranking(self, function_to_apply: str | None = None) -> Callable[[Tensor], list[list[Answer]]]:
        """A function from logits, (B, C), to all labels of each row with their scores, the best one first.

        Args:
            function_to_apply (`str`, *optional*): As for a call.

        Raises:
            `SecureRouterValueError`: There is no such function.
        """
        labels = self.session.client.labels
        name = function_to_apply or _OF_PROBLEM.get(labels.problem_type, "softmax")
        if name not in _FUNCTIONS:
            raise SecureRouterValueError(
                f"`function_to_apply` should be one of {', '.join(_FUNCTIONS)}, got {function_to_apply!r}."
            )

        def ranked(logits: Tensor) -> list[list[Answer]]:
            rows = [
                [{"label": labels.names[index], "score": score} for index, score in enumerate(row)]
                for row in _FUNCTIONS[name](logits).tolist()
            ]
            return [sorted(row, key=lambda answer: answer["score"], reverse=True) for row in rows]

        return ranked

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write what is public of the client's folder: no key, and nothing else but the files that a client reads.

        Args:
            save_directory (`str` or `os.PathLike`): A folder; made if it does not exist. A `README.md` in it stays.

        Raises:
            `FileError`: A file is missing or wrong.
            `SecureRouterValueError`: The folder is not a client's, or is damaged.
        """
        copy_public(self.folder, Path(save_directory), Path(save_directory).resolve().name)

    @refuses_unknown
    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload client",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Push what `save_pretrained` writes to the Hub. Whoever can read it there has the embedding layers.

        Args:
            repo_id (`str`): The repository; made if it does not exist. A `README.md` in it stays.
            commit_message (`str`): Of the commit.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str` or `bool`, *optional*): Of the Hub.
            revision (`str`, *optional*): The branch.
            create_pr (`bool`): Whether to open a pull request instead.

        Returns:
            `CommitInfo`

        Raises:
            As `save_pretrained`, and errors of huggingface_hub.
        """
        with tempfile.TemporaryDirectory() as place:
            copy_public(self.folder, Path(place), repo_id)
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/pr"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            kept = [CARD] if api.file_exists(repo_id, CARD, revision=revision) else None
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=place,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=kept,
            )


def as_rows(inputs: Any, top_k: int | None) -> tuple[Any, Callable[[list[list[Answer]]], Any]]:
    """What a session is asked for the inputs of a call, and a function from all labels of its rows to the result."""
    if top_k is not None and top_k != BEST:
        top_k = check_integer("top_k", top_k, 1, "pass None for all labels")
    is_one = isinstance(inputs, str) or (isinstance(inputs, Mapping) and isinstance(inputs.get("text"), str))

    def shape(found: list[list[Answer]]) -> Any:
        results: list[Any] = [row[0] if top_k == BEST else row[:top_k] for row in found]
        return results[0] if is_one and not (isinstance(inputs, str) and top_k == BEST) else results

    return [inputs] if is_one else inputs, shape


def as_elements(answers: Iterable[Answer]) -> list[TextClassificationOutputElement]:
    """Labels with scores as huggingface_hub's clients return them."""
    return [TextClassificationOutputElement(label=one["label"], score=one["score"]) for one in answers]
