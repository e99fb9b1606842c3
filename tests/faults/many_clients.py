# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Many clients that ask one text at a time, with and without batches that they share: `make load`.

The last line is JSON: throughput in texts a second, p50 and p99 in seconds, `memory_growth` as the largest growth of a
role's resident memory since the first tenth of the run (0.1 is 10 %), `speedup_by_batching` against a tenth of the
time in which every text fills a batch of its own.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from hf_securerouter.classification import DEMO_CHECKPOINT, load_checkpoint
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.sessions.verification import tolerance
from tests.faults.asking import Asker
from tests.support.deployed import Deployment


TEXTS = [
    "the film was very good",
    "a dull movie that never ends",
    "bad",
    "bright, fast and full of ideas",
    "i would not watch it again",
    "one of the best of the year",
]
MEASURED, ALONE = 15.0, 8  # seconds without shared batches at least, and clients in them
LIMITS = {"connections": 1000, "waiting": 1000, "rows_a_minute": 1_000_000}


class OneClient(RoleFolder):
    """A folder whose embedding tables are loaded once for all sessions."""

    def client(self):
        """The same client every time."""
        if not hasattr(OneClient, "loaded"):
            OneClient.loaded = super().client()
        return OneClient.loaded


def main():
    """Run, print the line, and end with 1 if an answer was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--model", type=Path, default=DEMO_CHECKPOINT, help="a pool; default: the embedded one")
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--max-wait-ms", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = run(Path(name), options)
    print(json.dumps(report))
    return int(bool(report["lost"] or report["wrong"]))


def run(folder, options):
    """Share the pool, serve it, ask, and return the report."""
    model, tokenizer = load_checkpoint(options.model)
    secure = to_mpc(model, tokenizer, max_length=options.max_length, routing_privacy="quota")
    secure.save_shares(folder / "shares")
    encoded = secure.client.tokenize(TEXTS)
    with torch.no_grad():  # of every expert, as which of them answers depends on the others' texts
        expected = torch.stack([
            model.run_experts(dict(encoded), torch.full((len(TEXTS),), index)) for index in range(len(model.experts))
        ])  # fmt: skip
    (folder / "logs").mkdir()
    (folder / "limits.json").write_text(json.dumps(LIMITS))
    flags = ["--limits", str(folder / "limits.json"), "--max-wait-ms", str(options.max_wait_ms)]
    own = OneClient.load(folder / "shares" / "client", "client")
    atol = tolerance(own.manifest)
    with Deployment(folder / "shares", folder / "logs", options={"party0": flags, "party1": flags}) as deployment:

        def ask_for(seconds, clients, share_batches):
            askers = []
            for number in range(clients):
                row = number % len(TEXTS)
                session = RemoteSession(
                    own,
                    deployment.address("party0"),
                    deployment.address("party1"),
                    600,
                    share_batches=share_batches,
                    log=lambda line: None,
                )
                question = {name: values[row : row + 1] for name, values in encoded.items()}

                def is_right(result, row=row):
                    return bool(((expected[:, row] - result.logits).abs().amax(1) < atol).any())

                askers.append(Asker(session, question, is_right))
            start = time.monotonic()
            time.sleep(seconds / 10)
            memory = resident(deployment)
            time.sleep(seconds * 0.9)
            end = time.monotonic()
            growth = max(now / before - 1 for now, before in zip(resident(deployment), memory, strict=True))
            for asker in askers:
                asker.finish()
            unfinished = sum(not asker.stop(120.0) for asker in askers)
            counts = [asker.counts for asker in askers]
            done = sum(sum(when <= end for when in count.finished) for count in counts)
            return counts, unfinished, done / (end - start), growth

        with RemoteSession(own, deployment.address("party0"), deployment.address("party1"), 600) as session:
            session(encoded)  # the first query traces the plans
        # A few clients keep the servers busy where no batch is shared, and leave no long queue in the end.
        _, _, alone, _ = ask_for(max(options.seconds / 10, MEASURED), min(options.clients, ALONE), False)
        counts, unfinished, throughput, growth = ask_for(options.seconds, options.clients, True)
    seconds = sorted(value for count in counts for value in count.seconds)
    return {
        "clients": options.clients,
        "seconds": options.seconds,
        "queries": sum(count.answered for count in counts),
        "lost": sum(count.refused for count in counts) + unfinished,
        "wrong": sum(count.wrong for count in counts),
        "throughput": round(throughput, 2),
        "speedup_by_batching": round(throughput / alone, 2) if alone else None,
        "p50": round(seconds[len(seconds) // 2], 3) if seconds else None,
        "p99": round(seconds[len(seconds) * 99 // 100], 3) if seconds else None,
        "memory_growth": round(growth, 3),
    }


def resident(deployment):
    """Resident bytes of every role."""
    return [psutil.Process(role.pid).memory_info().rss for role in deployment.roles.values()]


if __name__ == "__main__":
    sys.exit(main())
