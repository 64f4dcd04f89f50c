"""The MCP server as a real process, spoken to by the SDK's own client, over a kernel with a reference of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from owner_folder import ROOT, one_line

from autokernel.run import history

mcp = pytest.importorskip("mcp")

REFERENCE = '''"""Squared ReLU."""
import torch
@torch.compiler.disable  # its compiled baseline would be most of this test's time
def reference(x, bias, scale=2.0):
    return torch.relu(x + bias).square() * scale
def make_inputs(rows=64, columns=128):
    return [torch.randn(rows, columns), torch.randn(columns), 2.0]
'''
SLOW = """import torch
def kernel_fn(x, bias, scale=2.0):
    y = torch.relu(x + bias)
    for _ in range(200):
        y = y + 0.0
    return y * y * scale
"""
FAST = SLOW.replace("range(200)", "range(0)")
WRONG = FAST.replace("relu(x + bias)", "relu(x)")


@pytest.fixture
def place(tmp_path, autokernel):
    (tmp_path / "squared.py").write_text(REFERENCE)
    (tmp_path / "slow.py").write_text(SLOW)
    made = autokernel("init", "agent", "--kernel", "slow.py", "--reference", "squared.py", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    return (tmp_path / "agent").rename(tmp_path / "moved")  # its reference goes with it


def test_an_own_reference_over_mcp(place):
    kernel = place / "kernels" / "slow.py"
    said = '\n\nKERNEL_TYPE = "squared"\nBACKEND = "torch"\n'
    assert kernel.read_text() == SLOW.rstrip("\n") + said

    async def talk(client):
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {"bench", "try", "history", "brief"}
        brief = await ask(client, "brief")
        assert "torch.relu(x + bias).square() * scale" in brief and "rows256" not in brief
        judged = json.loads(await ask(client, "bench", source=WRONG + said))
        assert judged["status"] == "SMOKE"
        wrong = json.loads(await ask(client, "try", hypothesis="tier 3: leave the bias out", source=WRONG + said))
        assert (wrong["decision"], wrong["status"]) == ("revert", "SMOKE")
        kernel.write_text(FAST + said)
        kept = json.loads(await ask(client, "try", hypothesis="tier 2: fewer passes"))
        assert (kept["decision"], kept["status"]) == ("keep", "PASS"), kept
        assert kept["champion"]["speedup_vs_eager"] is not None and kept["pct_peak"] is not None
        rows = [json.loads(line) for line in (await ask(client, "history", last=2)).splitlines()]
        assert [row["decision"] for row in rows] == ["revert", "keep"]
        refused = await client.call_tool("try", {"hypothesis": "nothing"})
        assert refused.is_error and "nothing was edited" in refused.content[0].text

    asyncio.run(connected(place, talk))
    assert kernel.read_text() == FAST + said
    assert [(row.problem, row.backend) for row in history.read(place)] == [("squared", "torch")] * 3


async def connected(folder: Path, talk) -> None:
    from mcp import ClientSession, StdioServerParameters, stdio_client

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "autokernel", "mcp", str(folder)], env=environment, cwd=str(folder)
    )
    async with stdio_client(server) as (read, write), ClientSession(read, write) as client:
        await client.initialize()
        await talk(client)


async def ask(client, tool: str, **arguments: object) -> str:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.content[0].text


def test_what_is_no_run_is_one_line(tmp_path, autokernel):
    one_line(autokernel("mcp", ".", cwd=tmp_path), "the folder of a run was expected")
