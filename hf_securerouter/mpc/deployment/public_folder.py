# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A client's folder without a key, as it may lie in a repository on the Hub: found there, and copied for it.

It has the manifest, the embedding layers, the labels, the tokenizer, and the certificates of servers and dealer.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, snapshot_download

from ...checkpoint_files import not_got
from ...errors import FileError, SecureRouterValueError
from ...files import write_atomically, write_text
from ..models.manifest import PARTIES
from ..net.certificates import PEERS
from ..net.trusted import read_list
from .integrity import INTEGRITY, TENSORS, check_folder
from .role_folder import read_manifest
from .save_shares import CLIENT, MANIFEST


CARD = "README.md"
_NEEDED = (MANIFEST, CLIENT, TENSORS, INTEGRITY, PEERS)
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
# Nothing else is copied or downloaded: a key above all is in no list.
FILES = (*_NEEDED, *_TOKENIZER)

_TEXT = """
# Client of an encrypted classifier

What a client needs to ask two servers, neither of which sees a text or an answer: embedding layers, tokenizer, labels,
the public description of the model, and the certificates of the servers. There is no key in it: make yours with
`securerouter keygen client --name ...`, and have the servers' operators add its certificate.

```python
from hf_securerouter import SecureRouterClient

servers = {{"party0": "HOST:PORT", "party1": "HOST:PORT"}}
pins = {{"party0": "...", "party1": "..."}}  # as their operators tell you
with SecureRouterClient.from_pretrained("{name}", **servers, key="client-key", pins=pins) as client:
    print(client("A warm, funny film."))
```

Compare these fingerprints with what the operators of both servers say. Whoever can write here could have put own keys
in their place, and be both servers:

{servers}
"""


def find_folder(name: str | os.PathLike, **options: Any) -> Path:
    """The folder of a client, downloaded if it is a name on the Hub.

    Args:
        name (`str` or `os.PathLike`): A folder, or a name on the Hub (`owner/name`).
        options: Of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

    Raises:
        `SecureRouterValueError`: `name` is neither, or is not open to this user.
        `SecureRouterError`: The Hub was not reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if not is_on_the_hub(name):
        raise SecureRouterValueError(
            f"`model` {str(name)!r} is neither a client's folder nor a name on the Hub (`owner/name`)."
        )
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(FILES), **options))
    except (OSError, ValueError) as error:
        raise not_got(str(name), MANIFEST, error) from error


def is_on_the_hub(name: str | os.PathLike) -> bool:
    """Whether a name is not that of a folder or file here, and may be one on the Hub."""
    return not Path(name).exists() and str(name).count("/") == 1


def copy_public(source: Path, target: Path, name: str) -> None:
    """Copy a client's folder without its key, and write a card beside it, unless there is one.

    Args:
        source (`Path`): The client's folder.
        target (`Path`): A folder; made if it does not exist.
        name (`str`): How the card calls the copy.

    Raises:
        `FileError`: A file is missing or wrong.
        `SecureRouterValueError`: `source` is not a client's folder, or is damaged.
    """
    check_folder(source, read_manifest(source), "client")
    for file in _NEEDED:
        if not (source / file).is_file():
            raise FileError(f"There is no {file}", str(source / file), "pass the folder `client` of a sharing")
    servers = [str(peer) for peer in read_list(source / PEERS) if peer.role in PARTIES]
    target.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        if (source / file).is_file():
            with write_atomically(target / file) as temporary:
                shutil.copyfile(source / file, temporary)
    if not (target / CARD).exists():
        data = ModelCardData(
            library_name="hf_securerouter",
            pipeline_tag="text-classification",
            tags=["securerouter", "private-inference"],
        )
        listed = "\n".join(f"- {server}" for server in servers)
        write_text(f"---\n{data.to_yaml()}\n---\n{_TEXT.format(name=name, servers=listed)}", target / CARD)
