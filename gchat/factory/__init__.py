"""From a small corpus to a judged model in one command: records, tokenizer, Q-PT, SFT, judge."""
