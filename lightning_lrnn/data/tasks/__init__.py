"""Data of the tasks from the literature, and data sets that packages bring."""
