"""llama.cpp's side of the comparison, run by the Python that has llama-cpp-python: a JSON job in, a JSON answer out.

Job: {"gguf": path, "prompts": [ids], "max_tokens": n, "texts": [text], "passage": ids}. Answer: greedy ids and the smallest
gap between the two likeliest tokens for each prompt, ids for each text and for one letter with its beginning, the ids that
end a reply, and the mean log-loss of the passage.
"""

import json
import sys

import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama, llama_model_get_vocab, llama_vocab_is_eog


def main() -> None:
    job = json.load(sys.stdin)
    longest = max([len(p) + job["max_tokens"] for p in job["prompts"]] + [len(job["passage"])])
    # Keys and values in F32: llama.cpp's default of F16 rounds what an F32 file does not.
    options = {
        "type_k": GGML_TYPE_F32,
        "type_v": GGML_TYPE_F32,
        "flash_attn": False,
        "n_threads": 1,
        "n_threads_batch": 1,
    }
    model = Llama(job["gguf"], n_ctx=longest + 1, n_batch=256, logits_all=True, verbose=False, **options)
    greedy, gaps = zip(*(answer(model, prompt, job["max_tokens"]) for prompt in job["prompts"]), strict=True)
    vocabulary = llama_model_get_vocab(model._model.model)
    out = {
        "greedy": greedy,
        "gaps": gaps,
        "tokenized": [model.tokenize(text.encode(), add_bos=False, special=False) for text in job["texts"]],
        "begins": model.tokenize(b"a", add_bos=True, special=False),
        "ends": [i for i in range(model.n_vocab()) if llama_vocab_is_eog(vocabulary, i)],
        "loss": loss(model, job["passage"]),
    }
    json.dump(out, sys.stdout)


def answer(model: Llama, prompt: list[int], max_tokens: int) -> tuple[list[int], float]:
    model.reset()
    out, gap, new = [], float("inf"), prompt
    while len(out) < max_tokens:
        model.eval(new)
        logits = model.scores[model.n_tokens - 1]
        second, first = np.partition(logits, -2)[-2:]
        gap, new = min(gap, float(first - second)), [int(logits.argmax())]
        out += new
    return out, gap


def loss(model: Llama, passage: list[int]) -> float:
    model.reset()
    model.eval(passage)
    logits = np.asarray(model.scores[: len(passage) - 1], np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    picked = logits[np.arange(len(passage) - 1), passage[1:]]
    return float((np.log(np.exp(logits).sum(axis=1)) - picked).mean())


if __name__ == "__main__":
    main()
