"""The base of the package: checks, dtypes, the recurrence as a loop."""
