"""How a result's own inputs and answers come from, and become, those of the original: leaves at the edges of a graph.

While steps work, a graph takes and answers what the original does. What its callers will do to an input is a `Feed`
right behind it, and what a smaller answer stands for is a `Reply` right before an output. `expose` takes them off at
the end: what they did is then an `Interface`, by which data in the original's form are still fed and answers read.
"""
