"""CSV and Parquet tables, read as sequences."""
