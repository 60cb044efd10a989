"""The compression engine: bytes in, smaller bytes and a report out. It knows no database, queue, HTTP or credentials."""
