"""python -m autokernel: the same as the autokernel command."""

from autokernel.cli import main

main(prog_name="autokernel")
