# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Training in bfloat16 on a CPU: what it runs on is said, and answers of a teacher are computed in it, too."""

import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.distillation import distillation_rows
from hf_securerouter.recipes.fit_with_trainer import parse_args, trainer_fit
from hf_securerouter.recipes.tasks import TASKS


CPUS = {
    "with AMX": ({"amx_bf16": True, "avx512_bf16": True}, "on a CPU with AMX."),
    "with AVX-512": ({"amx_bf16": False, "avx512_bf16": True}, "on a CPU with AVX512-BF16."),
    "of before": ({"avx512_f": True}, "slower than in float32"),
}


@pytest.mark.parametrize("cpu", CPUS)
def test_a_run_says_what_it_trains_on(cpu, monkeypatch, capsys):
    has, said = CPUS[cpu]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    args, training_args = parse_args(["--output_dir", "x", "--use_cpu", "--bf16"], RunArguments, "")
    trainer_fit(training_args)
    lines = capsys.readouterr().out.splitlines()
    assert args.bf16 and len(lines) == 1 and said in lines[0]
    args, training_args = parse_args(["--output_dir", "x", "--use_cpu"], RunArguments, "")
    trainer_fit(training_args)
    assert args.bf16 is None and not capsys.readouterr().out


def test_a_teacher_answers_in_bfloat16(two_experts, tokenizer):
    rows = [{"input_ids": [2, 7, 9, 3], "attention_mask": [1] * 4, "labels": 0}]
    common = DataCollatorWithPadding(tokenizer), TASKS["mrpc"], 0, set(tokenizer.all_special_ids), 0
    exact, near = (
        torch.tensor(distillation_rows(rows, two_experts[1], *common, bf16)[0]["teacher_logits"])
        for bf16 in (False, True)
    )
    assert not torch.equal(exact, near)
    torch.testing.assert_close(exact, near, atol=0.02, rtol=0.05)
    assert torch.equal(near, near.bfloat16().float())
