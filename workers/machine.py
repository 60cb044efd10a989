"""How much of this machine a run may have."""

import os
from pathlib import Path

LEFT_FOR_OTHERS = 0.2


def cores() -> int:
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Of the machine, or of the container that we are in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def share_of_memory(slots: int) -> int:
    return int(memory_bytes() * (1 - LEFT_FOR_OTHERS) / slots)
