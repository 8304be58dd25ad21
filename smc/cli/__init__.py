"""The `smc` command: `main` has what all subcommands share; most other modules are one subcommand each."""
