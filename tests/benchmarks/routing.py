# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the modes of routing privacy cost on a pool of a BERT-tiny and a BERT-base, against BERT-base for every query.

    python tests/benchmarks/routing.py --plans               # bytes and rounds, without running anything
    python tests/benchmarks/routing.py --output routing.json  # seconds too, in one run: some minutes on two cores
    python tests/benchmarks/routing.py --same-shape           # oblivious, 2 to 16 BERT-tiny experts

Weights are random: what a program costs does not depend on values. Seconds depend on the machine and are to be read as
ratios within one run. Results are written as they come, under a temporary name first.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.protocols.masked.programs import secure_program
from hf_securerouter.mpc.protocols.masked.schedule import rows_at_a_time


SHAPES = {"bert-tiny": (2, 128, 2, 512), "bert-base": (12, 768, 12, 3072)}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Cost of the modes of routing privacy.")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--plans", action="store_true", help="bytes and rounds only")
    parser.add_argument("--same-shape", action="store_true", help="oblivious selection among experts of one shape")
    parser.add_argument("--output", type=Path, help="file of the results")
    return parser.parse_args(argv)


def bert(name):
    layers, width, heads, inner = SHAPES[name]
    return BertConfig(
        vocab_size=1000,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner,
    )


def pool(*experts, shared=None):
    """A pool whose router has a BERT-tiny of its own, or reads the encoder of the expert `shared`."""
    config = SecureRouterConfig(
        router_config=bert("bert-tiny") if shared is None else None,
        router_shares_expert=shared,
        expert_configs=[bert(name) for name in experts],
        expert_costs=[float(index + 1) for index in range(len(experts))],
    )
    return SecureRouterForSequenceClassification(config).eval()


def planned(secure, names):
    """Bytes between the servers, rounds and bytes of corrections of some programs, each so many times."""
    plans = [(secure_program(secure.manifest, name).plan(), times) for name, times in names.items()]
    return {
        "online_bytes": sum(2 * plan.payload_bytes * times for plan, times in plans),
        "rounds": sum(plan.rounds * times for plan, times in plans),
        "dealer_bytes": sum(plan.dealer_bytes * times for plan, times in plans),
    }


def routing_overhead(secure, batch, quotas):
    """What `quota` adds to the summary encoder and the experts: head, shuffle, ranks, widening and the way back."""
    manifest, most = secure.manifest, rows_at_a_time(secure.manifest)
    route = secure_program(manifest, f"route/{batch}").plan()
    serve = secure_program(manifest, "serve/" + ".".join(str(min(count, most)) for count in quotas)).plan()
    restore = secure_program(manifest, f"restore/{batch}").plan()
    turns = -(-max(quotas) // most)
    own = ("Shuffle", "Order", "Reveal", "ReLU")  # the summary encoder has none of these
    spec = manifest.members["router"]
    # The head opens its row and what is behind its activation: at most 64 bits a value.
    head = batch * (spec.hidden_size + (spec.head.inner_size or spec.hidden_size)) * 8
    sent = sum(route.by_gate[gate].sent for gate in own) + head + restore.payload_bytes
    rounds = sum(route.by_gate[gate].rounds for gate in own) + 2 + restore.rounds
    return {
        "online_bytes": 2 * (sent + turns * serve.by_gate["Widen"].sent),
        "rounds": rounds + turns,
    }


def measured(secure, batch, length, batch_size):
    inputs = {"input_ids": torch.randint(5, 1000, (batch, length))}
    with secure.local_session(timeout=600, batch_size=batch_size) as session:
        cost = session(inputs).cost.to_dict()
    fields = ("online_bytes", "rounds", "dealer_bytes", "online_seconds", "preprocess_seconds", "dealer_seconds")
    return {name: cost[name] for name in (*fields, "peak_rss_bytes")}


def compare_modes(args, put):
    batch, half = args.batch_size, args.batch_size // 2
    options = {"max_length": args.seq_length}
    model = pool("bert-tiny", "bert-base")
    quota = model.to_mpc(routing_privacy="quota", quotas=[batch - half, half], **options)
    most = rows_at_a_time(quota.manifest)
    turns = -(-half // most)
    serve = f"serve/{min(batch - half, most)}.{min(half, most)}"
    routed = {f"route/{batch}": 1}
    if batch > most:
        routed = {f"read/{most}": batch // most, f"rank/{batch}": 1}
    put("quota, planned", planned(quota, {**routed, serve: turns, f"restore/{batch}": 1}))
    put("routing overhead of quota, planned", routing_overhead(quota, batch, [batch - half, half]))
    revealed = model.to_mpc(routing_privacy="revealed", **options)
    put("router of one query, planned", planned(revealed, {"router/1": 1}))
    put("bert-base of one query, planned", planned(revealed, {"experts.1/1": 1}))
    put("easy query, planned", planned(revealed, {"router/1": 1, "experts.0/1": 1}))
    reading = pool("bert-tiny", "bert-base", shared=0)
    once = reading.to_mpc(routing_privacy="revealed", **options)
    put("easy query, encoder shared, planned", planned(once, {"router/1": 1}))
    once = reading.to_mpc(routing_privacy="quota", quotas=[batch - half, half], **options)
    most = rows_at_a_time(once.manifest)
    routed, turns = {f"route/{batch}": 1}, -(-half // most)
    if batch > most:
        routed = {f"read/{most}": batch // most, f"rank/{batch}": 1}
    serve = f"serve/0.{min(half, most)}"
    put("quota, encoder shared, planned", planned(once, {**routed, serve: turns, f"restore/{batch}": 1}))
    oblivious = model.to_mpc(routing_privacy="oblivious", **options)
    put("oblivious, planned", planned(oblivious, {f"oblivious/{most}": batch // most}))
    if args.plans:
        return
    config = bert("bert-base")
    everyone = to_mpc(BertForSequenceClassification(config).eval(), **options)
    put("bert-base for all", measured(everyone, batch, args.seq_length, most))
    put("quota", measured(quota, batch, args.seq_length, most))
    put("oblivious", measured(oblivious, batch, args.seq_length, most))


def compare_numbers(args, put):
    for count in (2, 4, 8, 16):
        model = pool(*["bert-tiny"] * count)
        secure = model.to_mpc(routing_privacy="oblivious", max_length=args.seq_length)
        put(f"{count} experts of one shape", measured(secure, 1, args.seq_length, 1))


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(0)  # of the weights and tokens that are measured on; shares never come from here
    results = {}

    def put(name, values):
        results[name] = values
        print(json.dumps({name: values}), flush=True)
        if args.output:
            temporary = args.output.with_name(f"{args.output.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(results, indent=2))
            temporary.replace(args.output)

    (compare_numbers if args.same_shape else compare_modes)(args, put)


if __name__ == "__main__":
    main()
