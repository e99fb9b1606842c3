# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A local session: both parties and the dealer as processes of this machine, owner and client in the caller's process.

It serves to try and to measure a model: one user owns all roles, so the shares protect nothing from that user.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import SecureRouterValueError
from ...known_arguments import refuses_unknown
from ...value_checks import check_integer
from ..conversion.clear_model import ClearModel
from ..conversion.converted import Converted
from ..models.manifest import BATCH_SIZE
from ..net.channel import Channel, ChannelError
from ..net.delay import DelayedNetwork, check_delay
from ..net.sockets import check_seconds
from ..protocols.masked.memory import fit_batch, sharing_bytes
from ..tuples.dealer_client import SILENCE
from .fork_server import ForkedProcess, ForkError, ForkServer, shared_fork_server
from .session import SecureResult, Session, SessionError
from .verification import refuse_other_answers, tolerance


__all__ = ["LocalSession", "SecureResult", "SessionError"]

ROLE_PROGRAM = ("-m", "hf_securerouter.mpc.sessions.role_process")

_LOSSES = ("LinkError", "SupplyError", "ChannelError")  # what a role reports when it has lost another
_END_SECONDS = 60.0  # in which the kernel ends a killed role and frees its memory
_RELAY = "relay"  # reports the end of the relay among the roles' events; no role has this name


@dataclass
class _Role:
    process: ForkedProcess
    channel: Channel


class LocalSession(Session):
    """Starts the roles, shares the weights and answers queries; a context manager.

    All roles end with the `with` block, also after an exception, Ctrl-C or a role's death. The answers to the first
    batch are compared with those of the model in clear text.

    Args:
        model (`Converted`): The converted model.
        timeout (`float`): Seconds to wait for set-up, and for the answer to each input of a query.
        batch_size (`int`): Most inputs of a batch; under `quota` see `Session`.
        delay_ms (`float`, *optional*): One-way delay between the two parties, in milliseconds, to measure the effect
            of a network; see `DelayedNetwork`. Messages of the dealer and the client are not delayed.
        silence (`float`): Seconds without a sign of life from the dealer after which a party counts it as hung.
        debug (`bool`): The parties open every value that has a bound, and check it. They learn the inputs.
        memory (`int`, *optional*): Bytes that all roles together may take, by which batches are made smaller; by
            default half of what is free. The client's process comes on top.

    Example:
        ```python
        with secure.local_session() as session:
            result = session(["first text", ("a text", "and its pair")])
            print(result.labels, result.cost.to_dict())
        ```

    Raises:
        `DelayError`: This machine cannot delay the parties' link.
        `SecureRouterValueError`: `timeout` or `silence` is no time to wait, `delay_ms` is out of range, the model's
            protocol and provider cannot be delayed, its protocol cannot be debugged or has no plans, `batch_size` or
            `memory` is no number above 0, or not even the smallest batch fits into `memory`.
        `SessionError`: A role died, did not answer in time, or reported an error.
        `VerificationError`: The answers to the first batch are not those of the model in clear text.
    """

    @refuses_unknown
    def __init__(
        self,
        model: Converted,
        timeout: float = 600.0,
        batch_size: int = BATCH_SIZE,
        delay_ms: float | None = None,
        silence: float = SILENCE,
        debug: bool = False,
        memory: int | None = None,
    ) -> None:
        self.silence = check_seconds("silence", silence)
        self.delay_ms = None if delay_ms is None else check_delay(delay_ms)
        if debug and model.manifest.protocol != "masked":
            raise SecureRouterValueError(
                f"`debug` checks the bounds of protocol 'masked', got {model.manifest.protocol!r}: leave it out."
            )
        if delay_ms is not None and model.manifest.protocol == "crypten" and "dealer" in model.manifest.roles:
            raise SecureRouterValueError(
                "`delay_ms` delays the link of two parties, and CrypTen's dealer needs links to both of them: to "
                "measure, convert with `provider='tfp'`, where party 0 deals."
            )
        batch_size = check_integer("batch_size", batch_size, 1)
        if memory is not None:
            given: Any = memory
            whole = int(given) if isinstance(given, float) and given.is_integer() else given  # such as 4e9
            memory = check_integer("memory", whole, 1, "leave it out for half of what is free")
        self._ahead: int | None = None
        if model.manifest.protocol == "masked":
            own = sharing_bytes(model.manifest)
            fitting = fit_batch(model.manifest, batch_size, memory, model.manifest.roles, own)
            batch_size, self._ahead = fitting.batch, fitting.ahead
        elif memory is not None:
            raise SecureRouterValueError(
                f"`memory` needs the plans of protocol 'masked', got {model.manifest.protocol!r}: leave it out."
            )
        super().__init__(model.manifest, model.client, model.sharing, timeout, batch_size)
        self.model = model
        self.debug = debug
        self._roles: dict[str, _Role] = {}
        self._folder: Path | None = None
        self._network: DelayedNetwork | None = None
        self._servers = contextlib.ExitStack()
        self._compared = False

    def _open(self) -> None:
        try:
            self._start()
        except ForkError as error:
            raise SessionError(f"{error} No role was started.") from error
        for shares in self.model.sharing.weights(self.model.weights):
            for role, tensors in shares.items():
                self._send(role, {"kind": "weights"}, tensors)
        for role in self._roles:
            self._send(role, {"kind": "ready"})
        self._collect("ready", self.timeout)

    def _close(self) -> None:
        roles, self._roles = list(self._roles.values()), {}
        self._channels = {}
        folder, self._folder = self._folder, None
        network, self._network = self._network, None
        with contextlib.ExitStack() as rest:  # tries each part, the last one first, whatever happens to another
            if folder is not None:
                rest.callback(shutil.rmtree, folder, ignore_errors=True)
            if network is not None:
                rest.callback(network.close)
            rest.callback(self._servers.close)
            for role in roles:
                rest.callback(role.channel.close)
                rest.callback(role.process.close)
                rest.callback(_wait_until_ended, role.process)
            for role in roles:
                rest.callback(role.process.kill)

    def _compare(self, batch: Mapping[str, Tensor], logits: Tensor, experts: list[int] | None) -> None:
        """Compare the first batch with the model in clear text, which the owner has."""
        if not self._compared:
            self._compared = True
            errors = ClearModel(self.model).error(batch, logits, experts)
            refuse_other_answers(errors, logits, tolerance(self.manifest))

    def _start(self) -> None:
        # Mode 0700. The roles find each other through files in this folder, and their stderr is logged to it.
        self._folder = Path(tempfile.mkdtemp(prefix="securerouter-"))
        manifest = self.model.manifest
        if self.delay_ms is not None:
            self._network = DelayedNetwork(self.delay_ms / 1000)
            threading.Thread(target=self._watch, args=(self._network,), daemon=True).start()
        for name in manifest.roles:
            server, environment = self._place(name)
            ours, theirs = socket.socketpair()
            try:
                with theirs, (self._folder / f"{name}.log").open("wb") as log:
                    process = server.start([*ROLE_PROGRAM, name], theirs.fileno(), log, os.environ | environment)
                self._roles[name] = _Role(process, Channel(ours, name))
            except BaseException:
                ours.close()  # which ends a role that was started all the same
                raise
            self._add(name, self._roles[name].channel)
        for name in manifest.roles:
            self._send(
                name,
                {
                    "kind": "setup",
                    "manifest": manifest.to_dict(),
                    "folder": str(self._folder),
                    "threads": max(1, (os.cpu_count() or 2) // 2),
                    "timeout": self.timeout,
                    "silence": self.silence,
                    "debug": self.debug,
                    "ahead": self._ahead,
                },
            )

    def _watch(self, network: DelayedNetwork) -> None:
        network.wait()
        self._events.put((_RELAY, ChannelError("The relay ended.")))

    def _place(self, name: str) -> tuple[ForkServer, dict[str, str]]:
        """The server that starts a role, for a party of a delayed link in its network namespace; added variables."""
        if self._network is None or name == "dealer":
            return self._servers.enter_context(shared_fork_server()), {}
        server = ForkServer(self._network.entering(int(name[-1])), self._network.descriptors)
        self._servers.callback(server.close)
        return server, self._network.environment

    def _failure(self, role: str, event: Any) -> SessionError:
        """The error for the user: how a role's process ended, or the error that a role reported."""
        if role == _RELAY:
            return SessionError("The relay of the delayed link ended, and the session is over.")
        try:
            return self._ending(role, event)
        except ForkError as error:
            return SessionError(f"{role} has ended, and so has the session: {error}")

    def _reason(self, role: str, reported: str) -> tuple[str, str]:
        """The first reported error that is not about the loss of another role, and who reported it."""
        found = [(role, reported)]
        while not self._events.empty():
            other, event = self._events.get()
            if not isinstance(event, ChannelError) and "error" in event[0]:
                found.append((other, event[0]["error"]))
        return next((one for one in found if not one[1].startswith(_LOSSES)), found[0])

    def _ending(self, role: str, event: Any) -> SessionError:
        if not isinstance(event, ChannelError):
            # When one role dies the others fail too, and their errors may arrive first.
            time.sleep(0.5)
            killed = [name for name, other in self._roles.items() if (other.process.poll() or 0) < 0]
            if not killed:
                role, reported = self._reason(role, event[0].get("error", "unexpected answer"))
                return SessionError(f"{role} failed and the session is over: {reported}")
            role = killed[0]
        try:
            status = self._roles[role].process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return SessionError(f"{role} closed its channel, and the session is over.")
        if status < 0:
            return SessionError(f"{role} was killed by signal {-status}, and the session is over.")
        lines = (self._folder / f"{role}.log").read_text(errors="replace").splitlines() if self._folder else []
        last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), ".")
        return SessionError(f"{role} exited, and the session is over{last}")


def _wait_until_ended(process: ForkedProcess) -> None:
    """Wait until a killed process has ended, and take its status from the server, if that has not ended."""
    with contextlib.suppress(ForkError):
        process.wait(_END_SECONDS)
