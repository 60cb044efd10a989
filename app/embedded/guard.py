"""Becomes the given program, tied to the process that started it.

Run as a file by an isolated interpreter: `python -I -S guard.py PARENT SIGNAL USER ARGV…`. Being a process of its own
it can do what a `preexec_fn` must not do in a process with threads. The kernel sends SIGNAL when the *thread* that
started us ends, however it ends; changing the user clears that wish, hence the order below.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def become(uid: int, gid: int) -> None:
    """Give up root for good, but keep its passage through folders that are closed to others.

    PostgreSQL refuses to run as root, and a root user's checkout and home folder are usually closed to everyone else.
    """
    call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    kept = 1 << CAP_DAC_OVERRIDE
    sets = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)  # effective, permitted, inheritable; then the high halves
    call("capset", header, sets)
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def main() -> None:
    parent, signal, user, *argv = sys.argv[1:]
    if user:
        uid, gid = map(int, user.split(":"))
        become(uid, gid)
    call("prctl", PR_SET_PDEATHSIG, int(signal), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the wish above was made
        sys.exit(1)
    os.execvp(argv[0], argv)  # noqa: S606 - becoming that program is the purpose


if __name__ == "__main__":
    main()
