"""``python -m nmtool``."""

from nmtool.cli import main

main()
