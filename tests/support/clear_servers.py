# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""In place of deployed servers: a classifier in clear text."""

from types import SimpleNamespace

import torch

from hf_securerouter.mpc.conversion.client import Client, Labels
from hf_securerouter.mpc.sessions.session import SessionError


class Servers:
    """A session with them, which keeps how many texts it was asked at once, and fails as often as `failing` says."""

    batch_size = 3

    def __init__(self, model, tokenizer):
        self.model, self.client = model, Client({}, tokenizer, 16, Labels.of(model.config))
        self.is_open, self.sizes, self.failing, self.at_once = False, [], 0, 0

    def __enter__(self):
        self.is_open = True

    def close(self):
        self.is_open = False

    def refuse_in_a_fork(self):
        pass

    in_a_fork = False

    def __call__(self, inputs):
        assert self.is_open and not self.at_once
        self.at_once += 1
        encoded = self.client.tokenize(inputs)
        self.sizes.append(len(encoded["input_ids"]))
        if self.failing:
            self.failing -= 1
            self.at_once = 0
            self.close()
            raise SessionError("party0 is gone")
        with torch.no_grad():
            logits = self.model(**encoded).logits
        self.at_once -= 1
        return SimpleNamespace(logits=logits)
