"""What the command line tells a proposer arrives there, and what it may not be told is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from autokernel import cli
from autokernel.commands.proposing import proposer_options, spending_options
from autokernel.extension import ProposerOptions


def told(*arguments: str) -> dict[str, Any]:
    """What a command with these options is called with."""
    seen: dict[str, Any] = {}

    @click.command()
    @spending_options
    @proposer_options
    def command(**kwargs: Any) -> None:
        seen.update(kwargs)

    result = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if result.exception:
        raise result.exception
    return seen


def test_without_options_a_proposer_has_its_own_defaults():
    assert told() == {
        "proposer": "auto",
        "proposer_options": ProposerOptions(),
        "max_cost_usd": None,
        "max_tokens": None,
    }


def test_every_option_arrives_where_a_proposer_looks(tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text("{}")
    line = (
        "--proposer replay --model big-one --base-url http://localhost:1 --effort high --temperature 0.5 "
        "--max-output-tokens 100 --brief-tokens 5000 --plan --fix-attempts 3 --in-flight 4 --answer-time 2m "
        f"--replay results/old --prices {prices} --max-cost 1.5 --max-tokens 1000"
    )
    assert told(*line.split(), "--command", "my-agent --print") == {
        "proposer": "replay",
        "proposer_options": ProposerOptions(
            model="big-one",
            base_url="http://localhost:1",
            effort="high",
            temperature=0.5,
            max_output_tokens=100,
            command="my-agent --print",
            time_limit_s=120.0,
            in_flight=4,
            fix_attempts=3,
            plan=True,
            prices=prices,
            recorded=Path("results/old"),
            brief_tokens=5000,
        ),
        "max_cost_usd": 1.5,
        "max_tokens": 1000,
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--in-flight 0", "0 is not in the range x>=1"),
        ("--fix-attempts -1", "-1 is not in the range x>=0"),
        ("--max-cost 0", "0.0 is not in the range x>0"),
        ("--temperature hot", "'hot' is not a valid float"),
        ("--prices absent.json", "'absent.json' does not exist"),
        ("--proposer replai", "did you mean 'replay'"),
        ("--proposer replay", "name it with --replay DIR"),
        ("--proposer replay --replay absent", "no such folder"),
    ],
)
def test_a_mistake_is_one_line(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("class Model: ...\n")
    result = CliRunner().invoke(cli.main, ["run", "model.py", *arguments.split()])
    assert result.exit_code == 2, result.output
    assert expected in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()
