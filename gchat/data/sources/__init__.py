"""Sources of text: one file per source, each yielding units of documents."""
