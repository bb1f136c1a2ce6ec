"""Evaluations of a run: validation and named texts in bits per byte, and samples."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gaia.data.batch import Batch
from gaia.data.loader import iter_documents
from gaia.errors import ConfigError, DataError
from gchat.config import TrainConfig
from gchat.engine.engine import Engine
from gchat.engine.requests import SamplingConfig
from gchat.evals import bpb
from gchat.tokenizer import Tokenizer
from gchat.train_step import EVAL_ROWS

VALIDATION = "val"  # name of the validation text in the log
SAMPLE_SLOTS = 8  # prompts that are continued at once
OPENINGS, OPENING_TOKENS = 4, 8  # validation documents whose first tokens are prompts


class Evaluator:
    """Holds the packed evaluation texts of a run, so that each evaluation only scores them.

    Args:
        config: a derived configuration.
        tokenizer: of the run.
        graph: static part of the model.
        scorer: jitted (params, rows) -> nats [B, T].
        rows: scored at once, over all devices.

    Raises:
        DataError: an evaluation file is missing or empty.
        ConfigError: a prompt is longer than a row.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Tokenizer,
        graph: Any,
        scorer: Callable[[Any, Batch], jax.Array],
        rows: int = EVAL_ROWS,
    ) -> None:
        self._eval, self._tokenizer, self._graph, self._scorer = (
            config.eval,
            tokenizer,
            graph,
            scorer,
        )
        self._seq_len, self._rows = config.model.seq_len, rows
        self._token_bytes = tokenizer.token_bytes()
        documents = validation_documents(config)
        self._batches = {VALIDATION: self._pack(documents)}
        for name, tokens in encoded_files(config, tokenizer).items():
            self._batches[name] = self._pack([tokens])
        # Encoded now, so that a prompt that does not fit fails before training, not at its end.
        self._prompts = self._encoded_prompts(documents)

    def _encoded_prompts(self, documents: list[np.ndarray]) -> list[tuple[str, list[int]]]:
        """Prompts as text and as ids, BOS first."""
        bos, encode, decode = self._tokenizer.bos_id, self._tokenizer.encode, self._tokenizer.decode
        if self._eval.prompts is None:
            openings = _openings(documents, self._seq_len)
            return [(decode(ids), [bos, *ids]) for ids in openings]
        prompts = [(text, [bos, *encode(text)]) for text in self._eval.prompts]
        for text, ids in prompts:
            if len(ids) >= self._seq_len:
                raise ConfigError(
                    f"eval.prompts: {text[:30]!r}… has {len(ids)} tokens, model.seq_len is "
                    f"{self._seq_len}",
                    "shorten it",
                )
        return prompts

    def _pack(self, documents: list[np.ndarray]) -> list[Batch]:
        stride = max(1, round(self._seq_len * self._eval.stride_fraction))
        return bpb.pack(documents, seq_len=self._seq_len, stride=stride, batch_size=self._rows)

    def validate(
        self, params: Any, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """`eval/NAME_bpb`, `_loss` and `_perplexity` for validation (`val`) and each named file.

        `progress` is told (batches scored, of how many) after each one.
        """
        values: dict[str, float] = {}
        for name, batches in self._batches.items():
            score = bpb.evaluate(
                lambda rows: self._scorer(params, rows), batches, self._token_bytes, progress
            )
            values |= score.logged(name)
        return values

    def sample(self, params: Any) -> str:
        """Greedy continuations of the prompts, one per line."""
        if not self._prompts:
            return ""
        longest = max(len(ids) for _, ids in self._prompts) + self._eval.sample_tokens
        engine = make_engine(
            self._graph,
            params,
            self._tokenizer,
            min(longest, self._seq_len),  # no larger a cache beside the state of training
            slots=min(len(self._prompts), SAMPLE_SLOTS),
        )
        answers = engine.generate(
            [ids for _, ids in self._prompts],
            max_new_tokens=self._eval.sample_tokens,
            sampling=SamplingConfig(temperature=0.0),
        )
        pairs = zip(self._prompts, answers, strict=True)
        return "\n".join(f"{text} →{self._tokenizer.decode(ids)!r}" for (text, _), ids in pairs)


def validation_documents(config: TrainConfig) -> list[np.ndarray]:
    """The validation text that a run is measured on, and its n-gram baselines with it."""
    return bpb.take_tokens(iter_documents(config.data.place, "val"), config.eval.tokens)


def an_opening(config: TrainConfig, tokenizer: Tokenizer) -> str:
    """One line with which a validation document begins, or a given prompt: something to try.

    Empty where no document begins with text.
    """
    if config.eval.prompts:
        return config.eval.prompts[0]
    documents = list(islice(iter_documents(config.data.place, "val"), OPENINGS))
    texts = (tokenizer.decode(ids) for ids in _openings(documents, config.model.seq_len))
    lines = (line.strip("\ufffd \t") for text in texts for line in text.splitlines())
    return next(filter(None, lines), "")


def _openings(documents: list[np.ndarray], seq_len: int) -> list[list[int]]:
    """The first tokens, without BOS, of the first documents."""
    count = min(OPENING_TOKENS, seq_len - 1)
    openings = [document[1 : 1 + count].tolist() for document in documents[:OPENINGS]]
    return [ids for ids in openings if ids]


def make_engine(
    graph: Any, params: Any, tokenizer: Tokenizer, seq_len: int, **options: Any
) -> Engine:
    """An engine that stops at the end of a document or of an assistant's message.

    `options` are those of `Engine`: slots, piece, weights, kv, speculate.
    """
    return Engine(
        graph,
        params,
        seq_len=seq_len,
        stop_ids=tokenizer.stop_ids,
        decode_bytes=tokenizer.decode_bytes,
        **options,
    )


def encoded_files(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Tokens of the texts of `eval.files` by name.

    Raises:
        ConfigError: one is called as the validation text is in the log.
        DataError: a file is missing or empty.
    """
    if VALIDATION in config.eval.files:
        raise ConfigError(
            f"eval.files names a text {VALIDATION!r}, as the validation text is called",
            "give it another name",
        )
    return {name: encode_file(path, tokenizer) for name, path in config.eval.files.items()}


def encode_file(path: str, tokenizer: Tokenizer) -> np.ndarray:
    """A text file as one document: BOS and its tokens, int32.

    Raises:
        DataError: the file is missing, empty or not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path!r} ({error.strerror})", "check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path!r} is not UTF-8 at byte {error.start}",
            "convert it (iconv -f latin1 -t utf-8), or its bytes would be counted wrong",
        ) from None
    if not text:
        raise DataError(f"{path!r} is empty", "give a text with content")
    return np.array([tokenizer.bos_id, *tokenizer.encode(text)], np.int32)
