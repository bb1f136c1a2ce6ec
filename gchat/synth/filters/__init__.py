"""Filters of synthetic records: each says why a record goes, and in which phase."""
