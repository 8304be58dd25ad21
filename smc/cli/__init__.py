"""The `smc` command: `main` holds what all subcommands share, every other module is one subcommand."""
