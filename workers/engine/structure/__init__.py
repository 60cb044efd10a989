"""Which parts of a graph can only be removed together, and their removal: channels, neurons, heads, hidden units."""
