"""Log-probabilities of tokens in the shapes of chats and of completions."""

from collections.abc import Iterable
from typing import Any

from gchat.engine.requests import TokenLogprob
from gchat.serve.local_model import LocalModel


def of_chat(model: LocalModel, tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """`ChatCompletionTokenLogprob` of each token."""
    return [
        {
            **_chat_token(model, token.id, token.logprob),
            "top_logprobs": [_chat_token(model, number, value) for number, value in token.top],
        }
        for token in tokens
    ]


def _chat_token(model: LocalModel, number: int, logprob: float) -> dict[str, Any]:
    return {
        "token": model.text_of(number),
        "logprob": logprob,
        "bytes": list(model.bytes_of(number)),
    }


class Columns:
    """Log-probabilities as completions have them: one list for each fact.

    Args:
        model: whose ids these are.
        offset: characters of text before the first token.
    """

    def __init__(self, model: LocalModel, offset: int = 0) -> None:
        self._model, self._offset = model, offset

    def of(self, tokens: Iterable[TokenLogprob | int]) -> dict[str, list[Any]]:
        """The lists for the next tokens; a bare id, which nothing stands before, has null."""
        made: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []
        }  # fmt: skip
        for token in tokens:
            number = token if isinstance(token, int) else token.id
            made["tokens"].append(self._name(number))
            made["text_offset"].append(self._offset)
            self._offset += len(self._model.text_of(number))
            if isinstance(token, int):
                made["token_logprobs"].append(None)
                made["top_logprobs"].append(None)
            else:
                made["token_logprobs"].append(token.logprob)
                made["top_logprobs"].append(self._top(token))
        return made

    def _top(self, token: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens by name and the chosen one: the highest value is the best token's.

        Who asks whether the chosen one was the best compares the two as floats (lm_eval does).
        """
        top: dict[str, float] = {}
        for number, value in token.top:
            top.setdefault(self._name(number), value)
        top.setdefault(self._name(token.id), token.logprob)
        return top

    def _name(self, number: int) -> str:
        """Text of a token, or its bytes where they are no whole characters, as OpenAI writes them.

        Many tokens are parts of characters: all of them as U+FFFD would be one key.
        """
        raw = self._model.bytes_of(number)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
