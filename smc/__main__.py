"""`python -m smc`: the same as the `smc` command."""

from smc.cli.main import main

main()
