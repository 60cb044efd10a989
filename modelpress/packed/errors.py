class PackedError(ValueError):
    """A packed file that is damaged, too large or of a version not known here; the text says which."""
