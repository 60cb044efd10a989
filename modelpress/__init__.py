"""POST a model, get a smaller one back, with proof."""

__version__ = "0.1.0"
