# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role of a local session whose links to other roles are under TLS, as between machines: tls_role.py ROLE FD.

SECUREROUTER_KEYS names a folder with a folder of keys for each role, as a sharing for a trial has.
"""

import os
import sys
import time
from pathlib import Path

from hf_securerouter.mpc.net import loopback
from hf_securerouter.mpc.net.channel import Channel
from hf_securerouter.mpc.net.identity import Identity
from hf_securerouter.mpc.net.link import Link
from hf_securerouter.mpc.net.socket_stream import TlsStream
from hf_securerouter.mpc.sessions import role_process


ROLE = sys.argv[1]
IDENTITY = Identity.load(Path(os.environ["SECUREROUTER_KEYS"]) / ROLE)
LIMIT = 60.0


class TlsLink(Link):
    """The parties' link."""

    def __init__(self, sock, rank, *, server_side, **options):
        context = IDENTITY.server if server_side else IDENTITY.client
        super().__init__(sock, rank, server_side=server_side, ssl_context=context, **options)


class TlsChannel(Channel):
    """A party's channel to the dealer, at either end."""

    def __init__(self, sock, peer):
        context = IDENTITY.server if ROLE == "dealer" else IDENTITY.client
        super().__init__(TlsStream(sock, context, ROLE == "dealer", "dealer", time.monotonic() + LIMIT), peer)


loopback.Link, loopback.Channel = TlsLink, TlsChannel
os._exit(role_process.main(ROLE, int(sys.argv[2])))
