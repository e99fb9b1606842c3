# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Memory of a client whose vocabulary is as large as that of XLM-R base, from a folder that `save_shares` wrote.

The encoder behind the tables has one layer, which the client does not have. Prints JSON: megabytes of the tables, of
the client's folder, and of this process before the folder is loaded, after that, and after a text is embedded (peak).
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def make(folder: str) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    from hf_securerouter.mpc.convert import to_mpc

    config = XLMRobertaConfig(vocab_size=250_002, num_hidden_layers=1, type_vocab_size=1, max_position_embeddings=514)
    to_mpc(XLMRobertaForSequenceClassification(config).eval(), max_length=8).save_shares(folder)


def measure(folder: Path) -> dict[str, float]:
    from hf_securerouter.mpc.deployment.role_folder import RoleFolder

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    before = resident()
    client = RoleFolder.load(folder, "client").client()
    loaded = resident()
    client.embed(client.tokenize({"input_ids": torch.randint(5, 250_000, (8, 8))}))
    tables = sum(value.nbytes for module in client.embeddings.values() for value in module.state_dict().values())
    return {
        "tables": tables / 1e6,
        "folder": sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        "before": before,
        "loaded": loaded,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


if __name__ == "__main__":
    if len(sys.argv) == 1:
        with tempfile.TemporaryDirectory() as place:
            # A process each, so that the owner's memory is not counted.
            for step in ("make", "measure"):
                subprocess.run([sys.executable, __file__, step, f"{place}/shares"], check=True)
    elif sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        print(json.dumps({name: round(value) for name, value in measure(Path(sys.argv[2]) / "client").items()}))
