"""`python -m modelpress` is the command `modelpress`."""

from modelpress.cli import main

main()
