# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role that also writes down all that it receives, for test_session.py: recording_role.py ROLE FD.

SECUREROUTER_RECORD names the folder. Each answer to the caller is preceded by a file ROLE-N.safetensors with all that
was received since the last one, and ROLE-N.json with the words that came without a tensor.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_securerouter.mpc.net.channel import Channel
from hf_securerouter.mpc.protocols.crypten import communicator as crypten_communicator
from hf_securerouter.mpc.protocols.crypten import roles as crypten_roles
from hf_securerouter.mpc.sessions import role_process as roles


ROLE = sys.argv[1]
FOLDER = Path(os.environ["SECUREROUTER_RECORD"])

tensors, words = {}, []
numbers = itertools.count()


def keep(source, tensor):
    tensors[f"{source}/{next(numbers)}"] = tensor.detach().clone().contiguous()


class RecordingChannel(Channel):
    def receive(self, *args, **kwargs):
        header, received = super().receive(*args, **kwargs)
        for name, tensor in received.items():
            keep(f"caller/{name}", tensor)
        words.append(header)
        return header, received

    def send(self, header, *args, **kwargs):
        number = len(list(FOLDER.glob(f"{ROLE}-*.json")))
        save_file(tensors, FOLDER / f"{ROLE}-{number}.safetensors")
        (FOLDER / f"{ROLE}-{number}.json").write_text(json.dumps({"words": words, "ledger": header.get("ledger")}))
        tensors.clear()
        words.clear()
        super().send(header, *args, **kwargs)


class RecordingCommunicator(crypten_communicator.LedgerCommunicator):
    def all_reduce(self, input, op=torch.distributed.ReduceOp.SUM, batched=False):
        result = super().all_reduce(input, op=op, batched=batched)
        own, opened = (input, result) if batched else ([input], [result])
        for mine, total in zip(own, opened, strict=True):
            keep("peer", total - mine if op == torch.distributed.ReduceOp.SUM else total ^ mine)
        return result

    def broadcast(self, input, src, group=None, batched=False):
        result = super().broadcast(input, src, group=group, batched=batched)
        if src != self.rank:
            keep("dealer" if src == 2 else "peer", result)
        return result

    def recv_obj(self, src, group=None):
        received = super().recv_obj(src, group)
        words.append(repr(received))
        return received


def start_dealing(ledger):
    crypten_communicator.start_dealing(ledger)
    words.append({"dealer_seed": crypten_communicator.TTPClient.get().generator.initial_seed()})


roles.Channel = RecordingChannel
crypten_communicator.LedgerCommunicator = RecordingCommunicator
crypten_roles.start_dealing = start_dealing
os._exit(roles.main(ROLE, int(sys.argv[2])))
