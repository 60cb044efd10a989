"""What a runner gives up before it touches input, rung by rung.

Which rungs hold depends on the kernel and on the container around us. A rung that does not hold is left out of the
answer: nothing is assumed. `enter_namespaces` is called before the runner's process is forked, `settle` in it, and
`confine` once its run directory is known.
"""

import os
import resource
import site
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from workers import kernel, landlock

NAMESPACES = (
    kernel.NEW_USER | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_PID | kernel.NEW_NS,
    kernel.NEW_USER | kernel.NEW_NET | kernel.NEW_IPC,
    kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_PID | kernel.NEW_NS,
    kernel.NEW_NET | kernel.NEW_IPC,
    0,
)
"""Tried from the best down. Containers often forbid user namespaces, or a fresh /proc, which a PID namespace needs."""

OPEN_FILES, PROCESSES = 1024, 1024


@dataclass(frozen=True)
class Limits:
    run_dir: Path
    memory_bytes: int | None
    """Of anonymous memory (RLIMIT_DATA): address space alone says nothing with a runtime that maps libraries."""
    file_bytes: int


def enter_namespaces(flags: int) -> None:
    """A process namespace counts for the children only. Raises OSError where the kernel or the container forbids it."""
    uid, gid = os.getuid(), os.getgid()
    if flags:
        kernel.unshare(flags)
    if flags & kernel.NEW_USER:
        # The same numbers inside as outside: files stay ours, but no capability reaches beyond the namespace.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def settle(flags: int) -> tuple[str, ...]:
    """In the runner's process: finish the namespaces, drop privileges. Returns the rungs that hold."""
    if flags & kernel.NEW_NS:
        kernel.mount("none", "/", "none", kernel.MS_REC | kernel.MS_PRIVATE)
    if flags & kernel.NEW_PID:
        # Without its own /proc a process would read others' figures under its own number.
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()
    holds = {
        "clean_environment": "DATABASE_URL" not in os.environ,
        "no_new_privs": kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1,
        "no_capabilities": int(kernel.status_field("CapEff"), 16) == 0,
        "user_namespace": bool(flags & kernel.NEW_USER),
        "no_network": _interfaces() <= {"lo"},
        "pid_namespace": os.getpid() == 1,
    }
    return tuple(name for name, held in holds.items() if held)


def confine(limits: Limits) -> tuple[str, ...]:
    """In the runner's process, once: resource limits and the files it may still see. Returns the rungs that hold."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
    }
    if os.getpid() == 1:  # elsewhere the kernel counts the user's other processes too
        wanted[resource.RLIMIT_NPROC] = PROCESSES
    if limits.memory_bytes is not None:
        wanted[resource.RLIMIT_DATA] = limits.memory_bytes
    for kind, value in wanted.items():
        resource.setrlimit(kind, (value, value))
    rungs = ["rlimits"]
    if landlock.abi() > 0:
        landlock.restrict(readable=[*_python(), *_system()], writable=[limits.run_dir, *_devices()])
        if not _sees("/etc/passwd"):
            rungs.append("landlock")
    return tuple(rungs)


def _interfaces() -> set[str]:
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}


def _sees(path: str) -> bool:
    try:
        with Path(path).open("rb"):
            return True
    except PermissionError:
        return False


def _python() -> list[Path]:
    """Where modules may still have to be loaded from: this interpreter, its packages and our own."""
    packages = [Path(next(iter(find_spec(name).submodule_search_locations))) for name in ("modelpress", "workers")]  # type: ignore[union-attr,arg-type]  # both are packages
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *site.getsitepackages()}
    return [*packages, *(Path(path) for path in paths)]


def _system() -> list[Path]:
    """Shared libraries and what they read about the machine; of /etc only what the loader and the clock need."""
    folders = ("/usr", "/lib", "/lib64", "/bin", "/opt", "/nix/store", "/proc", "/sys/devices/system", "/sys/fs/cgroup")
    files = ("/etc/ld.so.cache", "/etc/localtime", "/sys/kernel/mm/transparent_hugepage/enabled")
    return [Path(path) for path in (*folders, *files)]


def _devices() -> list[Path]:
    plain = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
    return [*(Path(path) for path in plain), *Path("/dev").glob("nvidia*")]
