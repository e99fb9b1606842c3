# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter demo`: six real sentences through the embedded checkpoint, on secret shares."""

import warnings
from typing import Annotated, Any

import typer

from hf_securerouter.cli.labelling import quotas_of
from hf_securerouter.cli.output import JsonOption, log, only_results_on_stdout, print_cost, print_json, print_table
from hf_securerouter.errors import SecureRouterWarning


SENTENCES = (
    "A warm, funny film that earns every one of its tears.",
    "The plot falls apart long before the dreary final hour.",
    "An unexpectedly sharp thriller, beautifully shot and superbly acted.",
    "A loud, clumsy and boring sequel that wastes a fine cast.",
    "It never quite decides what it wants to be, and yet I was not bored.",
    "You could skip the first act and miss nothing but the popcorn.",
)
MAX_LENGTH = 32


def demo(
    protocol: Annotated[
        str, typer.Option(help='"masked", "crypten" (the reference), or "clear" to leave encryption out.')
    ] = "masked",
    routing_privacy: Annotated[
        str | None, typer.Option(help='What the servers may learn of the routing: "revealed", "quota" or "oblivious".')
    ] = None,
    json: JsonOption = False,
) -> None:
    """Classify six sentences with the embedded checkpoint, two servers and a dealer on this machine."""
    with only_results_on_stdout():
        report = run_demo(protocol, routing_privacy)
    if json:
        print_json(report)
        return
    print_table(
        f"protocol {report['protocol']}, routing privacy {report['routing_privacy']}",
        ["text", "label", "score", "clear-text label", "expert"],
        [
            [
                example["text"],
                str(example["label"]),
                f"{example['score']:.3f}",
                str(example["plaintext_label"]),
                "secret" if example["expert"] is None else str(example["expert"]),
            ]
            for example in report["examples"]
        ],
    )
    if report["cost"] is not None:
        print_cost(report["cost"])


def run_demo(protocol: str = "masked", routing_privacy: str | None = None) -> dict[str, Any]:
    """Run the demo and return its report, as JSON-able values.

    Args:
        protocol: The two-party protocol, or "clear".
        routing_privacy: What the servers may learn about the routing; defaults to the checkpoint's mode, and under
            "crypten" to "revealed", its only mode.

    Returns:
        The six examples, the fraction of them with the clear model's label, and their cost.
    """
    from hf_securerouter.classification import DEMO_CHECKPOINT, classify, classify_encrypted, load_checkpoint

    log("Loading the embedded checkpoint ...")
    model, tokenizer = load_checkpoint(DEMO_CHECKPOINT)
    if routing_privacy is None:
        routing_privacy = "revealed" if protocol == "crypten" else model.config.routing_privacy
    log(f"Classifying {len(SENTENCES)} sentences in clear text ...")
    quotas = quotas_of(model.config) if routing_privacy == "quota" else None
    plain = classify(model, tokenizer, SENTENCES, quotas)
    answers, cost = plain, None
    if protocol != "clear":
        with warnings.catch_warnings(action="ignore", category=SecureRouterWarning):  # of bounds, which are known here
            secure = model.to_mpc(
                tokenizer=tokenizer, protocol=protocol, routing_privacy=routing_privacy, max_length=MAX_LENGTH
            )
        log("Starting two servers and a dealer, and sharing the weights ...")
        with secure.local_session() as session:
            log(f"Classifying {len(SENTENCES)} sentences on secret shares ...")
            answers, total = classify_encrypted(model.config, session, SENTENCES)
        cost = total.to_dict()
    examples = [
        {
            "text": text,
            "label": answer.label,
            "score": answer.score,
            "plaintext_label": reference.label,
            "expert": answer.expert,
        }
        for text, answer, reference in zip(SENTENCES, answers, plain, strict=True)
    ]
    return {
        "protocol": protocol,
        "routing_privacy": routing_privacy,
        "examples": examples,
        "agreement": sum(example["label"] == example["plaintext_label"] for example in examples) / len(examples),
        "cost": cost,
    }
