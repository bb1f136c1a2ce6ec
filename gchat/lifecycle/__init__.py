"""The speedrun of all stages: from a corpus to a model that answers, and one report of it."""
