"""``--evil-all`` judges every file of this folder; without it, a spread. The table of what stopped what comes last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autokernel.evaluate.client import JudgeClient, JudgeOptions

from .harness import SPREAD, Book

BOOK = pytest.StashKey[Book]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evil-all", action="store_true", help="judge every kernel of tests/evil, not a spread of them")
    parser.addoption("--evil-table", type=Path, help="write the table of what stopped what there, as markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOOK] = Book()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the option, only the spread."""
    if config.getoption("--evil-all", default=False):
        return
    left_out = [item for item in items if _left_out(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _left_out(item: pytest.Item) -> bool:
    spread = SPREAD.get(getattr(item, "originalname", ""))
    kernel = getattr(item, "callspec", None) and item.callspec.params.get("kernel")
    return spread is not None and bool(kernel) and kernel.name not in spread


@pytest.fixture(scope="session")
def book(request: pytest.FixtureRequest) -> Book:
    """What every judged file came to."""
    return request.config.stash[BOOK]


class InterpretingJudge(JudgeClient):
    """Its runners interpret Triton; the variable that says so is set in its processes alone."""

    def _start(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            super()._start()


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    """One judge for the whole session: its runners interpret Triton where there is no GPU."""
    with InterpretingJudge(tmp_path_factory.mktemp("evil") / "scratch") as client:
        yield client


@pytest.fixture(scope="session")
def judge_on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    with JudgeClient(tmp_path_factory.mktemp("evil") / "scratch", JudgeOptions(device="cuda")) as client:
        yield client


@pytest.fixture
def judge_without(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[JudgeClient]:
    """A judge whose sandbox lacks the level that the test names."""
    monkeypatch.setenv("AUTOKERNEL_TEST_BAIT", "bait")
    options = JudgeOptions(isolation_off=frozenset({request.param}))
    with JudgeClient(tmp_path_factory.mktemp("evil") / "scratch", options) as client:
        yield client


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[BOOK].markdown()
    if not table or not config.getoption("--evil-all", default=False):
        return
    terminalreporter.write_line(table)
    path: Path | None = config.getoption("--evil-table")
    if path is not None:
        path.write_text(table)
