# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`transformers.Trainer`, gradient accumulation and two processes under Accelerate, all without a change to them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_securerouter.trainer import SecureRouterTrainer, SecureRouterTrainingArguments
from tests.support import ROOT
from tests.test_trainer import make_data, make_model
from tests.tiny import pool_model


class Examples(Dataset):
    """Rows of one length with a learnable label: whether the second token's id is even."""

    def __init__(self, count: int = 16):
        generator = torch.Generator().manual_seed(7)
        self.ids = torch.randint(5, 24, (count, 10), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[1] % 2).item()}


def arguments(folder, **fields):
    defaults = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    }
    return TrainingArguments(**defaults | fields)


def train(model, folder, **fields):
    trainer = Trainer(model=model, args=arguments(folder, **fields), train_dataset=Examples(), eval_dataset=Examples())
    trainer.train()
    return trainer


@pytest.fixture
def smooth(monkeypatch):
    """Takes the noise out of the Gumbel-softmax, so that two runs can be compared."""

    def softmax(logits, tau):
        return (logits / tau).softmax(dim=-1)

    monkeypatch.setattr("torch.nn.functional.gumbel_softmax", softmax)


def test_trainer_trains_evaluates_predicts_and_saves(tmp_path):
    model = pool_model(("bert", "distilbert"))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = train(model, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert "eval_loss" in trainer.evaluate()
    predictions = trainer.predict(Examples()).predictions
    assert predictions.shape == (16, 2), "only the logits are predictions"
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(saved.router.out_proj.weight, model.router.out_proj.weight)


def test_training_resumes_from_a_checkpoint(tmp_path, smooth):
    whole = pool_model(("bert", "bert"))
    train(whole, tmp_path / "whole", max_steps=4)
    half = pool_model(("bert", "bert"))
    train(half, tmp_path / "half", max_steps=4, save_strategy="steps", save_steps=2)
    resumed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half" / "checkpoint-2")
    trainer = Trainer(model=resumed, args=arguments(tmp_path / "half", max_steps=4), train_dataset=Examples())
    trainer.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    torch.testing.assert_close(resumed.router.out_proj.weight, whole.router.out_proj.weight)
    torch.testing.assert_close(resumed.experts[1].classifier.weight, whole.experts[1].classifier.weight)


@pytest.mark.parametrize("objective", ["gumbel", "utility"])
def test_accumulated_steps_equal_one_large_batch(tmp_path, smooth, objective):
    # The balance loss is a ratio over its batch, and so the one part that may differ.
    trained = {}
    for accumulation in (1, 4):
        model = pool_model(("bert", "bert"), alpha=0.0, beta=0.1, router_objective=objective)
        train(
            model,
            tmp_path / str(accumulation),
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        trained[accumulation] = model
    start = pool_model(("bert", "bert"))
    for (name, one), (_, four), (_, before) in zip(
        *(m.named_parameters() for m in (trained[1], trained[4], start)), strict=True
    ):
        torch.testing.assert_close(one, four, atol=1e-5, rtol=1e-4, msg=name)
        assert not torch.equal(one, before), name


DDP_SCRIPT = """
import json, sys
import torch
import torch.nn.functional
from accelerate import Accelerator
from tests.tiny import pool_model
from tests.test_distributed import Examples
from torch.utils.data import DataLoader

torch.set_num_threads(1)
torch.nn.functional.gumbel_softmax = lambda logits, tau: (logits / tau).softmax(dim=-1)
accelerator = Accelerator(cpu=True)
model = pool_model(("bert", "distilbert"), alpha=0.0, beta=0.1).train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(Examples(), batch_size=8))
for batch in loader:
    loss = model(**batch).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
inner = accelerator.unwrap_model(model)
flat = torch.cat([parameter.detach().flatten() for parameter in inner.parameters()])
everyone = accelerator.gather(flat[None])
with torch.no_grad():
    chosen = accelerator.gather(model.eval()(input_ids=Examples().ids[:4]).expert_indices)
inner.save_pretrained(sys.argv[1], is_main_process=accelerator.is_main_process)
if accelerator.is_main_process:
    print(json.dumps({
        "processes": accelerator.num_processes,
        "type": type(model).__name__,
        "spread": (everyone - everyone[0]).abs().max().item(),
        "chosen": len(chosen),
    }))
"""


# gloo's threads may ask for the interpreter's lock while it shuts down, which aborts the process at random: both
# processes wait for each other and leave without that shutdown.
EPILOGUE = """
import os, sys, torch
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)
"""


def launch(script: Path, source: str, *arguments: str) -> str:
    """Runs `source`, written to `script`, in two CPU processes, as `accelerate launch` does."""
    script.write_text(source + EPILOGUE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    root = str(ROOT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=180, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_two_processes_under_accelerate_equal_one(tmp_path, smooth):
    script = tmp_path / "train.py"
    output = launch(script, DDP_SCRIPT, str(tmp_path / "saved"))
    report = json.loads(output.strip().splitlines()[-1])
    assert report == {"processes": 2, "type": "DistributedDataParallel", "spread": 0.0, "chosen": 8}

    alone = pool_model(("bert", "distilbert"), alpha=0.0, beta=0.1).train()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    examples = Examples()
    batch = {
        "input_ids": examples.ids,
        "attention_mask": torch.ones_like(examples.ids),
        "labels": examples.ids[:, 1] % 2,
    }
    alone(**batch).loss.backward()
    optimizer.step()
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    for (name, expected), (_, found) in zip(alone.named_parameters(), saved.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=name)


TRAINER_SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from tests.tiny import pool_model
from tests.test_distributed import train

trainer = train(pool_model(("bert", "bert")), sys.argv[1], max_steps=2, save_strategy="steps", save_steps=2)
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    print("processes", trainer.args.world_size, "loss", metrics["eval_loss"])
"""


def test_trainer_in_two_processes(tmp_path):
    script = tmp_path / "train.py"
    output = launch(script, TRAINER_SCRIPT, str(tmp_path / "out"))
    (line,) = [line for line in output.splitlines() if line.startswith("processes")]
    assert line.startswith("processes 2 loss ") and float(line.split()[-1]) > 0
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-2")


TEACHER_SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from hf_securerouter.recipes import distillation
from tests.test_distributed import teachers_answers

read, predict = [], distillation.predict
def counted(model, rows, *given, **named):
    read.append(len(rows))
    return predict(model, rows, *given, **named)

distillation.predict = counted
rank = PartialState(cpu=True).process_index
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump({"answers": teachers_answers(), "read": read}, file)
"""


def teachers_answers():
    """What a teacher answers to five rows and two perturbed copies of each."""
    from hf_securerouter.recipes.distillation import distillation_rows
    from hf_securerouter.recipes.tasks import TASKS

    def collate(rows):
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    teacher = pool_model(("bert",) * 2).experts[0]
    rows = [{"input_ids": ids.tolist(), "labels": 0} for ids in Examples(5).ids]
    answered = distillation_rows(rows, teacher, collate, TASKS["mrpc"], 2, set(), 0)
    return [row["teacher_logits"] for row in answered]


def test_two_processes_share_what_a_teacher_is_asked(tmp_path):
    launch(tmp_path / "teach.py", TEACHER_SCRIPT, str(tmp_path))
    alone = torch.tensor(teachers_answers())
    for rank, count in ((0, 8), (1, 7)):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["read"] == [count]
        torch.testing.assert_close(torch.tensor(found["answers"]), alone)


TWO_PROCESSES = """
import json, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from tests.test_trainer import make_data, make_model
from hf_securerouter.trainer import _LOSSES, SecureRouterTrainer, SecureRouterTrainingArguments

args = SecureRouterTrainingArguments(
    sys.argv[1], max_steps=2, logging_steps=1, per_device_train_batch_size=4, per_device_eval_batch_size=3,
    router_learning_rate=0.0, learning_rate=0.0, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
)
trainer = SecureRouterTrainer(
    model=make_model(alpha=0.5, beta=0.25), args=args, train_dataset=make_data(32), eval_dataset=make_data(11)
)
trainer.train()
metrics = trainer.evaluate()
trainer.save_model()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"processes": args.world_size, "metrics": metrics, "logs": logs}))
"""


def test_two_processes_report_what_one_does(tmp_path):
    script = tmp_path / "train.py"
    output = launch(script, TWO_PROCESSES, str(tmp_path / "pair"), str(ROOT))
    report = json.loads(output.strip().splitlines()[-1])
    assert report["processes"] == 2
    for entry in report["logs"]:
        total = entry["task_loss"] + 0.5 * entry["balance_loss"] + 0.25 * entry["cost_loss"]
        assert entry["loss"] == pytest.approx(total, abs=1e-5)

    args = SecureRouterTrainingArguments(str(tmp_path / "alone"), report_to="none", use_cpu=True, disable_tqdm=True)
    alone = SecureRouterTrainer(model=make_model(), args=args).evaluate(
        make_data(11)
    )  # eleven rows: the last batch of two processes is padded
    for name in ("eval_routing_share_0", "eval_routing_share_1", "eval_routing_share_2", "eval_routing_cost"):
        assert report["metrics"][name] == pytest.approx(alone[name]), name
    card = (tmp_path / "pair" / "README.md").read_text()
    assert f"cost {alone['eval_routing_cost']:.4g} each on average" in card
