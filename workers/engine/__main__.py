"""`python -m workers.engine RUN_DIR`: one run by hand, without any service. Events are JSON lines."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from modelpress.run import Event
from workers.engine.pipeline import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.engine", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder with job.json and the input files that it names")
    parser.add_argument("--events-fd", type=int, default=sys.stdout.fileno(), help="where events go; stdout by default")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with open(arguments.events_fd, "w", buffering=1, closefd=False) as events:

        def emit(event: Event) -> None:
            events.write(event.model_dump_json() + "\n")

        result = run(arguments.run_dir, emit)
    if result.error is not None:
        logging.getLogger(__name__).error("%s: %s", result.error.code, result.error.message)
    return 0 if result.error is None else 1


if __name__ == "__main__":
    sys.exit(main())
