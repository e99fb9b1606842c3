# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What TLS costs: online seconds of the same queries with it and without, as a ratio.

    python tests/benchmarks/tls.py                           # six texts through the embedded pool
    python tests/benchmarks/tls.py --architecture bert-base  # one text of 128 tokens

Two sessions are open at once, whose roles are processes of this machine. Under TLS are the parties' link and both
links of the dealer, with the certificates and contexts of a deployment. Each query is asked in both, in a random
order, so that other work of the machine meets both alike; of each kind the lower quartile counts, since other work
only adds. There is no such choice in a deployment, where every link is under TLS.

The last line is JSON. The exit status is 1 if TLS costs more than `--most` (1.15: 15 %).
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from hf_securerouter.classification import DEMO_CHECKPOINT, load_checkpoint
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.net.certificates import make_certificates
from hf_securerouter.mpc.profiler import build
from hf_securerouter.mpc.sessions import local


TEXTS = ["a warm , funny film", "the plot falls apart", "bad", "bright and full of ideas", "dull", "one of the best"]
TLS_ROLE = Path(__file__).parents[1] / "support" / "tls_role.py"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", help="random weights of a name of `securerouter profile`; default: the pool")
    parser.add_argument("--runs", type=int, default=30, help="queries of each session")
    parser.add_argument("--most", type=float, default=1.15, help="ratio above which the exit status is 1")
    return parser.parse_args(argv)


def question(architecture):
    """A converted model, and what to ask it."""
    if architecture is None:
        model, tokenizer = load_checkpoint(DEMO_CHECKPOINT)
        return to_mpc(model, tokenizer, max_length=64, routing_privacy="quota"), TEXTS
    model = build(architecture, 128)
    return to_mpc(model, max_length=128), {"input_ids": torch.randint(5, model.config.vocab_size, (1, 128))}


def opened(secure, program):
    """An open session whose roles run a program."""
    session = secure.local_session()
    own, local.ROLE_PROGRAM = local.ROLE_PROGRAM, program
    try:
        return session.__enter__()
    finally:
        local.ROLE_PROGRAM = own


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(0)  # of the weights and tokens that are measured on; shares never come from here
    secure, inputs = question(args.architecture)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        for role, files in make_certificates(secure.manifest.roles).items():
            (Path(name) / role).mkdir()
            for file, content in files.items():
                (Path(name) / role / file).write_bytes(content)
        os.environ["SECUREROUTER_KEYS"] = name
        sessions = {}
        for kind, program in (("plain", local.ROLE_PROGRAM), ("tls", (str(TLS_ROLE),))):
            sessions[kind] = opened(secure, program)
            stack.callback(sessions[kind].close)
            sessions[kind](inputs)  # the first query makes the plans
        seconds = {kind: [] for kind in sessions}
        draw = random.Random(0)
        for number in range(args.runs):
            for kind in draw.sample(list(sessions), 2):
                seconds[kind].append(sessions[kind](inputs).cost.online_seconds)
            print(f"{number + 1} of {args.runs}", file=sys.stderr)
    quartiles = {kind: statistics.quantiles(values, n=4)[0] for kind, values in seconds.items()}
    ratio = quartiles["tls"] / quartiles["plain"]
    report = {"model": args.architecture or "demo", "runs": args.runs}
    report |= {f"{kind}_seconds": round(value, 4) for kind, value in quartiles.items()}
    print(json.dumps(report | {"ratio": round(ratio, 3)}))
    return int(ratio > args.most)


if __name__ == "__main__":
    sys.exit(main())
