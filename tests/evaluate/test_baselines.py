import gzip
import math

import pytest

from herder.evaluate import (
    GenerationItem,
    GenerationTask,
    bits_per_byte,
    compressed_bits_per_byte,
    most_frequent_answer,
    nearest_answers,
    score_answers,
)


def test_the_commonest_answer_and_the_first_among_equals():
    assert most_frequent_answer(["no", "yes", "yes"]) == "yes"
    assert most_frequent_answer(["b", "a"]) == "b"


def test_the_nearest_prompt_gives_its_answer():
    prompts = ["what is the capital of France", "what is the capital of Spain", "add two and three"]
    asked = ["Spain: what is its capital?", "please add three", "the capital of france", "xyzzy"]
    assert nearest_answers(prompts, ["Paris", "Madrid", "5"], asked) == ["Madrid", "5", "Paris", "Paris"]


def test_rare_words_weigh_more_than_common_ones():
    prompts = ["the the the the cat", "the zebra sat"] + ["the dog"] * 5
    assert nearest_answers(prompts, list("abccccc"), ["the the the zebra"]) == ["b"]


def test_answers_are_judged_as_the_task_judges():
    task = GenerationTask("t", tuple(GenerationItem("?", (gold,)) for gold in ("1,000", "b", "c")))
    measure = score_answers(task, ["1000.0", "B.", "no"])
    assert (measure.value, measure.n) == (pytest.approx(2 / 3), 3)


def test_bits_per_byte_counts_utf8_bytes():
    assert bits_per_byte([math.log(2) * 3, math.log(2) * 5], ["ab", "é"]).value == pytest.approx(2)


def test_compressors_count_bits_of_the_stream():
    text = "to be or not to be " * 50
    assert compressed_bits_per_byte([text], "gzip").value == pytest.approx(
        8 * len(gzip.compress(text.encode(), 9)) / len(text)
    )
    assert compressed_bits_per_byte([text], "xz").value < 2
    with pytest.raises(ValueError, match="choose one of xz, gzip"):
        compressed_bits_per_byte([text], "zip")
