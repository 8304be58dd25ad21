"""Schedule: how a backend runs a plan, as phases of tasks; and fast paths, each a file that changes schedules."""
