"""How long a user waits for a tiny job: LeNet-5, `half_precision`, no data, over HTTP against a running service.

    modelpress up &
    python benchmarks/tiny_job.py [--url URL] [--api-key KEY] [--jobs 20]

From POST until the service says `succeeded`, on a warm worker. Goal: median of 20 at most 1 s.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from modelpress import Client
from modelpress.cli.connect import service

MODEL = Path(__file__).parents[1] / "examples/fashion_mnist/lenet5.onnx"
GOAL_SECONDS = 1.0


def one_job(client: Client, model_id: str, seed: int) -> float:
    start = time.perf_counter()
    job = client.wait_job(client.create_job(model_id, [{"step": "half_precision"}], seed=seed).id)
    seconds = time.perf_counter() - start
    if job.status != "succeeded":
        raise RuntimeError(f"{job.id}: {job.status}: {job.error}")
    return seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url")
    arguments.add_argument("--api-key")
    arguments.add_argument("--jobs", type=int, default=20)
    options = arguments.parse_args()
    with service(options.url, options.api_key).client() as client:
        model = client.wait(client.upload_model(MODEL))
        one_job(client, model.id, 0)
        seconds = sorted(one_job(client, model.id, seed) for seed in range(1, options.jobs + 1))
    median = statistics.median(seconds)
    print(f"{options.jobs} jobs: median {median:.2f} s, best {seconds[0]:.2f} s, worst {seconds[-1]:.2f} s")
    sys.exit(0 if median <= GOAL_SECONDS else f"the goal is a median of {GOAL_SECONDS} s")


if __name__ == "__main__":
    main()
