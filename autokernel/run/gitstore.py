"""The workspace's own git repository, written in this process.

Objects and refs are written by GitPython's Python code: each is one temporary file and one rename, so a kill at any
moment leaves the old state or the new one, no child process outlives us, and no hook, signature or configuration of
the user's takes part. The only git command is ``git init``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import subprocess
from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from pathlib import Path

import git
import gitdb  # type: ignore[import-untyped]
from git.objects.fun import tree_to_stream
from git.objects.util import altz_to_utctz_str
from gitdb.base import IStream  # type: ignore[import-untyped]

from autokernel.types import AutokernelError

BRANCH = "refs/heads/main"
_AUTHOR = git.Actor("autokernel", "autokernel@localhost")
_FILE, _FOLDER = 0o100644, 0o040000


@contextlib.contextmanager
def told(what: Path) -> Iterator[None]:
    """Turns what the disk or git refuses into one line that a person can act on."""
    try:
        yield
    except OSError as error:
        mend = {
            errno.ENOSPC: "the disk is full: free some space, then run the same command again",
            errno.EDQUOT: "the disk quota is used up: free some space, then run the same command again",
            errno.EROFS: "the file system is read-only: choose another folder with --results",
            errno.EACCES: "permission denied: a folder that this user may write was expected",
            errno.EPERM: "permission denied: a folder that this user may write was expected",
        }.get(error.errno or 0, error.strerror or str(error))
        raise AutokernelError(f"{error.filename or what}: {mend}") from error
    except (git.GitError, gitdb.exc.ODBError, ValueError) as error:
        raise AutokernelError(
            f"{what}: a sound git repository of a run was expected; git says: {error}. "
            f"`git -C {what} fsck` shows what is broken; --fresh starts a new run beside it"
        ) from error


class Store:
    """Commits, blobs and refs of one repository. Methods raise what git and the disk raise: see ``told``."""

    def __init__(self, folder: Path) -> None:
        """Opens the repository in ``folder``, which must have one."""
        self.folder = folder
        with _no_git_environment():
            self._repo = git.Repo(folder, search_parent_directories=False)
        # gitdb reads and writes objects in this process; GitPython's default runs git, which a Ctrl-C reaches, too. Its
        # weakness is repositories from strangers: this one is our own.
        self._repo.odb = gitdb.GitDB(str(folder / ".git" / "objects"))
        # With the lock of the workspace in our hands, a lock file can only be what a killed process left behind.
        # The same holds of the temporary files of ``write_file``.
        places = (folder.glob(".*.tmp"), folder.glob("kernels/.*.tmp"), folder.glob(".git/*.lock"))
        for stale in itertools.chain(*places, (folder / ".git" / "refs").rglob("*.lock")):
            stale.unlink()

    @classmethod
    def create(cls, folder: Path, files: Mapping[str, str | bytes], message: str, when_s: int) -> Store:
        """Makes the repository with ``files`` (path -> content) as its first commit; it appears in one step, whole."""
        nursery = folder / "scratch" / f"git-{os.getpid()}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "init", "--quiet", "--template=", str(nursery)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise AutokernelError("git was expected on this machine and is not installed: install git") from error
        if done.returncode:
            raise AutokernelError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        (nursery / ".git" / "HEAD").write_text(f"ref: {BRANCH}\n", encoding="utf-8")
        young = cls(nursery)
        with young._repo.config_writer() as config:
            for section, name, value in (
                ("user", "name", str(_AUTHOR.name)),
                ("user", "email", str(_AUTHOR.email)),
                ("commit", "gpgsign", "false"),
                ("core", "hooksPath", os.devnull),
                ("core", "autocrlf", "false"),
            ):
                config.set_value(section, name, value)
        young.set_ref(BRANCH, young.put_commit(None, files, message, when_s))
        young.close()
        (nursery / ".git").rename(folder / ".git")
        nursery.rmdir()
        return cls(folder)

    def close(self) -> None:
        self._repo.close()

    # -------------------------------------------------------------------------------------------------- refs

    def ref(self, name: str) -> str | None:
        """The object that a ref names, in hex, or None when there is no such ref."""
        try:
            return str(git.Reference(self._repo, name).object.hexsha)
        except ValueError:
            if (self.folder / ".git" / name).exists():
                raise
            return None
        except AssertionError as error:  # GitPython's word for a ref file without content
            raise ValueError(f"{name} is empty") from error

    def numbered(self, prefix: str) -> dict[int, str]:
        """The refs ``<prefix>/1``, ``<prefix>/2``, ...: number -> object in hex."""
        found = git.Reference.iter_items(self._repo, prefix)
        return {int(ref.path.rsplit("/", 1)[1]): self.ref(str(ref.path)) or "" for ref in found}

    def set_ref(self, name: str, sha: str) -> None:
        git.Reference(self._repo, name).set_object(self._repo.rev_parse(sha))

    # -------------------------------------------------------------------------------------------------- objects

    def put_blob(self, data: bytes) -> str:
        return str(self._repo.odb.store(IStream("blob", len(data), BytesIO(data))).hexsha.decode())

    def blob(self, sha: str) -> bytes:
        return bytes(self._repo.odb.stream(bytes.fromhex(sha)).read())

    def put_commit(self, parent: str | None, changes: Mapping[str, str | bytes], message: str, when_s: int) -> str:
        """A commit of the parent's files with ``changes`` (path -> content); no branch moves. ``when_s``: Unix time."""
        files = self._files(parent) if parent else {}
        files.update({p: self.put_blob(d.encode() if isinstance(d, str) else d) for p, d in changes.items()})
        date = f"{when_s} {altz_to_utctz_str(0)}"
        commit = git.Commit.create_from_tree(
            self._repo,
            git.Tree(self._repo, bytes.fromhex(self._put_tree(files))),
            message,
            parent_commits=[git.Commit(self._repo, bytes.fromhex(parent))] if parent else [],
            head=False,
            author=_AUTHOR,
            committer=_AUTHOR,
            author_date=date,
            commit_date=date,
        )
        return str(commit.hexsha)

    def message(self, commit: str) -> str:
        return str(self._commit(commit).message)

    def parent(self, commit: str) -> str:
        """The first parent in hex; "" for the first commit."""
        parents = self._commit(commit).parents
        return str(parents[0].hexsha) if parents else ""

    def text(self, commit: str, path: str) -> str | None:
        """A file of a commit, or None when the commit has no such file."""
        sha = self._files(commit).get(path)
        return None if sha is None else self.blob(sha).decode()

    def _commit(self, sha: str) -> git.Commit:
        return git.Commit(self._repo, bytes.fromhex(sha))

    def _files(self, commit: str) -> dict[str, str]:
        tree = self._commit(commit).tree
        return {str(item.path): str(item.hexsha) for item in tree.traverse() if isinstance(item, git.Blob)}

    def _put_tree(self, files: Mapping[str, str]) -> str:
        """A tree of ``files`` (path -> blob in hex), folders as subtrees."""
        folders: dict[str, dict[str, str]] = {}
        entries: list[tuple[bytes, int, str]] = []
        for path, sha in files.items():
            head, _, rest = path.partition("/")
            if rest:
                folders.setdefault(head, {})[rest] = sha
            else:
                entries.append((bytes.fromhex(sha), _FILE, head))
        entries += [(bytes.fromhex(self._put_tree(inner)), _FOLDER, name) for name, inner in folders.items()]
        entries.sort(key=lambda entry: entry[2] + "/" if entry[1] == _FOLDER else entry[2])  # git's own order
        stream = BytesIO()
        tree_to_stream(entries, stream.write)
        data = stream.getvalue()
        return str(self._repo.odb.store(IStream("tree", len(data), BytesIO(data))).hexsha.decode())

    # -------------------------------------------------------------------------------------------------- files

    def check_out(self, keep: Collection[str] = ()) -> dict[str, str]:
        """Makes the tracked files on disk those of the branch tip, but for the paths in ``keep``. A version that git
        does not know is somebody's work: it is moved into ``set-aside/``; returns path -> where it went.
        """
        tip = self.ref(BRANCH)
        assert tip is not None, "a workspace has a first commit"
        asides, files = {}, self._files(tip)
        for path, sha in files.items():
            if path in keep:
                continue
            data, file = self.blob(sha), self.folder / path
            present = file.read_bytes() if file.is_file() else None
            if present == data:
                continue
            if present is not None and not self._knows(present):
                places = (self.folder / "set-aside" / f"{file.stem}-{n}{file.suffix}" for n in range(1, 10_000))
                place = next(place for place in places if not place.exists())
                write_file(place, present)
                asides[path] = str(place.relative_to(self.folder))
            write_file(file, data)
        index = git.IndexFile(self._repo)
        index.add(sorted(set(files) - set(keep)))
        index.write()
        return asides

    def tracked(self) -> list[str]:
        """The files of the branch tip."""
        tip = self.ref(BRANCH)
        assert tip is not None, "a workspace has a first commit"
        return sorted(self._files(tip))

    def edited(self) -> list[str]:
        """The tracked files whose content on disk is not the branch tip's, or that are gone."""
        tip = self.ref(BRANCH)
        assert tip is not None, "a workspace has a first commit"
        files = ((path, self.folder / path, self.blob(sha)) for path, sha in self._files(tip).items())
        return sorted(path for path, file, data in files if not (file.is_file() and file.read_bytes() == data))

    def _knows(self, data: bytes) -> bool:
        name = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        return bool(self._repo.odb.has_object(name.digest()))


def write_file(path: Path, data: bytes) -> None:
    """Replaces a file in one step: whoever reads it sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_git_environment() -> Iterator[None]:
    """Hides GIT_DIR and its like, which a hook or an editor may have set: they would lead us to another repository."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("GIT_")}
    try:
        yield
    finally:
        os.environ.update(hidden)
