"""Who the embedded Postgres runs as: it refuses root, and any user without a name."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from infra import processes

_PROBE_S = 30.0
_STAGED = "undrift-postgres-"
_NOTE = "postgres.binaries"


class NoIdentity(Exception):
    """Postgres cannot run as anybody here; the message says what was tried."""


class Identity(NamedTuple):
    """`own`: as we are. `namespace`: as we are, under another name in a user namespace. `setuid`: as that user."""

    way: Literal["own", "namespace", "setuid"]
    uid: int
    gid: int

    def enter(self) -> None:
        """Become it, in a forked child."""
        if self.way == "namespace":
            processes.enter_user_namespace(self.uid, self.gid)
        elif self.way == "setuid":
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)

    def child(self, signum: int) -> Callable[[], None]:
        """A `preexec_fn`: become it, and get `signum` when the parent ends."""
        follow = processes.follow_parent(signum)

        def prepare() -> None:
            self.enter()
            follow()

        return prepare

    def give(self, path: Path) -> None:
        """Hand a file or folder over to it."""
        if self.way == "setuid":
            os.chown(path, self.uid, self.gid)


class Place(NamedTuple):
    """Whoever runs it, from which copy of the binaries, and whether its home is reachable by its absolute path."""

    identity: Identity
    binaries: Path
    reachable: bool


def settle(package: Path, release: str, home: Path) -> Place:
    """The first identity that can run `package`/`release`/bin/postgres for the cluster in `home`.

    Root prefers a namespace, where files stay root's and nobody else's; containers forbid it, and then it is
    `nobody`. Binaries in a folder closed to that identity are copied to one that is open. Raises NoIdentity.
    """
    tried = []
    for identity in _candidates(home):
        if identity.way == "own":
            return Place(identity, package / release, reachable=True)
        binaries = package / release
        problem = _runs(identity, binaries)
        if problem is not None and _reaches(identity, Path("/")):  # it can be that, but not run this
            binaries = _staged_copy(package, release, home, identity)
            problem = _runs(identity, binaries)
        if problem is None:
            _hand_over(home, identity)
            return Place(identity, binaries, _reaches(identity, home))
        tried.append(f"{identity.way} {identity.uid}: {problem}")
    raise NoIdentity("Postgres cannot run as root, nor as anybody else here: " + "; ".join(tried))


def discard(home: Path) -> None:
    """Remove the copy of the binaries that was made for the cluster in `home`, if there is one."""
    note = home.parent / _NOTE
    if note.exists():
        staged = Path(note.read_text().strip())
        if staged.name.startswith(_STAGED) and staged.is_dir() and staged.lstat().st_uid == os.geteuid():
            shutil.rmtree(staged)
        note.unlink()


def _candidates(home: Path) -> Iterator[Identity]:
    me, owner = os.geteuid(), home.stat().st_uid
    nobody = _nobody()
    if me != 0:
        if _is_named(me):
            yield Identity("own", me, os.getegid())
        else:
            yield Identity("namespace", *nobody)
    elif owner == 0:
        yield Identity("namespace", *nobody)
        yield Identity("setuid", *nobody)
    elif _is_named(owner):
        yield Identity("setuid", owner, pwd.getpwuid(owner).pw_gid)
    else:
        yield Identity("setuid", *nobody)


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        entry = next((each for each in pwd.getpwall() if each.pw_uid != 0), None) or pwd.getpwuid(0)
    return entry.pw_uid, entry.pw_gid


def _runs(identity: Identity, binaries: Path) -> str | None:
    """Why that identity cannot run Postgres from there; None when it can."""
    return _try(identity, [str(binaries / "bin" / "postgres"), "-V"])


def _reaches(identity: Identity, directory: Path) -> bool:
    return _try(identity, ["/bin/sh", "-c", 'cd "$0"', str(directory)]) is None


def _try(identity: Identity, arguments: list[str]) -> str | None:
    try:
        subprocess.run(
            arguments,
            preexec_fn=identity.child(signal.SIGKILL),
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_PROBE_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None


def _hand_over(home: Path, identity: Identity) -> None:
    """Root's own cluster, taken to where namespaces are forbidden, becomes that user's."""
    if identity.way == "setuid" and home.stat().st_uid != identity.uid:
        for folder, _, files in os.walk(home):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, identity.uid, identity.gid, follow_symlinks=False)


def _staged_copy(package: Path, release: str, home: Path, identity: Identity) -> Path:
    """The binaries once more, where that identity can reach them; the copy of an earlier start is removed."""
    discard(home)
    note = home.parent / _NOTE
    parent = home.parent if _reaches(identity, home.parent) else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix=_STAGED, dir=parent))
    processes.write_private(note, f"{folder}\n".encode())
    for name in ("bin", "lib", "share"):
        _stage(package / release / name, folder / package.name / release / name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        _stage(libraries, folder / libraries.name)
    for opened in (folder, folder / package.name, folder / package.name / release):
        opened.chmod(0o755)
    return folder / package.name / release


def _stage(source: Path, target: Path) -> None:
    """Hard links where the files may be read by all, copies elsewhere; without what only compilers want."""
    target.mkdir(parents=True)
    for entry in os.scandir(source):
        path = Path(entry.path)
        if entry.is_symlink():
            (target / entry.name).symlink_to(os.readlink(path))
        elif entry.is_dir():
            if entry.name not in ("pgxs", "pkgconfig"):
                _stage(path, target / entry.name)
        elif not entry.name.endswith(".a"):
            _link(path, target / entry.name)
    target.chmod(0o755)


def _link(source: Path, target: Path) -> None:
    mode = source.stat().st_mode
    if mode & stat.S_IROTH:
        try:
            os.link(source, target)
        except OSError:
            pass  # another file system, or links are forbidden
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
