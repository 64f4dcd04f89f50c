"""Questions to a proposer, each in a thread of its own, so that the judge, a limit or a signal never waits for one.

The threads are daemons: nobody waits for them at the end. What an answer cost is on the disk before anybody takes it.
Only the main thread asks and takes.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import queue
import threading
from collections.abc import Iterator

from autokernel.extension import Brief, Proposal, Proposer, Unanswered
from autokernel.run.unbooked import Unbooked


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of one question: a proposal, None (nothing left to try), or the exception that ``propose`` raised.
    ``entry`` is where its cost is noted.
    """

    key: str
    brief: Brief
    proposal: Proposal | None
    error: BaseException | None
    entry: str


class InFlight:
    """Calls of one proposer's ``propose``, at most ``width`` at once. A ``key`` says what a question is for."""

    def __init__(self, proposer: Proposer, unbooked: Unbooked) -> None:
        self.width = max(1, proposer.in_flight)
        self._proposer, self._unbooked = proposer, unbooked
        self._running: collections.Counter[str] = collections.Counter()
        self._arrived: dict[str, collections.deque[Answer]] = collections.defaultdict(collections.deque)
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    @property
    def running(self) -> int:
        """Calls that have not answered, as far as it was looked."""
        return self._running.total()

    def outstanding(self, key: str) -> int:
        """Questions of this key that are not answered, or whose answer was not taken."""
        return self._running[key] + len(self._arrived[key])

    def waiting(self, key: str) -> Iterator[Proposal]:
        """Proposals of this key that nobody has taken yet, in the order in which they came."""
        self.collect(0.0)
        return (answer.proposal for answer in self._arrived[key] if answer.proposal)

    def ask(self, key: str, brief: Brief) -> None:
        """Starts a call. The caller sees to it that fewer than ``width`` are running."""
        self._running[key] += 1
        threading.Thread(target=self._call, args=(key, brief), name=f"propose {key}", daemon=True).start()

    def take(self, key: str) -> Answer | None:
        """The first answer of this key that has come, or None."""
        self.collect(0.0)
        if not self._arrived[key]:
            return None
        answer = self._arrived[key].popleft()
        self._unbooked.release(answer.entry)
        return answer

    def collect(self, timeout_s: float) -> bool:
        """Waits until a call has answered; then, and after ``timeout_s``, sorts what has come. False: nothing came."""
        came = False
        timeout: float | None = min(max(0.0, timeout_s), threading.TIMEOUT_MAX)
        if math.isinf(timeout_s):
            timeout = None
        while self._running.total():
            try:
                answer = self._answers.get(timeout=0.0 if came else timeout)
            except queue.Empty:
                break
            came = True
            self._running[answer.key] -= 1
            self._arrived[answer.key].append(answer)
        return came

    def _call(self, key: str, brief: Brief) -> None:
        try:
            answer = self._answer(key, brief)
        except BaseException as error:  # whatever it is, it is the main thread's to raise
            answer = Answer(key, brief, None, error, "")
        self._answers.put(answer)

    def _answer(self, key: str, brief: Brief) -> Answer:
        try:
            proposal = self._proposer.propose(brief)
        except Unanswered as error:
            return Answer(key, brief, None, error, self._unbooked.add(error.cost, error.exchanges))
        entry = self._unbooked.add(proposal.cost, proposal.exchanges, waiting=True) if proposal else ""
        return Answer(key, brief, proposal, None, entry)
