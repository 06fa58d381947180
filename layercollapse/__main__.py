"""`python -m layercollapse`."""

from layercollapse.cli import main

main()
