"""What the rest of the package stands on: checks, dtypes, the recurrence as a loop."""
