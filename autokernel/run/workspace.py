"""A run's folder, ``results/<run>/``: its name, its lock, its settings, and the profile it starts from."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel import modelref, registry
from autokernel.run.events import ProfileProgress
from autokernel.run.gitstore import told, write_file
from autokernel.types import AutokernelError, Target

VERSION = 1


def folder_of(results: Path, model: Path, device: str, name: str | None, fresh: bool) -> Path:
    """Where this run lives: ``results/<name>``, or with ``fresh`` the first of name, name-2, ... that is free."""
    name = name or f"{modelref.title(model)}-{device.replace(':', '')}"
    results = results.absolute()  # git's object store takes no relative path
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise AutokernelError(f"--run '{name}': the name of one folder under {results} was expected")
    if not fresh or not (results / name).exists():
        return results / name
    return next(path for n in range(2, 1_000_000) if not (path := results / f"{name}-{n}").exists())


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the workspace for this process. Raises AutokernelError with the holder's pid when another run has it."""
    with told(folder):
        made = not folder.parent.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if made:  # in whatever checkout the results lie, its owner's git does not see them
            write_file(folder.parent / ".gitignore", b"*\n")
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AutokernelError(
                f"{folder}: another run (pid {pid}) is working here; wait for it, stop it with `kill {pid}`, "
                "or choose another name with --run"
            ) from error
        with told(folder):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------- settings


def settle(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Writes run.json into a new workspace; compares it in an old one, and refuses what is another run's.

    ``wanted`` holds model, model_sha256, device, dtype, backend and settings, and may hold autocast.
    """
    path = folder / "run.json"
    with told(path):
        if not path.exists():
            strangers = {entry.name for entry in folder.iterdir()} - {"lock", "scratch"}
            if strangers:
                raise AutokernelError(
                    f"{folder} is not a workspace: run.json was expected, {sorted(strangers)[0]} found; "
                    "choose another name with --run"
                )
            write_file(path, json.dumps({"version": VERSION, **wanted}, indent=1).encode())
            return
        have = read_json(path)
    if have.get("version") != VERSION:
        raise AutokernelError(f"{path}: version {VERSION} was expected, {have.get('version')} found; use --fresh")
    for name in ("model_sha256", "device", "dtype", "backend", "settings", "autocast"):
        if have.get(name) != wanted.get(name):
            what, old, new = name, have.get(name), wanted.get(name)
            if name == "model_sha256":
                what, old, new = "model", have.get("model"), wanted["model"]
                new = f"{new}, as it is now" if old == new else new
            raise AutokernelError(
                f"{folder} is a run of {what} {old or 'none'}; this command is for {new or 'none'}: "
                "--fresh starts a new run, --run NAME names another"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the workspace. Raises AutokernelError when it is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AutokernelError(f"{path}: no such file; the folder of a run was expected") from error
    except OSError as error:
        raise AutokernelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise AutokernelError(f"{path}: JSON was expected, and it is broken: {error}; --fresh starts anew") from error
    if not isinstance(data, dict):
        raise AutokernelError(f"{path}: a JSON object was expected, {type(data).__name__} found; --fresh starts anew")
    return data


def native_backend(device: str) -> str:
    """The backend of kernels on this device where none is asked for."""
    native = "cpp" if device == "cpu" else "triton"
    return native if native in registry.names("backends") else "torch"


_MISSING = """
import json, sys
from autokernel import registry
print(json.dumps([[need.what, need.mend] for need in registry.load("backends", sys.argv[1]).missing()]))
"""


def require(backend: str) -> None:
    """Asks the backend, in a process of its own, whether this machine can build its kernels. AutokernelError if not."""
    command = [sys.executable, "-c", _MISSING, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise AutokernelError(f"the backend '{backend}' could not be asked what it needs: {last}")
    if needs := json.loads(done.stdout.splitlines()[-1]):
        told = "; ".join(f"{what} was expected and is missing: {mend}" for what, mend in needs)
        raise AutokernelError(f"{backend} kernels cannot be built here: {told}")


# ------------------------------------------------------------------------------------------------- profile


def starters(folder: Path, targets: Sequence[Target]) -> dict[str, bytes]:
    """The files of the first commit: the kernels, and what lies in ``context/`` where there is one; path -> content.
    Raises AutokernelError where a kernel is missing.
    """
    context = (file for file in (folder / "context").rglob("*") if file.is_file())
    files = [*(target.file for target in targets), *(file.relative_to(folder).as_posix() for file in context)]
    try:
        return {file: (folder / file).read_bytes() for file in files}
    except OSError as error:
        raise AutokernelError(
            f"{folder}: a kernel file for each target of profile.json was expected: {error}"
        ) from error


def worker_arguments(
    model: str | Path,
    device: str,
    dtype: str,
    backend: str,
    settings: Mapping[str, str],
    autocast: str | None = None,
) -> list[str]:
    """How the profiler's process is told of a model."""
    arguments = ["--model", str(model), "--device", device, "--dtype", dtype, "--backend", backend]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    return [*arguments, "--autocast", autocast] if autocast else arguments


def profile(folder: Path, arguments: list[str], on_event: Callable[[ProfileProgress], None]) -> None:
    """Profiles the model in a process of its own and moves the outcome into the workspace: kernels, then profile.json.

    ``arguments`` are the worker's, without its output folder. Raises AutokernelError with the worker's own line.
    """
    # Its own folder: the worker of a killed run may still be writing into the one it was given.
    out = folder / "scratch" / f"profile-{os.getpid()}"
    with told(folder):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    work([sys.executable, "-m", "autokernel.regions.worker", *arguments, "--out", str(out)], out, on_event)
    targets = read_json(out / "profile.json").get("targets")
    if not targets:
        raise AutokernelError(
            "the profile has no target: no part of this model is one of the known problems; "
            "`autokernel profile` shows where its time goes, `autokernel list` what is known"
        )
    with told(folder):
        for kernel in sorted((out / "kernels").glob("*.py")):
            write_file(folder / "kernels" / kernel.name, kernel.read_bytes())
        for problem in sorted((out / "context").glob("*.py")):
            write_file(folder / "context" / problem.name, problem.read_bytes())
        write_file(folder / "profile.json", (out / "profile.json").read_bytes())  # last: it says that all is there
        shutil.rmtree(out, ignore_errors=True)


def work(command: list[str], scratch: Path, on_event: Callable[[ProfileProgress], None]) -> None:
    """Runs the worker to its end, passing its progress on; its process group dies with us."""
    failure, errors = "", scratch / "stderr"
    with errors.open("wb") as stderr:
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
    try:
        assert worker.stdout is not None
        for line in worker.stdout:
            try:
                event = json.loads(line)
                phase, message = str(event["event"]), str(event.get("message", ""))
            except (ValueError, KeyError, TypeError):
                continue  # the model printed something
            if phase == "error":
                failure = message
            else:
                on_event(ProfileProgress(phase, message, int(event.get("done", 0)), int(event.get("of", 0))))
        status = worker.wait()
    finally:
        if worker.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()
    if status:
        tail = errors.read_text(errors="replace").strip()[-2000:]
        raise AutokernelError(failure or f"the profiler ended with status {status}: {tail or 'it said nothing'}")
