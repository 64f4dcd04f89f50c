"""Options of every command that asks a proposer: which one, what it is told, and what it may spend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autokernel.commands._common import Duration, Name
from autokernel.extension import ProposerOptions

_DEFAULTS = ProposerOptions()

# Option of the command line -> field of ProposerOptions.
_FIELDS = {
    "proposer_model": "model",
    "base_url": "base_url",
    "effort": "effort",
    "temperature": "temperature",
    "max_output_tokens": "max_output_tokens",
    "agent_command": "command",
    "answer_time": "time_limit_s",
    "in_flight": "in_flight",
    "fix_attempts": "fix_attempts",
    "plan": "plan",
    "prices": "prices",
    "recorded": "recorded",
    "brief_tokens": "brief_tokens",
}


def proposer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets ``proposer`` (a name) and ``proposer_options`` (a ProposerOptions)."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        told = {field: kwargs.pop(name) for name, field in _FIELDS.items()}
        return function(*args, proposer_options=ProposerOptions(**told), **kwargs)

    for option in reversed(
        (
            click.option("--proposer", type=Name("proposers", also=("auto",)), default="auto", show_default=True,
                         help="Source of ideas: a name, or module.path of your own. auto: playbook, no model."),
            click.option("--model", "proposer_model", metavar="NAME",
                         help="Language model that proposes. [default: the proposer's own]"),
            click.option("--base-url", metavar="URL", help="Endpoint of the model's API. [default: its provider's]"),
            click.option("--effort", metavar="LEVEL", help="How hard the model thinks, such as low, medium or high."),
            click.option("--temperature", type=click.FloatRange(0, 2), help="Of the model. [default: its own]"),
            click.option("--max-output-tokens", type=click.IntRange(min=1), help="Longest answer of the model."),
            click.option("--brief-tokens", type=click.IntRange(min=1000), default=_DEFAULTS.brief_tokens,
                         show_default=True, help="Longest brief that a proposer is given."),
            click.option("--plan", is_flag=True, help="Ask the model for a short plan before each edit."),
            click.option("--fix-attempts", type=click.IntRange(min=0), default=_DEFAULTS.fix_attempts,
                         show_default=True, help="How often a candidate that failed goes back to be mended."),
            click.option("--in-flight", type=click.IntRange(min=1), default=_DEFAULTS.in_flight, show_default=True,
                         help="Proposals asked for at the same time, while the judge works."),
            click.option("--command", "agent_command", metavar="CMD",
                         help="Program of --proposer command: reads the brief, edits the file."),
            click.option("--answer-time", type=Duration(), default=f"{_DEFAULTS.time_limit_s:.0f}s", show_default=True,
                         help="Longest time that one proposal may take."),
            click.option("--replay", "recorded", metavar="DIR", type=click.Path(path_type=Path),
                         help="Folder of the run that --proposer replay repeats."),
            click.option("--prices", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                         help="JSON: model -> USD per million tokens. [default: those that come with autokernel]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def spending_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``max_tokens`` and ``max_cost_usd`` of the whole run, earlier invocations included; None: no limit."""
    for option in (
        click.option("--max-cost", "max_cost_usd", type=click.FloatRange(min=0, min_open=True), metavar="USD",
                     help="Money the whole run may cost. [default: no limit]"),
        click.option("--max-tokens", type=click.IntRange(min=1),
                     help="Tokens of the whole run, in and out. [default: no limit]"),
    ):  # fmt: skip
        function = option(function)
    return function
