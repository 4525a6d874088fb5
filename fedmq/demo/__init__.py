"""A whole federation on one machine: real processes, a real broker, a view of it while it runs, a report at the end."""
