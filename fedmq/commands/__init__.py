"""The verbs of the command, a file each. Each imports its component when it runs."""
