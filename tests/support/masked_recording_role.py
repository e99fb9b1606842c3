# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role of the masked protocol that also writes down what it receives: masked_recording_role.py ROLE FD.

SECUREROUTER_RECORD names the folder. ROLE.SOURCE.bin holds every byte from one source, and ROLE.jsonl the role's
facts: the seeds that it holds, its own counts and the kernel's. SECUREROUTER_ODD names a role whose plans are
of another version.
"""

import json
import os
import secrets
import sys
from pathlib import Path

from link_worker import settled_counters

from hf_securerouter.mpc.net import channel, link
from hf_securerouter.mpc.net import loopback as rendezvous
from hf_securerouter.mpc.net.socket_stream import SocketStream
from hf_securerouter.mpc.protocols.masked import roles as masked_roles
from hf_securerouter.mpc.sessions import role_process as roles
from hf_securerouter.mpc.tuples import dealer_client, plan
from hf_securerouter.mpc.tuples.party_set import PartySet


ROLE = sys.argv[1]
FOLDER = Path(os.environ["SECUREROUTER_RECORD"])


def keep(source, data):
    with (FOLDER / f"{ROLE}.{source}.bin").open("ab") as file:
        file.write(data)


def note(**facts):
    with (FOLDER / f"{ROLE}.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


class RecordingChannel(channel.Channel):
    def _fill(self, view, deadline):
        super()._fill(view, deadline)
        keep("caller" if self.peer == "the caller" else "dealer" if self.peer == "the dealer" else "parties", view)


class RecordingStream(SocketStream):
    def pull(self, view):
        count = super().pull(view)
        if count:
            keep("link", view[:count])
        return count


def recorded_set(label, rank, seed, *rest):
    note(set=label.id, seed=seed.hex())
    return PartySet(label, rank, seed, *rest)


def fresh(count):
    drawn = secrets.token_bytes(count)
    note(drawn=drawn.hex())
    return drawn


class RecordingParty(masked_roles.MaskedParty):
    def meet(self, *args):
        super().meet(*args)
        self._before = settled_counters(self._met.link._stream.sock)

    def query(self, header, tensors):
        answer = super().query(header, tensors)
        # The other party sends nothing more until both have answered.
        before, self._before = self._before, settled_counters(self._met.link._stream.sock)
        plans = [self._met.evaluator._plans[name] for name in RUN]
        note(
            programs=list(RUN),
            planned=[sum(plan.payload_bytes for plan in plans), sum(plan.rounds for plan in plans)],
            corrections=sum(plan.dealer_bytes for plan in plans),
            counted=[self.ledger.total(what) for what in ("sent", "received", "rounds", "dealer")],
            compared=self.ledger.gates["tuples"].sent,
            kernel=[late - early for late, early in zip(self._before, before, strict=True)],
        )
        RUN.clear()
        return answer


RUN = []
take = dealer_client.DealerClient.take


def noted_take(self, name, *rest):
    RUN.append(name)
    return take(self, name, *rest)


roles.Channel = RecordingChannel
rendezvous.Channel = RecordingChannel
link.SocketStream = RecordingStream
dealer_client.PartySet = recorded_set
dealer_client.DealerClient.take = noted_take
masked_roles.secrets = type("secrets", (), {"token_bytes": staticmethod(fresh)})
masked_roles.MaskedParty = RecordingParty
if os.environ.get("SECUREROUTER_ODD") == ROLE:
    plan.FORMAT = "of another version"
os._exit(roles.main(ROLE, int(sys.argv[2])))
