"""The runner and its keeper without namespaces, as in a container that forbids them: promises hold there too."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.worker.jobs import until
from workers import landlock, messages, runner, sandbox

LIMIT = 1 << 40


class Bears:
    """An engine that leaves a child behind, in a session of its own."""

    def preload(self) -> None:
        """There is nothing to load."""

    def run(self, run_dir: Path, emit: Callable[..., None]) -> None:
        if os.fork() == 0:
            os.setsid()
            (run_dir / "child").write_text(str(os.getpid()))
            time.sleep(3600)
        until((run_dir / "child").exists)


def do_run(engine: runner.Engine, run_dir: Path) -> messages.Ended:
    ours, theirs = messages.pair()
    if os.fork() == 0:
        runner.keep(engine, theirs, 0)
    theirs.close()
    forked, (pidfd,) = messages.receive(ours)
    assert isinstance(forked, messages.Forked)
    os.close(pidfd)
    with Path(os.devnull).open("wb") as null:
        request = messages.Run(number=1, run_dir=str(run_dir), memory_bytes=None, file_bytes=LIMIT)
        messages.send(ours, request, null.fileno(), null.fileno())
    ended, _ = messages.receive(ours)
    assert isinstance(ended, messages.Ended)
    return ended


def test_children_in_other_sessions_end_with_their_run(tmp_path: Path) -> None:
    ended = do_run(Bears(), tmp_path)
    assert ended.status == 0
    assert ended.peak_bytes > 1 << 20
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}").exists()


def test_every_rung_that_is_named_was_tried() -> None:
    from workers.probe import probe

    for namespaces in sandbox.NAMESPACES:
        rungs = probe(namespaces)
        if rungs is not None:
            assert {"clean_environment", "no_new_privs", "no_capabilities", "rlimits"} <= set(rungs)
            assert ("landlock" in rungs) == (landlock.abi() > 0)
            assert ("no_network" in rungs) == bool(namespaces)
    assert probe(0) is not None


def test_files_come_with_messages_and_close_on_exec() -> None:
    ours, theirs = messages.pair()
    reader, writer = os.pipe()
    messages.send(ours, messages.Ready(sandbox=("rlimits",)), writer)
    message, (copy,) = messages.receive(theirs)
    assert message == messages.Ready(sandbox=("rlimits",))
    assert not os.get_inheritable(copy)
    os.write(copy, b"through")
    assert os.read(reader, 100) == b"through"
    for end in (ours, theirs):
        end.shutdown(socket.SHUT_RDWR)
        assert messages.receive(end) == (None, [])
        end.close()
    messages.close_all([reader, writer, copy])


def test_the_zygote_outlives_a_child_whose_exit_is_seen_before_its_last_words() -> None:
    """Both are ready at once, in either order, when a runner ends."""
    program = """if True:
        import os
        from workers import messages, zygote

        ours, theirs = messages.pair()
        parent = zygote.Zygote(engine=None, control=theirs, spares=0)
        told, channel = messages.pair()
        channel.setblocking(False)
        if (keeper := os.fork()) == 0:
            os._exit(0)
        os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOWAIT)
        child = zygote.Child(keeper, os.pidfd_open(keeper), channel, number=7)
        parent.children.append(child)
        messages.send(told, messages.Ended(status=0, peak_bytes=5))
        for file in (child.exit, child.channel):
            parent.selector.register(file, zygote.selectors.EVENT_READ, child)
        ours.shutdown(zygote.socket.SHUT_WR)
        parent.serve()
        assert isinstance(messages.receive(ours)[0], messages.Ready)
        print(messages.receive(ours)[0])
    """
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "number=7 status=0 peak_bytes=5" in told.stdout


def test_a_process_of_the_same_user_cannot_read_hidden_memory() -> None:
    """Neither has a capability here, so that the user alone decides."""
    program = """if True:
        import os
        from pathlib import Path
        from workers import kernel

        def read_by_child():
            if (child := os.fork()) == 0:
                try:
                    Path(f"/proc/{os.getppid()}/environ").read_bytes()
                except PermissionError:
                    os._exit(1)
                os._exit(0)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        kernel.drop_capabilities()
        before = read_by_child()
        kernel.hide_memory()
        print(before, read_by_child())
    """
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["True", "False"]
