"""A run around its training: folder, data, progress, mirror, report, and reading it back."""
