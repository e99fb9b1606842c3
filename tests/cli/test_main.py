# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Rules for every subcommand: help, errors of one block, JSON on stdout; and `securerouter card`."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import COMMANDS, run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"Example: securerouter {command}" in " ".join(done.stdout.split())


def test_help_lists_every_command():
    done = run("--help")
    assert done.exit_code == 0
    for command in COMMANDS:
        assert command in done.stdout


class TestMain:
    def run_main(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", "from hf_securerouter.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | environment,
            check=False,
        )

    def test_foreseen_error_is_one_block_and_status_2(self, tmp_path):
        done = self.run_main("card", str(tmp_path), "--json")
        assert done.returncode == 2 and done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("securerouter: `path` should be the folder")

    def test_the_environment_shows_the_traceback_too(self, tmp_path):
        done = self.run_main("card", str(tmp_path), SECUREROUTER_DEBUG="1")
        assert done.returncode == 2 and done.stderr.count("Traceback") == 1
        assert done.stderr.strip().splitlines()[-1].startswith("securerouter: `path` should be the folder")

    def test_json_stdout_is_one_document_in_a_real_process(self):
        done = self.run_main("env", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["versions"]["python"]

    def test_unknown_command_is_a_usage_error(self):
        done = self.run_main("nonsense")
        assert done.returncode == 2 and done.stdout == ""


class TestCard:
    def test_card_takes_the_costs_of_the_config(self, checkpoint):
        config_path = os.path.join(checkpoint, "config.json")
        config = json.loads(open(config_path).read())
        config["expert_costs"] = [round(1.5 + index, 2) for index in range(len(config["expert_costs"]))]
        config["expert_costs_source"] = "measured"
        with open(config_path, "w") as file:
            json.dump(config, file)
        report = json.loads(run("card", checkpoint, "--json").stdout)
        assert report["expert_costs"] == config["expert_costs"] and report["expert_costs_source"] == "measured"
        text = open(os.path.join(checkpoint, "README.md")).read()
        assert "cost (measured)" in text and "| 1.5 |" in text

    def test_card_of_a_person_is_refused_and_stays(self, checkpoint):
        path = os.path.join(checkpoint, "README.md")
        with open(path, "w") as file:
            file.write("# Mine\n")
        done = run("card", checkpoint)
        assert done.exit_code == 2 and "edited by hand" in done.stderr
        assert open(path).read() == "# Mine\n"

    def test_folder_without_a_checkpoint_is_refused(self, tmp_path):
        done = run("card", str(tmp_path))
        assert done.exit_code == 2 and "`path` should be the folder of a checkpoint" in done.stderr
