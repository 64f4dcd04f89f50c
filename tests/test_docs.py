"""The documents say what is so: docs/cli.md shows every command's --help, and the README's commands and paths exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from autokernel.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "cli.md"
BLOCK = re.compile(r"\n```text\n.*?```\n", re.DOTALL)


def help_of(*command: str) -> str:
    result = CliRunner().invoke(main, [*command, "--help"], prog_name="autokernel", terminal_width=100)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.splitlines())


def in_step(document: str) -> str:
    """The document with each command's block as --help prints it now, at the end of its section."""
    head, *sections = re.split(r"(?m)^(?=## autokernel)", document)
    written = [head]
    for section in sections:
        command = section.splitlines()[0].removeprefix("## autokernel").split()
        body = BLOCK.sub("", section).rstrip()
        written.append(f"{body}\n\n```text\n{help_of(*command)}\n```\n\n")
    return "".join(written).rstrip() + "\n"


def test_the_command_line_document_is_in_step() -> None:
    document = DOCUMENT.read_text()
    expected = in_step(document)
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(expected)
    assert DOCUMENT.read_text() == expected, "run UPDATE_DOCS=1 python -m pytest tests/test_docs.py"


def test_every_command_has_a_section() -> None:
    sections = set(re.findall(r"(?m)^## autokernel (\w+)$", DOCUMENT.read_text()))
    assert sections == set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_option_is_explained(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help
    unexplained = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert unexplained == []


@pytest.mark.parametrize("document", ["README.md", "docs/cli.md", "docs/LOG.md", "CHANGELOG.md"])
def test_paths_that_a_document_names_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:autokernel|kernels|models|tests|docs)/[\w./-]+)`", text)
    named += [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    missing = [path for path in named if not (ROOT / path).exists() and not ((ROOT / document).parent / path).exists()]
    assert missing == []


def test_commands_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    used = set(re.findall(r"(?m)^autokernel (\w+)", shell)) | set(re.findall(r"`autokernel (\w+)", text))
    assert used
    assert used <= set(main.list_commands(click.Context(main)))
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    called = re.findall(r"(?m)^make ([\w -]+?)\s*(?:#.*)?$", shell) + re.findall(r"`make ([\w-]+)`", text)
    assert {name for names in called for name in names.split()} <= targets
