"""A lossless, entropy-coded container of an ONNX file (of any file): docs/packed.md says what lies where in it.

Needs `pip install 'modelpress[packed]'`, and neither torch nor onnx.
"""

from importlib.util import find_spec

if not all(map(find_spec, ("constriction", "numpy", "zstandard"))):
    raise ImportError("packed files need more packages: pip install 'modelpress[packed]'")

from modelpress.packed.container import MAGIC, Header
from modelpress.packed.errors import PackedError
from modelpress.packed.packing import pack, packed_size
from modelpress.packed.unpacking import MAX_BYTES, peek, unpack

__all__ = ["MAGIC", "MAX_BYTES", "Header", "PackedError", "pack", "packed_size", "peek", "unpack"]
