"""Where text comes from: one file per source, each yielding units of documents."""
