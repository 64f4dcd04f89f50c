"""``autokernel init``: a folder with all that a coding agent needs for one kernel, and an ordinary run underneath.

The folder is the run's workspace (run.json, profile.json, results.tsv, experiments/, git refs), so that report, replay
and the night itself work in it; its one editable file is kernels/<target>.py. ``context/`` holds what there is to know,
tracked with the kernel in the first commit: the model and its profile, the owner's reference (which *is* the problem:
profile.json names it relative to the folder, so that the folder can be moved), or the bench command and its files.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autokernel import kernelfile, modelref
from autokernel.agent import place as places
from autokernel.agent import texts, tryout
from autokernel.agent.place import DEFAULT_GAIN, Place
from autokernel.evaluate.bench_metric import BenchCommand
from autokernel.guide.problem import describe
from autokernel.isolation import remove_tree
from autokernel.run import session, workspace
from autokernel.run.events import Observer
from autokernel.run.gitstore import told, write_file
from autokernel.run.signals import Signals
from autokernel.types import AutokernelError, Experiment, Status, Target, Workload

MAX_CONTEXT_BYTES = 64 << 20
_IMPORTS = (("triton", r"^\s*(?:import|from) triton\b"), ("cuda", r"cuda_sources"), ("cpp", r"\btvm_ffi\b"))

AskWorkloads = Callable[[str, str, str], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Request:
    """What ``init`` is told: a model (and which of its targets), or a kernel with what judges it."""

    folder: Path
    model: Path | None = None
    kernel: Path | None = None
    reference: Path | None = None
    bench: str | None = None
    higher_is_better: bool = False
    bench_limit_s: float = 120.0
    context: tuple[Path, ...] = ()
    target: str | None = None
    device: str = "cpu"
    dtype: str = "fp32"
    autocast: str | None = None
    backend: str | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    min_gain: float = DEFAULT_GAIN


def create(request: Request, observer: Observer, ask_workloads: AskWorkloads) -> tuple[Place, Experiment]:
    """Makes the folder and judges what it starts from: the place, and the baseline's experiment.

    ``ask_workloads(problem, device, given)`` asks a device process for workloads and their floor. Raises
    AutokernelError, and leaves no folder behind, where something is missing or the kernel does not pass as it is.
    """
    folder = request.folder.absolute()
    _check(request, folder)
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with Signals() as signals:
            prepare = _Making(request, folder, observer, ask_workloads).make
            with session.opened(folder, observer, prepare=prepare, held=signals.held) as opened:
                place = places.read(folder)
                (target,) = place.targets
                with tryout.own_judge(place, target) as judge:
                    baseline = tryout.baseline(opened, target, judge, observer)
                verdict = baseline.verdict
                if verdict.status is not Status.PASS:
                    log = (verdict.log_tail.strip().splitlines() or [""])[-1]
                    raise AutokernelError(
                        f"the kernel was expected to pass as it is; {verdict.status.value} at {verdict.stage}: "
                        f"{' '.join(verdict.reason.split())}" + (f" ({log[:200]})" if log else "")
                    )
                _note_eager(folder, baseline)
                place = places.read(folder)
                texts.write_new(place)
                tryout.write_texts(place, opened.ledger)
    except BaseException:  # also an interruption: a folder that is half made helps nobody
        remove_tree(folder)
        raise
    return place, baseline


def _check(request: Request, folder: Path) -> None:
    if (request.model is None) == (request.kernel is None):
        raise AutokernelError("init was expected to get either --model MODEL.py or --kernel FILE")
    if request.model and (request.reference or request.bench or request.context):
        raise AutokernelError(
            "--reference, --bench and --context go with --kernel FILE; with --model the model says all"
        )
    if request.target and not request.model:
        raise AutokernelError("--target goes with --model: a kernel is its own target")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AutokernelError(f"{folder} was expected to be new or empty, and it is not; choose another name")


class _Making:
    """Writes run.json, the kernel, context/ and, last, profile.json."""

    def __init__(self, request: Request, folder: Path, observer: Observer, ask_workloads: AskWorkloads) -> None:
        self.request, self.folder, self.observer, self.ask_workloads = request, folder, observer, ask_workloads
        self.context = folder / "context"

    def make(self) -> None:
        with told(self.folder):
            if self.request.model is not None:
                self._from_model(self.request.model)
            else:
                assert self.request.kernel is not None
                self._from_kernel(self.request.kernel)
            size = sum(file.stat().st_size for file in self.context.rglob("*") if file.is_file())
        if size > MAX_CONTEXT_BYTES:
            raise AutokernelError(
                f"context/ was expected to hold at most {MAX_CONTEXT_BYTES >> 20} MiB; it has {size >> 20}"
            )

    def _settle(self, subject: Path, backend: str, dtype: str | None = None) -> None:
        """run.json, as a run of the subject would have it."""
        request = self.request
        wanted = {
            "version": workspace.VERSION,
            "model": str(subject),
            "model_sha256": modelref.digest(subject),
            "device": request.device,
            "dtype": dtype or request.dtype,
            "backend": backend,
            "settings": dict(request.settings),
            "autocast": request.autocast,
            "min_gain": request.min_gain,
        }
        write_file(self.folder / "run.json", json.dumps(wanted, indent=1).encode())

    # ------------------------------------------------------------------------------------------ from a model

    def _from_model(self, model: Path) -> None:
        request = self.request
        backend = request.backend or workspace.native_backend(request.device)
        workspace.require(backend)
        self._settle(model, backend)
        arguments = workspace.worker_arguments(
            model, request.device, request.dtype, backend, request.settings, request.autocast
        )
        workspace.profile(self.folder, arguments, self.observer.on_event)
        profile = workspace.read_json(self.folder / "profile.json")
        names = [target["name"] for target in profile["targets"]]
        if request.target and request.target not in names:
            raise AutokernelError(
                f"--target {request.target} was expected to be one of this model's: {', '.join(names)}"
            )
        chosen = next(t for t in profile["targets"] if t["name"] == (request.target or names[0]))
        for kernel in (self.folder / "kernels").glob("*.py"):
            if kernel.stem != chosen["name"]:
                kernel.unlink()
        name = modelref.huggingface(model)
        if name is None:
            self._add(model, "model.py")
        elif modelref.is_folder(name):
            self._add(Path(name).expanduser() / "config.json", "config.json")
        self._put("profile.json", json.dumps(profile, indent=1) + "\n")
        self._oracle(chosen["problem"])
        self._profile({**profile, "targets": [chosen]})

    # ------------------------------------------------------------------------------------------ from a kernel

    def _from_kernel(self, kernel: Path) -> None:
        request = self.request
        name = re.sub(r"\W+", "_", kernel.stem)
        for extra in request.context:
            self._add(extra, extra.name)
        if request.bench is not None:
            backend = request.backend or "any"
            self._settle(kernel, backend)
            command = self._self_contained(request.bench)
            bench = BenchCommand(command, request.higher_is_better, request.bench_limit_s)
            self._put(f"{name}.json", json.dumps(bench.to_json(), indent=1) + "\n")
            if request.reference is not None:
                self._add(request.reference, request.reference.name)
            target = Target(name, f"context/{name}.json", backend, (), 1.0, 0.0, 0.0, kernel.suffix)
            write_file(self.folder / target.file, kernel.read_bytes())
            self._profile({"targets": [target.to_json()]})
            return
        source = kernel.read_text(encoding="utf-8", errors="surrogateescape")
        if request.reference is not None:
            source = _named(source, re.sub(r"\W+", "_", request.reference.stem), request.backend)
        path = self.folder / "kernels" / f"{name}.py"
        write_file(path, source.encode("utf-8", "surrogateescape"))
        if request.reference is not None:
            kind = re.search(r'(?m)^KERNEL_TYPE\s*(?::\s*str\s*)?=\s*["\'](\w+)["\']', source)
            stem = kind[1] if kind else request.reference.stem
            self._add(request.reference, f"{stem}.py")
            found = kernelfile.read(path, self.context / f"{stem}.py")
            problem = f"context/{stem}.py"
        else:
            found = kernelfile.read(path)
            problem = found.problem
            self._oracle(problem)
        workspace.require(found.backend)
        given = json.dumps([w.to_json() for w in found.workloads] or None)
        answer = self.ask_workloads(found.problem, request.device, given)
        works = tuple(Workload.from_json(w) for w in answer["workloads"])
        self._settle(kernel, found.backend, works[0].dtype)
        target = Target(name, problem, found.backend, works, 1.0, 0.0, answer["floor_us"])
        told_by_problem = {name: answer[name] for name in ("hardware", "signature")}
        self._profile({"targets": [target.to_json()], **told_by_problem})

    def _self_contained(self, command: str) -> str:
        """The command with each file that it names copied into context/ and named there."""
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise AutokernelError(
                f"--bench was expected to be a shell command line; '{command}' has {error}"
            ) from error
        if not words:
            raise AutokernelError("--bench was expected to be a shell command line; it is empty")
        for word in dict.fromkeys(words):
            if Path(word).is_file() and not (Path(word).is_absolute() and shutil.which(word)):
                self._add(Path(word), Path(word).name)
                command = re.sub(rf"(?<![\w./-]){re.escape(word)}(?![\w./-])", f"context/{Path(word).name}", command)
        return command

    # ------------------------------------------------------------------------------------------ files

    def _add(self, source: Path, name: str) -> None:
        """Copies a file or a folder into context/. Raises AutokernelError for one that is not there, or there twice."""
        there = self.context / name
        if there.exists():
            if source.is_file() and there.is_file() and there.read_bytes() == source.read_bytes():
                return
            raise AutokernelError(f"two files named {name} were given for context/; rename one of them")
        self.context.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, there, ignore=shutil.ignore_patterns("__pycache__", ".git"))
        elif source.is_file():
            shutil.copyfile(source, there)
        else:
            raise AutokernelError(f"a file was expected at {source}; there is none")

    def _put(self, name: str, text: str) -> None:
        write_file(self.context / name, text.encode())

    def _oracle(self, problem: str) -> None:
        """A built-in problem's oracle, to read."""
        if oracle := describe(problem).oracle:
            self._put("oracle.py", oracle if oracle.endswith("\n") else f"{oracle}\n")

    def _profile(self, data: Mapping[str, Any]) -> None:
        write_file(self.folder / "profile.json", (json.dumps({"version": 1, **data}, indent=1) + "\n").encode())


def _named(source: str, stem: str, backend: str | None) -> str:
    """The kernel with KERNEL_TYPE and BACKEND at its end where it does not say them."""
    guessed = next((name for name, pattern in _IMPORTS if re.search(pattern, source, re.MULTILINE)), "torch")
    lacking = {"KERNEL_TYPE": stem, "BACKEND": backend or guessed}
    added = [f'{n} = "{v}"' for n, v in lacking.items() if not re.search(rf"(?m)^{n}\b", source)]
    return source.rstrip("\n") + "\n\n" + "\n".join(added) + "\n" if added else source


def _note_eager(folder: Path, baseline: Experiment) -> None:
    """What eager took when the baseline was judged is the time that a gain is counted from, where no model told it."""
    data = workspace.read_json(folder / "profile.json")
    (target,) = data["targets"]
    measured = baseline.verdict.measurements
    if not target["eager_us"] and measured is not None and "eager" in measured.baselines_us:
        target["eager_us"] = measured.baselines_us["eager"]
        with told(folder):
            write_file(folder / "profile.json", (json.dumps(data, indent=1) + "\n").encode())
