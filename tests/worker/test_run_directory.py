"""What a runner leaves behind goes, however it was left."""

import os
from pathlib import Path

from workers.run_directory import Scratch


def test_folders_deeper_than_any_path_are_removed(tmp_path: Path) -> None:
    with Scratch(tmp_path / "scratch", "worker") as scratch:
        with scratch.run_directory("job") as run_dir:
            here = os.open(run_dir / "out", os.O_RDONLY)
            for _ in range(3000):
                os.mkdir("d", dir_fd=here)
                deeper = os.open("d", os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = deeper
            os.close(here)
            (run_dir / "out").chmod(0)
        assert not run_dir.exists()


def test_what_a_dead_worker_left_does_not_stop_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "dead" / "job"
    left.mkdir(parents=True)
    left.chmod(0)
    with Scratch(tmp_path / "scratch", "worker") as scratch:
        assert scratch.left == ["dead"]
        assert not left.parent.exists()
