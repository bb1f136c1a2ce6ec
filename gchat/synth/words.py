"""Lists of words that the rules of features and filters know; they lie in words.yaml."""

import functools
from importlib.resources import files

import yaml


@functools.cache
def words(name: str) -> frozenset[str]:
    """Words of a list."""
    place = files("gchat.synth") / "words.yaml"
    # No schema: "No", "Yes" and "On" are words here.
    listed = yaml.load(place.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return frozenset(listed[name].split())
