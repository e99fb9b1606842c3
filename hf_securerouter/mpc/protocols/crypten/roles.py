# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The parties and the dealer of the reference protocol. Imports CrypTen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...models.manifest import Manifest
from ...net.ledger import Ledger
from ..base import Program
from .communicator import connect, crypten, deal, on_host, start_dealing, stop_dealing
from .encoder import CryptenEncoder
from .functions import argmax_one_hot


RANKS = {"party0": 0, "party1": 1, "dealer": 2}


class _CryptenRole(Program):
    def __init__(self, role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> None:
        self.manifest = manifest
        self.ledger = ledger
        if manifest.device != "cpu":  # one card for all, or one each
            torch.cuda.set_device(RANKS[role] % torch.cuda.device_count())
        # All roles of a local session are on this machine, so gloo listens on loopback only.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.communicator = connect(
            RANKS[role],
            f"file://{setup['folder']}/rendezvous",
            provider=manifest.provider,
            timeout=setup["timeout"],
            ledger=ledger,
        )


class CryptenDealer(_CryptenRole):
    """CrypTen's trusted third party: answers party 0's requests for tuples, and learns only their shapes."""

    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        raise RuntimeError("The dealer was sent weights.")

    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        deal(self.communicator, self.ledger)
        return {}, {}


class CryptenParty(_CryptenRole):
    """A computing party: holds one share of the weights and of every input."""

    def __init__(self, role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> None:
        super().__init__(role, manifest, setup, ledger)
        self._weights: dict[str, dict[str, Any]] = {name: {} for name in manifest.members}
        # Heads have different weight names, so a router and the expert whose encoder it shares use one dict.
        if manifest.router is not None:
            self._weights["router"] = self._weights[manifest.encoder_of("router")]
        self._encoders = {
            name: CryptenEncoder(spec, self._weights[name], ledger) for name, spec in manifest.members.items()
        }

    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        for name, share in tensors.items():
            member = next(member for member in self._weights if name.startswith(f"{member}."))
            self._weights[member][name.removeprefix(f"{member}.")] = _secret(share, self.manifest.device)

    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with self.ledger.phase("online"), crypten.no_grad(), self._dealing():
            inputs = {name: _secret(share, self.manifest.device) for name, share in tensors.items()}
            bias = inputs.pop("attention_bias")
            chosen, summary = self._choose(inputs, bias, header["batch"])
            # Each expert runs once, on its rows; an expert that shares its encoder with the router runs only its head.
            rows: list[Any] = [None] * header["batch"]
            for index in sorted(set(chosen)):
                members = [hidden for hidden, expert in enumerate(chosen) if expert == index]
                name = f"experts.{index}"
                encoder = self._encoders[name]
                own = torch.tensor(members, device=self.manifest.device)
                if summary is not None and name == self.manifest.encoder_of("router"):
                    logits = encoder.head(summary[own])
                else:
                    logits = encoder(inputs[name][own], bias[own][:, : self.manifest.length_of(name)])
                for position, hidden in enumerate(members):
                    rows[hidden] = on_host(logits.share[position])
        return {"experts": chosen}, {"logits": torch.stack(rows).contiguous()}

    def _choose(self, inputs: dict[str, Any], bias: Any, batch: int) -> tuple[list[int], Any]:
        """The expert of each row, and the hidden states of the router's encoder.

        Only the one-hot of the best score is opened, to both parties.
        """
        if not self.manifest.routes:
            return [0] * batch, None
        router = self._encoders["router"]
        length = self.manifest.length_of("router")
        summary = router.run_encoder(inputs[self.manifest.encoder_of("router")], bias[:, :length])
        scores = router.head(summary)
        with self.ledger.gate("argmax"):
            return on_host(argmax_one_hot(scores).reveal()).argmax(-1).tolist(), summary

    @contextmanager
    def _dealing(self) -> Iterator[None]:
        start_dealing(self.ledger)
        yield
        stop_dealing(self.communicator)


def _secret(share: Tensor, device: str) -> Any:
    return crypten.mpc.MPCTensor.from_shares(share.to(device))
