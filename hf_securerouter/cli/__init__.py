# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The `securerouter` command, one file per subcommand."""

import warnings
from typing import Annotated

import typer

from hf_securerouter.cli import card, check, client, dealer, demo, env, keygen, party, predict, profile, share, users
from hf_securerouter.cli.failures import Commands, debugging
from hf_securerouter.cli.stopping import stopped_as_by_an_error
from hf_securerouter.plain_messages import DEBUG, printing_warnings


app = Commands(
    name="securerouter",
    help="Cost-aware routing over a pool of encoders, in clear text and on secret shares.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG, help="Print the traceback of an error as well.")
    ] = False,
) -> None:
    debugging.set(debug)


app.command(epilog="Example: securerouter demo --json")(demo.demo)
app.command(epilog="Example: securerouter env --json")(env.env)
app.command(epilog="Example: securerouter predict MODEL --input in.jsonl --output out.jsonl")(predict.predict)
app.command(epilog="Example: securerouter check MODEL --input texts.jsonl")(check.check)
app.command(epilog="Example: securerouter profile --architecture bert-base --seq-length 128 --json")(profile.profile)
app.command(epilog="Example: securerouter keygen party0 --name example.org")(keygen.keygen)
app.command(epilog="Example: securerouter share my-router shares --routing-privacy quota --quotas 3,2,1")(share.share)
app.command(epilog="Example: securerouter dealer shares/dealer --listen 0.0.0.0:9000")(dealer.dealer)
app.command(
    epilog="Example: securerouter party shares/party1 --listen 0.0.0.0:9000 --dealer d.example:9000 "
    "--peer p0.example:9000"
)(party.party)
app.command(
    epilog="Example: securerouter client shares/client --party0 p0.example:9000 --party1 p1.example:9000 "
    "--input in.jsonl --output out.jsonl"
)(client.client)
app.command(epilog="Example: securerouter users shares/party0 --add ada.pem")(users.users)
app.command(epilog="Example: securerouter card my-router")(card.card)


def main() -> None:
    """Run the command; see `failures` and `stopping` for how it ends."""
    warnings.showwarning = printing_warnings(warnings.showwarning)
    with stopped_as_by_an_error():
        app()


__all__ = ["app", "main"]
