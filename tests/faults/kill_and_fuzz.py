# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Kill roles at random under load, then send nonsense to every port: `make faults`.

The last line is JSON: how many kills, how many questions were answered, refused (an error after all retries) or
answered wrongly, how many waits had no end, how many sets of tuples were used twice, how many messages were nonsense.
"""

import argparse
import functools
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertTokenizer

from hf_securerouter.classification import classify
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.net.identity import Identity
from tests.faults import nonsense, opened_sets
from tests.faults.asking import Asker
from tests.support.deployed import ROLES, Deployment
from tests.tiny import MAX_POSITIONS, VOCABULARY, pool_model


TEXTS = ["the film was very good", "a dull movie .", "bad", "the bright and fast film was great"]
QUOTAS = [3, 1]
ATOL = 0.05
TIMEOUT = 60.0  # seconds that a session waits for the answer to each text
LIMIT = 2 * TIMEOUT * len(TEXTS)  # seconds after which a question hangs: a session has given up long before


def main():
    """Run, print the line, and end with 1 unless everything held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kill -9 of a random role")
    parser.add_argument("--fuzzed", type=int, default=100_000, help="messages of nonsense to each port")
    parser.add_argument("--clients", type=int, default=4, help="clients that ask meanwhile")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = run(Path(name), options)
    print(json.dumps(report))
    return int(any(report[key] for key in ("wrong", "hung", "tuples_reused")) or not report["answered"])


def run(folder, options):
    """Share a tiny pool, serve it, and return the report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = BertTokenizer(vocab=VOCABULARY, model_max_length=MAX_POSITIONS)
    model = pool_model(("bert", "electra"))
    to_mpc(model, tokenizer, max_length=16, routing_privacy="quota", quotas=QUOTAS).save_shares(folder / "shares")
    expected = torch.tensor([answer.logits for answer in classify(model, tokenizer, TEXTS, QUOTAS)])
    (folder / "logs").mkdir()
    (folder / "sets").mkdir()
    before = functools.partial(opened_sets.record, str(folder / "sets"))
    hung = 0
    with Deployment(folder / "shares", folder / "logs", before=before) as deployment:

        def session():
            own = RoleFolder.load(folder / "shares" / "client", "client")
            return RemoteSession(
                own, deployment.address("party0"), deployment.address("party1"), TIMEOUT, 5, log=lambda line: None
            )

        def is_right(result):
            return torch.allclose(result.logits, expected, atol=ATOL)

        askers = [Asker(session(), TEXTS, is_right) for _ in range(options.clients)]
        hung += kill(deployment, askers, options)
        hung += sum(not asker.stop(LIMIT) for asker in askers[1:])  # one goes on, the others would only take time
        fuzzed = fuzz(deployment, session(), options)
        hung += not wait_for_one(askers[0])
        hung += not askers[0].stop(LIMIT)
        said = "".join(path.read_text() for path in (folder / "logs").iterdir())
    if "Traceback" in said:
        raise AssertionError(said[said.index("Traceback") :][:2000])
    counts = [asker.counts for asker in askers]
    return {
        "kills": options.kills,
        **{name: sum(getattr(count, name) for count in counts) for name in ("answered", "refused", "wrong")},
        "hung": hung,
        "tuples_reused": opened_sets.reused(folder / "sets"),
        "fuzzed_messages": fuzzed,
    }


def wait_for_one(asker):
    """Wait until a client has an answer that it did not have yet; False if that takes too long."""
    before, deadline = asker.counts.answered, time.monotonic() + LIMIT
    while asker.counts.answered == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def kill(deployment, askers, options):
    """Kill roles; after each kill some client has to get an answer again. Returns how many waits had no end."""
    draw, hung = random.Random(options.seed), 0
    hung += not wait_for_one(askers[0])
    for number in range(options.kills):
        time.sleep(draw.uniform(0, 1.5))
        role = draw.choice(ROLES)
        deployment.roles[role].kill()
        time.sleep(draw.uniform(0, 0.5))
        deployment.start(role)
        hung += not wait_for_one(draw.choice(askers))
        hung += sum(asker.hangs(LIMIT) for asker in askers)
        print(f"{number + 1} of {options.kills} kills ({role}), {hung} hung", file=sys.stderr)
    return hung


def fuzz(deployment, session, options):
    """Send nonsense to every port, and return how many messages that were."""
    client = session.client
    encoded = client.tokenize(TEXTS)
    shares = session.sharing.inputs(client.embed(encoded), encoded["attention_mask"])
    identity = Identity.load(deployment.shares / "client")
    for role in ("party0", "party1"):
        nonsense.send_to_party(
            deployment.address(role), role, identity, shares[role], options.fuzzed, f"{options.seed} {role}"
        )
        print(f"{options.fuzzed} messages to {role}", file=sys.stderr)
    nonsense.send_bytes(deployment.address("dealer"), options.fuzzed, options.seed)
    return 3 * options.fuzzed


if __name__ == "__main__":
    sys.exit(main())
