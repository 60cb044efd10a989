"""Versions of ONNX's own operators in the files that the engine writes."""

OLDEST_OPSET = 13
"""Written files have at least this one: the first with per-channel `DequantizeLinear`."""
