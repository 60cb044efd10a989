"""The compression engine: bytes in, smaller bytes and a report out. It knows no database, queue, HTTP or secrets."""

import os

# ONNX Runtime from 1.29 on sends names and hashes of models to its makers, from a thread of its own, unless this is
# set before its first import. No model leaves the machine, and nothing may start a thread before runners are forked.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
