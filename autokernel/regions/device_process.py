"""How a process that has the device tells its daemon where it is: a line of JSON for each step.

Each line of standard output is one object, {"event", "message", "done", "of"}; ``autokernel.run.workspace.work`` reads
them. Whatever else is printed in such a process, the model's own prints included, goes to standard error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from autokernel.evaluate.sandbox import die_with_parent
from autokernel.types import AutokernelError

Emit = Callable[..., None]  # (event, message, done=0, of=0)


def serve(work: Callable[[Emit], None], *, as_child: bool) -> int:
    """Does the work and gives the exit status: 0, or 2 after a mistake of the user's, which is told as an "error".

    ``as_child``: whoever asked may be killed, and nobody else waits for the answer, so that the process ends with it.
    """
    if as_child:
        die_with_parent()
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(event: str, message: str, done: int = 0, of: int = 0) -> None:
        events.write(json.dumps({"event": event, "message": message, "done": done, "of": of}) + "\n")

    try:
        work(emit)
    except AutokernelError as error:
        emit("error", str(error))
        return 2
    finally:
        events.close()
    return 0
