"""Raw text to token shards: sources, preparation, checks."""
