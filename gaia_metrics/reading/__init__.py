"""Runs read back: from folders, buckets and machines (DuckDB), or from ClickHouse."""
