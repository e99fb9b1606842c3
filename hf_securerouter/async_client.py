# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The client of deployed servers for `asyncio`: questions that wait at the same time are asked in one batch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from huggingface_hub import TextClassificationOutputElement
from torch import Tensor

from hf_securerouter.client import BEST, SecureRouterClient, as_elements, as_rows
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.texts import Text


Encoded = dict[str, Tensor]


class AsyncSecureRouterClient:
    """[`SecureRouterClient`] with methods to await; made by `from_pretrained`.

    One thread asks the servers. While it waits, further questions are gathered, and those that fit are asked in one
    batch: under `quota` a batch costs as much as a single text.

    Args:
        client (`SecureRouterClient`): Asks, in a thread.

    Example:
        ```python
        async with AsyncSecureRouterClient.from_pretrained("you/sst2-client", **servers, key="ada-key") as client:
            answers = await asyncio.gather(*(client.text_classification(text) for text in texts))
        ```
    """

    def __init__(self, client: SecureRouterClient) -> None:
        self.client = client
        self._waiting: list[tuple[Encoded, asyncio.Future[Tensor]]] = []
        self._asking: asyncio.Task[None] | None = None

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike, **options: Any) -> Self:
        """Load a client's folder, from this machine or from the Hub; arguments and errors of
        [`SecureRouterClient.from_pretrained`]."""
        return cls(SecureRouterClient.from_pretrained(model, **options))

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.client.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect from the servers, after the questions that are being asked. Safe to call twice."""
        if self._asking is not None and not self.client.session.in_a_fork:
            await asyncio.wait([self._asking])
        await asyncio.to_thread(self.client.close)

    @refuses_unknown
    async def __call__(
        self,
        inputs: Text | Mapping[str, Any] | Iterable[Text | Mapping[str, Any]],
        top_k: int | None = BEST,
        function_to_apply: str | None = None,
    ) -> Any:
        """Classify one text or several; arguments, result and errors of a [`SecureRouterClient`]'s call."""
        self.client.session.refuse_in_a_fork()
        rows, shape = as_rows(inputs, top_k)
        ranked = self.client.ranking(function_to_apply)
        encoded = self.client.session.client.tokenize(rows)  # so that rows that cannot be read fail this call alone
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._waiting.append((encoded, future))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return shape(ranked(await future))

    @refuses_unknown
    async def text_classification(
        self, text: str, *, top_k: int | None = None, function_to_apply: str | None = None
    ) -> list[TextClassificationOutputElement]:
        """Classify one text, as `AsyncInferenceClient.text_classification`; see [`SecureRouterClient`]."""
        return as_elements(await self(text, top_k, function_to_apply))

    async def _ask(self) -> None:
        """Ask until no question waits; each gets its own rows, or the error of its batch."""
        while taken := self._next_batch():
            sizes = [len(encoded["input_ids"]) for encoded, _ in taken]
            joined = {name: torch.cat([encoded[name] for encoded, _ in taken]) for name in taken[0][0]}
            try:
                parts = (await asyncio.to_thread(self.client.ask, joined)).split(sizes)
            except Exception as error:
                for _, future in taken:
                    if not future.done():  # as when its caller was cancelled
                        future.set_exception(error)
            else:
                for part, (_, future) in zip(parts, taken, strict=True):
                    if not future.done():
                        future.set_result(part)

    def _next_batch(self) -> list[tuple[Encoded, asyncio.Future[Tensor]]]:
        """The questions that come next: the first that waits, and those after it that fit into the same batch."""
        self._waiting = [one for one in self._waiting if not one[1].done()]
        taken: list[tuple[Encoded, asyncio.Future[Tensor]]] = []
        rows = 0
        for encoded, future in self._waiting:
            rows += len(encoded["input_ids"])
            if taken and (rows > self.client.session.batch_size or encoded.keys() != taken[0][0].keys()):
                break
            taken.append((encoded, future))
        del self._waiting[: len(taken)]
        return taken
