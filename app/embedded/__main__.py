"""`python -m app.embedded [--host HOST] [--port PORT]`: the same as `modelpress up`."""

import argparse

from app.embedded.up import run

parser = argparse.ArgumentParser(prog="python -m app.embedded", description="Start Modelpress on this machine.")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
arguments = parser.parse_args()
run(arguments.host, arguments.port)
