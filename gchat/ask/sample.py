"""`gchat sample`: a prompt continued by a trained run."""

import json
from dataclasses import dataclass
from typing import Literal

from gaia.errors import GaiaError
from gchat.ask.options import grammar_of
from gchat.engine.grammar import mask_maker
from gchat.engine.requests import Request, SamplingConfig, check_draft


@dataclass(frozen=True)
class Sample:
    """Continue a prompt with a trained run."""

    run: str
    """Folder of the run."""
    prompt: str
    """Text to continue."""
    max_tokens: int = 128
    """Limit of the tokens to add."""
    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Make tokens that occurred less likely; 1 is off."""
    seed: int = 0
    """Same seed, same text."""
    step: str = "last"
    """Checkpoint: a number of steps, best (lowest validation bits per byte) or last."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    schema: str | None = None
    """File with a JSON schema that the answer must fit."""
    regex: str | None = None
    """Regular expression that the whole answer must match."""
    choice: tuple[str, ...] = ()
    """Texts of which the answer must be one."""
    weights: Literal["float32", "bfloat16", "int8"] | None = None
    """Format of the weights; that of the run's matrix products when left out."""
    kv: Literal["int8"] | None = None
    """Format of keys and values; that of the run's matrix products when left out."""
    speculate: int = 0
    """Tokens that a step drafts out of the text so far and checks (prompt lookup); 0 is off."""
    json: bool = False
    """Print one JSON object."""

    def run_it(self) -> None:
        """Prints the continuation as it is decoded.

        Raises:
            GaiaError: an option that cannot be, no such run, or a form that ended in an error.
        """
        sampling = SamplingConfig(
            self.temperature, self.top_k, self.top_p, self.seed, self.min_p, self.repetition_penalty
        )
        sampling.check()  # before anything is read or printed
        check_draft(self.speculate)
        grammar = grammar_of(self.schema, self.regex, self.choice)
        from gchat.run.loading import load_run

        loaded = load_run(self.run, step=self.step)
        engine = loaded.engine(slots=1, weights=self.weights, kv=self.kv, speculate=self.speculate)
        prompt = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(self.prompt)]
        mask = mask_maker(grammar, loaded.tokenizer, engine.stop_ids)
        request = Request(prompt, self.max_tokens, sampling, stop=self.stop, mask=mask)
        ids: list[int] = []
        text: list[str] = []
        request.check(loaded.tokenizer.padded_vocab_size, engine.seq_len)
        if not self.json:
            print(self.prompt, end="", flush=True)
        for event in engine.submit(request):
            if event.finish == "error":
                raise GaiaError(f"the answer ended: {event.error}", "try again")
            ids += event.ids
            text.append(event.text)
            if not self.json:
                print(event.text, end="", flush=True)
        if self.json:
            facts = {"prompt": self.prompt, "text": "".join(text), "tokens": ids}
            print(json.dumps(facts | {"step": loaded.step}))
        else:
            print()
