"""`/tokenize`, `/detokenize` and `/tokenizer_info`, by vLLM's names of fields and by llama.cpp's.

Text stays text: what looks like a special token is encoded as the characters it has. So
`eos_token` and `bos_token` are null: whoever encodes their names would get other ids (lm_eval does
that for the prefix of an empty context; tell it `custom_prefix_token_id`).
"""

from typing import Annotated, Any

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from gaia.errors import GaiaError
from gchat.serve.bodies import MAX_IDS, Strict, listed, read
from gchat.serve.chat import Messages, conversation
from gchat.serve.errors import ApiError, refused
from gchat.serve.functions import Offer
from gchat.serve.local_model import LocalModel
from gchat.serve.service import Service


class TokenizeBody(Strict):
    """A text to encode (`content` is llama.cpp's name for it), or a conversation."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Strict):
    """Ids to decode."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], listed(MAX_IDS)]


async def tokenize(
    service: Service, model: LocalModel, http: HttpRequest, data: dict[str, Any]
) -> Response:
    """Encodes a text or a conversation."""
    body = await read(TokenizeBody, data)
    return await run_in_threadpool(_tokenized, model, body)


def _tokenized(model: LocalModel, body: TokenizeBody) -> Response:
    ids = _encode(model, body)
    tokens: list[Any] = ids
    if body.with_pieces:
        # One object for all places of an id: a text of megabytes has millions of places.
        pieces = {i: {"id": i, "piece": _piece(model, i)} for i in set(ids)}
        tokens = [pieces[i] for i in ids]
    texts = {i: model.text_of(i) for i in set(ids)} if body.return_token_strs else None
    strs = None if texts is None else [texts[i] for i in ids]
    made = {"count": len(ids), "max_model_len": model.seq_len, "tokens": tokens}
    return JSONResponse(made | {"token_strs": strs})


def _piece(model: LocalModel, number: int) -> str | list[int]:
    """One id by llama.cpp's rule: its text, or its bytes where those are no whole characters."""
    text = model.text_of(number)
    return list(model.bytes_of(number)) if "\ufffd" in text else text


def _encode(model: LocalModel, body: TokenizeBody) -> list[int]:
    given = [x for x in (body.prompt, body.content, body.messages) if x is not None]
    if len(given) != 1:
        raise ApiError(400, "give one of prompt, content and messages", param="prompt")
    try:
        if body.messages is not None:
            return model.chat_format.prompt(conversation(body.messages, Offer()))
        text = body.prompt if body.prompt is not None else body.content or ""
        # vLLM adds BOS unless told not to, llama.cpp only where told to.
        special = body.add_special_tokens
        special = (body.prompt is not None) if special is None else special
        return model.ids(text) if body.add_special or special else model.tokenizer.encode(text)
    except GaiaError as error:
        raise refused(error) from None


async def detokenize(
    service: Service, model: LocalModel, http: HttpRequest, data: dict[str, Any]
) -> Response:
    """Decodes ids; special tokens appear by name."""
    body = await read(DetokenizeBody, data)
    try:
        text = await run_in_threadpool(model.tokenizer.decode, body.tokens)
    except GaiaError as error:
        raise refused(error, "tokens") from None
    return JSONResponse({"prompt": text, "content": text})


def info(model: LocalModel) -> dict[str, Any]:
    """Facts of a tokenizer."""
    form = model.chat_format
    template = None if form.kind == "text" else form.jinja(generation=False)
    return {
        "tokenizer_class": model.tokenizer.kind,
        "vocab_size": model.tokenizer.vocab_size,
        "bos_token": None,
        "bos_token_id": model.tokenizer.bos_id,
        "eos_token": None,
        "eos_token_ids": list(model.stop_ids),
        "special_tokens": model.tokenizer.specials,
        "model_max_length": model.seq_len,
        "chat_template": template,
    }
