"""The needle test finds what retrieves and what does not."""

import pytest
import torch

from herder.engine import Completion, Engine
from herder.model import Llama, LlamaConfig
from herder.pretrain import NeedleConfig, needle_test
from herder.pretrain.needle import answers


class Copier:
    """A retriever by hand, what an induction head does: finds where the end of its prompt stood before, copies what followed.

    `reach` is how many tokens back it can look.
    """

    def __init__(self, tokenizer, context, reach=10**9):
        self.tokenizer, self.context, self.reach = tokenizer, context, reach

    def generate(self, prompts, sampling):
        return [self._complete(prompt, sampling.max_tokens) for prompt in prompts]

    def _complete(self, prompt, count):
        key, last = prompt[-6:], len(prompt) - 6
        places = [i for i in range(max(0, last - self.reach), last) if prompt[i : i + 6] == key]
        ids = prompt[places[-1] + 6 :][:count] if places else key
        return Completion(ids, self.tokenizer.decode(ids), "length", 0)


@pytest.fixture(scope="module")
def haystack(tok, corpus):
    return [[tok.bos_id, *tok.encode(text[i : i + 900]), tok.eos_id] for text in corpus for i in (0, 900)]


def test_a_known_good_retriever_finds_every_needle(tok, haystack):
    found = needle_test(Copier(tok, 512), haystack, NeedleConfig(repeats=2))
    assert (found.score.value, found.score.n) == (1.0, 40)
    assert set(found.cells) == {(n, d) for n in (128, 256, 384, 512) for d in (0.0, 0.25, 0.5, 0.75, 1.0)}


def test_a_short_sighted_retriever_finds_only_what_is_near(tok, haystack):
    found = needle_test(Copier(tok, 512, reach=150), haystack, NeedleConfig())
    assert found.by_length()[128].value == 1.0
    assert {depth: m.value for (length, depth), m in found.cells.items() if length == 512} == {
        0.0: 0.0, 0.25: 0.0, 0.5: 0.0, 0.75: 1.0, 1.0: 1.0,
    }  # fmt: skip


def test_a_model_that_was_never_trained_finds_none_through_the_engine(tok, haystack):
    shape = LlamaConfig(tok.n_vocab, 32, 2, 4, 2, 48, max_seq_len=256)
    with torch.inference_mode():
        found = needle_test(Engine(Llama(shape).init_weights(0), tok), haystack, NeedleConfig((0.5, 1.0), (0.0, 1.0)))
    assert (found.score.value, found.score.n) == (0.0, 4)


def test_prompts_fill_the_length_asked_for_and_differ(tok, haystack):
    seen = []

    class Watching(Copier):
        def generate(self, prompts, sampling):
            seen.extend(prompts)
            assert all(len(p) + sampling.max_tokens <= self.context for p in prompts)
            return super().generate(prompts, sampling)

    needle_test(Watching(tok, 400), haystack, NeedleConfig((0.5, 1.0), (0.0, 0.5)))
    assert [len(p) for p in seen] == [193, 193, 393, 393]
    texts = [tok.decode(p) for p in seen]
    assert len({t[:200] for t in texts}) == 4
    assert all(t.count("secret number of") == 2 for t in texts)


@pytest.mark.parametrize(
    ("text", "right"), [(" 123456. Then", True), ("1234567", False), ("12345", False), ("no 123456", False)]
)
def test_only_the_whole_number_counts(text, right):
    assert answers(text, "123456") is right


def test_a_context_too_short_for_the_question_gets_a_sentence(tok, haystack):
    with pytest.raises(ValueError, match="do not fit into"):
        needle_test(Copier(tok, 30), haystack, NeedleConfig())
    with pytest.raises(ValueError, match="haystack is empty"):
        needle_test(Copier(tok, 300), [], NeedleConfig())
    with pytest.raises(ValueError, match="depths is"):
        NeedleConfig(depths=(1.5,))
