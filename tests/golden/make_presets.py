"""Makes presets/NAME.yaml: every shipped preset with all its fields, inherited and derived.

    PYTHONPATH=. python tests/golden/make_presets.py       (in the repository's root)

Run it again when a preset or a default is meant to change; the diff of the commit shows it.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "presets"


def resolved(preset: str) -> str:
    """The derived configuration as YAML, with GPT-2's vocabulary or the preset's own."""
    from gaia.config import to_yaml
    from gchat.config import derive, load

    os.environ.pop("GAIA_PRICE_PER_HOUR", None)
    config = load([], preset=preset)
    vocab = 50266 if config.data.tokenizer == "gpt2" else config.data.vocab_size
    padded = -(-vocab // 128) * 128
    return to_yaml(derive(config, vocab_size=vocab, padded_vocab_size=padded)[0])


if __name__ == "__main__":
    from gchat.config import CONFIG_DIR

    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.yaml"):
        old.unlink()
    for path in sorted(CONFIG_DIR.glob("*.yaml")):
        (FOLDER / path.name).write_text(resolved(path.stem))
        print(FOLDER / path.name)
