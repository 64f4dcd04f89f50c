"""Runners made ahead: they change no verdict, serve one source, are replaced when they die, and leave nothing."""

from __future__ import annotations

import os
import secrets
import signal
import statistics
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import psutil
import pytest

from autokernel.evaluate import spares
from autokernel.evaluate.pool import Handle, Nursery, close_all
from autokernel.evaluate.stages import Failed
from autokernel.evaluate.workshop import Workshop
from autokernel.isolation import remove_tree
from autokernel.types import source_id

from .conftest import HONEST, cpp_source, torch_source

SPARES = 3


class House:
    """A workshop, and what there is in its folder."""

    def __init__(self, folder: Path) -> None:
        self.workshop = Workshop(Nursery(folder, "cpu", 1), SPARES)
        self._folder = folder
        self.started: list[Handle] = []

    def prepare(self, backend: str = "torch", steps: int | None = None) -> set[str]:
        """Take so many steps, or all; names of the runners' folders then."""
        while steps != 0 and (pending := self.workshop.prepare(backend)) is not None:
            if steps is None:
                wait([pending])
            else:
                steps -= 1
        return self.runners()

    def start(self, source: str, count: int = 1, backend: str = "torch") -> list[str]:
        """Names of the folders of so many new runners of a source."""
        handles = self.workshop.start_all([source] * count, backend)
        self.started += handles
        return [handle.scratch.name for handle in handles]

    def runners(self) -> set[str]:
        return {path.name for path in self._folder.glob("runner-*")}

    def builds(self) -> set[str]:
        """Names of the folders of build products."""
        return {path.name for path in self._folder.glob("cache/*")}

    def build_of(self, source: str) -> str:
        return self.workshop._folders[source_id(source)].name

    def clear(self) -> None:
        close_all(self.started)
        self.workshop.settle()
        for folder in self.workshop._folders.values():
            remove_tree(folder)
        self.workshop._folders.clear()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("workshop").resolve())
    yield made
    made.workshop.close()


@pytest.fixture
def house(shared: House) -> Iterator[House]:
    yield shared
    shared.clear()
    assert not shared.runners() | shared.builds()


def another(source: str) -> str:
    """The same kernel in a file of its own."""
    return f"{source}# {secrets.token_hex(8)}\n"


def test_all_runners_of_one_source_come_from_its_batch(house: House) -> None:
    ahead, (build,) = house.prepare(), house.builds()
    assert len(ahead) == SPARES
    names = house.start(HONEST) + house.start(HONEST, SPARES)
    assert set(names[:SPARES]) == ahead  # each once
    assert names[SPARES] not in ahead  # there were no more
    assert house.builds() == {build}
    assert all(handle.levels == house.workshop.isolation for handle in house.started)


def test_a_batch_that_was_used_serves_no_other_source(house: House) -> None:
    first, second, third = (another(HONEST) for _ in range(3))
    ahead = house.prepare()
    house.start(first)
    assert not set(house.start(second)) & ahead
    ahead = house.prepare() - ahead
    assert len(ahead) == SPARES + 1  # a new batch, and the second's own
    assert set(house.start(third)) <= ahead
    assert len({house.build_of(source) for source in (first, second, third)}) == 3


def test_runners_find_what_was_built_of_their_own_source_only(house: House) -> None:
    writes = torch_source("return x", "import os\nopen(os.environ['XDG_CACHE_HOME'] + '/built', 'x').close()")
    looks = torch_source("return x", "import os\nassert not os.listdir(os.environ['XDG_CACHE_HOME'])")
    house.prepare()
    house.start(writes)
    with pytest.raises(Failed, match="FileExistsError"):  # as a later runner of the same source does
        house.start(writes)
    house.start(looks)
    house.prepare()
    house.start(another(looks))


def test_memory_lies_where_it_lies_in_any_other_runner(house: House) -> None:
    lies = torch_source("return x", "raise ValueError([torch.empty(1 << n).data_ptr() for n in (16, 20, 22, 24)])")
    told: dict[bool, list[str]] = {False: [], True: []}
    for ahead in [False, True] * 5:  # one in a hundred has its heap a few bytes on, whoever made it
        if ahead:
            house.prepare()
        with pytest.raises(Failed, match="ValueError") as failure:
            house.start(another(lies))
        told[ahead].append(failure.value.reason)
        house.clear()
    assert statistics.mode(told[False]) == statistics.mode(told[True])


def test_another_backend_has_a_batch_of_its_own(house: House) -> None:
    ahead, (build,) = house.prepare(), house.builds()
    source = cpp_source()
    assert not set(house.start(source, backend="cpp")) & ahead
    assert house.build_of(source) != build
    assert not house.prepare("cpp") & ahead
    assert build not in house.builds()


def test_a_runner_that_is_still_waking_is_taken_all_the_same(house: House) -> None:
    waking = house.prepare(steps=1)
    assert set(house.start(HONEST)) == waking
    assert house.runners() == waking  # no other was begun


def test_a_source_that_is_known_leaves_the_batch_to_the_next_new_one(house: House) -> None:
    known = set(house.start(HONEST))
    ahead = house.prepare() - known
    assert not set(house.start(HONEST)) & ahead
    assert set(house.start(another(HONEST))) <= ahead


def kill(handle: Handle) -> None:
    os.kill(handle.pid, signal.SIGKILL)
    assert wait([handle.reaper_fd], 5)


def stop(handle: Handle) -> None:
    handle.freezer.freeze(alone=True)
    handle.freezer.frozen = []  # a request does not resume what it does not know of


@pytest.mark.parametrize("harm", [kill, stop])
def test_a_spare_runner_that_does_not_answer_is_replaced(
    house: House, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Handle], None]
) -> None:
    ahead = house.prepare()
    monkeypatch.setattr(spares, "WAKE_S", 0.2)
    assert house.workshop._batch is not None
    for handle in list(house.workshop._batch._awake)[:-1]:
        harm(handle)
    assert [name in ahead for name in house.start(HONEST, SPARES)] == [True, False, False]
    assert len(house.runners()) == SPARES


def test_before_anything_is_timed_all_that_is_left_ends(house: House) -> None:
    house.prepare()
    house.start(HONEST, 2)
    house.workshop.let_go(house.started)
    (timed,) = house.start(another(HONEST))  # not one of the batch, of which one is left
    house.workshop.settle()
    assert house.runners() == {timed}
    own = psutil.Process(house.started[-1].pid)
    kin = {own, *own.parents(), *own.children(recursive=True)}
    assert set(psutil.Process().children(recursive=True)) <= kin


@pytest.mark.parametrize("steps", [1, None])
def test_a_closed_workshop_leaves_nothing(tmp_path: Path, steps: int | None) -> None:
    before = set(psutil.Process().children(recursive=True))
    house = House(tmp_path.resolve())
    assert house.prepare(steps=steps)
    house.workshop.close()
    assert not psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=5)[1]
    assert not house.runners() | house.builds()
