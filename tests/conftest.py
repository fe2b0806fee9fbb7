"""A tokenizer trained on the standard library's own source, so that the tests need no data files."""

import argparse
import inspect
import textwrap

import pytest
from hypothesis import settings

from herder.tokenizer import train

settings.register_profile("herder", deadline=None)  # a busy machine is no failure
settings.load_profile("herder")

PHRASES = "Grüße aus Köln. Ça va très bien. 日本語のテキスト。 Привет, мир! नमस्ते दुनिया 🙂🙃 user assistant system\n\n"


@pytest.fixture(scope="session")
def corpus():
    return [inspect.getsource(module) for module in (argparse, textwrap, inspect)] + [PHRASES] * 5


@pytest.fixture(scope="session")
def tok(corpus):
    return train(iter(corpus), 2048, n_special=32)
