"""Tokens of a request, in the words of each protocol."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Usage:
    """Tokens that were read and written for one HTTP request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompts that were not read again."""

    def completions(self) -> dict[str, Any]:
        """`CompletionUsage` of chats and completions."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }

    def responses(self) -> dict[str, Any]:
        """`ResponseUsage` of responses."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self._cached, "cache_write_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    @property
    def _cached(self) -> int:
        # Further samples of a prompt find it read; OpenAI counts a prompt once.
        return min(self.cached_tokens, self.prompt_tokens)
