"""Other programs asked about an exported model, in a process of their own.

    python reference.py transformers JOB.json ANSWER.npz
    python reference.py llama.cpp    JOB.json ANSWER.npz LIBRARIES
    python reference.py quantize     IN.gguf OUT.gguf LIBRARIES FTYPE

Only the standard library and numpy, besides the program itself: transformers may live in another
Python, and llama.cpp ends the process where something is wrong with a file. A job holds

    model       path
    texts       to be tokenized, without BOS; special tokens' names stay text
    talks       conversations, rendered by the model's chat template (transformers)
    rows        lists of ids, and `positions` of each whose logits are wanted
    greedy      lists of ids to go on from, by `steps` ids, whatever these are
    windows     lists of ids, whose negative log-likelihood is wanted, all but the first

and the answer what is asked for, lists flattened with their lengths beside.
"""

import ctypes
import glob
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np


class Transformers:
    """A Hugging Face folder, in fp32."""

    def __init__(self, model: str, longest: int) -> None:
        torch, transformers = import_module("torch"), import_module("transformers")
        transformers.logging.set_verbosity_error()
        self._torch = torch
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model = loaded.eval()

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return encoded["input_ids"]

    def talk(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to where the answer begins."""
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V]."""
        with self._torch.no_grad():
            return self._model(self._torch.tensor([list(ids)])).logits[0].numpy()

    def greedy(self, ids: Sequence[int], steps: int) -> list[int]:
        """The likeliest next ids, one after the other."""
        torch, chosen, cache = self._torch, [], None
        given = torch.tensor([list(ids)])
        with torch.no_grad():
            for _ in range(steps):
                out = self._model(given, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                chosen.append(int(out.logits[0, -1].argmax()))
                given = torch.tensor([chosen[-1:]])
        return chosen


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _Options(ctypes.Structure):
    """Room for any of llama.cpp's structures of options, larger than all of them.

    Their fields differ between versions; a library fills in the defaults itself, and the few fields
    that are changed here are found by these.
    """

    _fields_ = (("words", ctypes.c_int32 * 256),)


def _load(folder: str) -> tuple[Any, Any]:
    """The libraries (llama, ggml) of a folder, with their backends."""
    ggml = None
    for pattern in ("libggml-base*", "libggml.*"):
        for path in sorted(glob.glob(os.path.join(folder, pattern)))[:1]:
            ggml = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    path = sorted(p for p in glob.glob(os.path.join(folder, "libllama.*")))[0]
    llama = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    for library in (llama, ggml):
        load_all = getattr(library, "ggml_backend_load_all_from_path", None)
        if load_all is not None:
            load_all.argtypes, load_all.restype = [ctypes.c_char_p], None
            load_all(folder.encode())
            break
    llama.llama_log_set.argtypes, llama.llama_log_set.restype = [_LOG, ctypes.c_void_p], None
    llama.llama_log_set(_quiet, None)
    llama.llama_backend_init.restype = None
    llama.llama_backend_init()
    return llama, ggml


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _only_errors(level: int, text: bytes, unused: Any) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode("utf-8", "replace"))


_quiet = _LOG(_only_errors)


class LlamaCpp:
    """A GGUF file: keys and values in F32 and no flash attention, or the logits were of F16."""

    def __init__(self, model: str, longest: int, folder: str) -> None:
        llama = self._llama = _load(folder)[0]
        self._declare(llama)
        loaded = llama.llama_model_load_from_file(
            model.encode(), llama.llama_model_default_params()
        )
        if not loaded:
            sys.exit(f"llama.cpp cannot read {model}")
        self._vocab = llama.llama_model_get_vocab(loaded)
        self._size = llama.llama_vocab_n_tokens(self._vocab)
        self._context = llama.llama_init_from_model(loaded, self._context_options(longest))
        if not self._context:
            sys.exit("llama.cpp makes no context")
        # Threads wait for one another by turning: on a busy machine one is faster than two.
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        llama.llama_set_n_threads(self._context, threads, threads)
        self._batch = llama.llama_batch_init(longest, 0, 1)

    def _declare(self, llama: Any) -> None:
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        for name, result, arguments in (
            ("llama_model_default_params", _Options, []),
            ("llama_context_default_params", _Options, []),
            ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Options]),
            ("llama_init_from_model", pointer, [pointer, _Options]),
            ("llama_model_get_vocab", pointer, [pointer]),
            ("llama_vocab_n_tokens", integer, [pointer]),
            ("llama_set_n_threads", None, [pointer, integer, integer]),
            ("llama_batch_init", _Batch, [integer, integer, integer]),
            ("llama_decode", integer, [pointer, _Batch]),
            ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, integer]),
            ("llama_get_memory", pointer, [pointer]),
            ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
            (
                "llama_tokenize",
                integer,
                [pointer, ctypes.c_char_p, integer, pointer, integer, ctypes.c_bool, ctypes.c_bool],
            ),
        ):
            function = getattr(llama, name)
            function.restype, function.argtypes = result, arguments

    def _context_options(self, longest: int) -> _Options:
        options = self._llama.llama_context_default_params()
        words = list(options.words)
        floats = np.array(words, np.int32).view(np.float32)
        # yarn_ext_factor is the first -1.0; before it stand two more numbers, before these the
        # choice of flash attention (-1: as it likes). type_k and type_v are F16, that is 1.
        yarn = next((i for i in range(8, 40) if floats[i] == -1.0), 0)
        pairs = [i for i in range(yarn, 64, 2) if words[i : i + 2] == [1, 1]]
        known = words[:4] == [512, 2048, 512, 1] and yarn and words[yarn - 3] == -1 and pairs
        if not known:
            sys.exit("this libllama lays out its options in a way that is not known here")
        options.words[0] = options.words[1] = options.words[2] = longest
        options.words[yarn - 3] = 0
        options.words[pairs[0]] = options.words[pairs[0] + 1] = 0  # F32
        return options

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        data = text.encode()
        count = -self._llama.llama_tokenize(self._vocab, data, len(data), None, 0, False, False)
        ids = (ctypes.c_int32 * max(1, count))()
        self._llama.llama_tokenize(self._vocab, data, len(data), ids, count, False, False)
        return list(ids[:count])

    def talk(self, messages: list[dict[str, str]]) -> list[int]:
        """llama.cpp's library renders a few templates by name only: nothing to compare."""
        return []

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V]."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._decode(ids, 0, everywhere=True)
        return np.stack([self._row(i) for i in range(len(ids))])

    def greedy(self, ids: Sequence[int], steps: int) -> list[int]:
        """The likeliest next ids, one after the other."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._decode(ids, 0, everywhere=False)
        chosen = [int(self._row(len(ids) - 1).argmax())]
        while len(chosen) < steps:
            self._decode(chosen[-1:], len(ids) + len(chosen) - 1, everywhere=False)
            chosen.append(int(self._row(0).argmax()))
        return chosen

    def _decode(self, ids: Sequence[int], start: int, *, everywhere: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, number in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = number, start + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = everywhere or i == len(ids) - 1
        if status := self._llama.llama_decode(self._context, batch):
            sys.exit(f"llama.cpp cannot go on (status {status})")

    def _row(self, i: int) -> np.ndarray:
        pointer = self._llama.llama_get_logits_ith(self._context, i)
        return np.ctypeslib.as_array(pointer, (self._size,)).copy()


def quantize(source: str, out: str, folder: str, ftype: int) -> int:
    """Makes a quantised file of one in F32; llama.cpp's status."""
    llama = _load(folder)[0]
    default, made = llama.llama_model_quantize_default_params, llama.llama_model_quantize
    default.restype, default.argtypes = _Options, []
    made.restype = ctypes.c_uint32
    made.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Options)]
    options = default()
    options.words[0], options.words[1] = os.cpu_count() or 1, ftype  # the first two fields
    return made(source.encode(), out.encode(), ctypes.byref(options))


def answer(engine: Any, job: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Answers a job."""
    out: dict[str, Any] = {}
    for name, one in (("texts", engine.tokenize), ("talks", engine.talk)):
        lists = [one(item) for item in job.get(name, [])]
        out[name] = np.array([i for ids in lists for i in ids], np.int32)
        out[f"{name}_lengths"] = np.array([len(ids) for ids in lists], np.int32)
    say("logits")
    rows = []
    for ids, positions in zip(job.get("rows", []), job.get("positions", []), strict=True):
        rows.append(engine.logits(ids)[positions])
    out["logits"] = np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
    say("greedy")
    out["greedy"] = np.array([engine.greedy(ids, job["steps"]) for ids in job.get("greedy", [])])
    say("windows")
    out["nll"] = np.array([_nll(engine.logits(ids), ids) for ids in job.get("windows", [])])
    return out


def _nll(logits: np.ndarray, ids: Sequence[int]) -> float:
    """Negative log-likelihood of ids 1 … T - 1, nats, summed in fp64."""
    logits_TV = logits[:-1].astype(np.float64)
    largest_T1 = logits_TV.max(-1, keepdims=True)
    total_T = np.log(np.exp(logits_TV - largest_T1).sum(-1)) + largest_T1[:, 0]
    return float((total_T - logits_TV[np.arange(len(ids) - 1), ids[1:]]).sum())


def main(arguments: list[str]) -> int:
    """Runs a command line of the form above."""
    kind, given, path, *rest = arguments
    if kind == "quantize":
        return 1 if quantize(given, path, rest[0], int(rest[1])) else 0
    with open(given, encoding="utf-8") as file:
        job = json.load(file)
    lists = [*job.get("rows", []), *job.get("windows", [])]
    lengths = [len(ids) for ids in lists]
    lengths += [len(ids) + job["steps"] for ids in job.get("greedy", [])]
    longest = max(32, *lengths, 0)
    engine: Any
    if kind == "transformers":
        engine = Transformers(job["model"], longest)
    else:
        engine = LlamaCpp(job["model"], longest, rest[0])
    np.savez(path, **answer(engine, job, lambda what: print(what, file=sys.stderr, flush=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
