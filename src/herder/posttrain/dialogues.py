"""Dialogues made from the corpus itself, and from verifiable reasoning tasks (the miniature's stand-in for paper 4.2).

Every dialogue knows the document it was made from: training dialogues come from the training split, held-out tasks from the
held-out split, so no answer can be remembered. Verifiable families have one right answer, which a program can check; open
families teach what an answer looks like.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from herder.records import Dialogue, Document, read_documents, write_dialogues

OPEN = ("describe", "complete_signature", "fact")
"""Families without one right answer: they are trained and their form is checked, their content is not scored."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-ZÀ-Ý¿¡«\"'(])")
_PASSAGE_CHARACTERS = 280
_ANSWER_CHARACTERS = 200

_QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "parameter_count": {
        "en": (
            "How many parameters does this function take?\n\n{text}",
            "{text}\n\nCount the parameters of this function.",
        )
    },
    "default_count": {
        "en": (
            "How many parameters of this function have a default value?\n\n{text}",
            "{text}\n\nCount the default values.",
        )
    },
    "any_number": {
        "en": (
            "Does this function take any number of arguments?\n\n{text}",
            "{text}\n\nAny number of arguments, yes or no?",
        )
    },
    "method_or_function": {
        "en": ("Is this a method or a plain function?\n\n{text}", "{text}\n\nMethod or plain function?"),
    },
    "describe": {"en": ("What does `{name}` do?\n\n{text}", "Explain `{name}` in one sentence.\n\n{text}")},
    "complete_signature": {"en": ("Complete this signature.\n\n{text}", "How does this signature go on?\n\n{text}")},
    "fact": {
        "en": ("What is {name}?", "Tell me about {name}."),
        "fr": ("Qu'est-ce que {name} ?", "Parle-moi de {name}."),
        "es": ("¿Qué es {name}?", "Háblame de {name}."),
    },
    "sentence_count": {
        "en": ("How many sentences does this text have?\n\n{text}", "{text}\n\nCount the sentences."),
        "fr": ("Combien de phrases ce texte a-t-il ?\n\n{text}", "{text}\n\nCompte les phrases."),
        "es": ("¿Cuántas frases tiene este texto?\n\n{text}", "{text}\n\nCuenta las frases."),
    },
    "language": {
        "en": ("Which language is this text in?\n\n{text}", "{text}\n\nName the language of this text."),
        "fr": ("En quelle langue est ce texte ?\n\n{text}", "{text}\n\nQuelle est la langue de ce texte ?"),
        "es": ("¿En qué idioma está este texto?\n\n{text}", "{text}\n\n¿Cuál es el idioma de este texto?"),
    },
}
FAMILIES = tuple(_QUESTIONS)


_LANGUAGE_NAMES = {"en": "English", "fr": "French", "es": "Spanish"}


@dataclass(frozen=True)
class DialogueConfig:
    """`families` (a share each of the training documents they fit) and `reasoning` (training dialogues of each
    `reasoning-gym` task, left out where that package is absent, with its settings in `reasoning_settings`)."""

    families: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 1.0))
    reasoning: dict[str, int] = field(default_factory=dict)
    reasoning_settings: dict[str, dict[str, int]] = field(default_factory=dict)
    max_train: int = 10_000
    heldout_items: int = 400
    """At most this many held-out items of each family."""
    seed: int = 0


@dataclass(frozen=True)
class _Function:
    name: str
    signature: str
    parameters: tuple[str, ...]
    defaults: int
    any_number: bool
    summary: str


def make_dialogues(config: DialogueConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: `train.jsonl`, the control `shuffled.jsonl` (answers permuted within each family) and `heldout.jsonl`."""
    unknown = set(config.families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"unknown dialogue family {min(unknown)!r}; the families are {', '.join(FAMILIES)}")
    corpus = inputs["corpus"]
    train = list(corpus_dialogues(read_documents(corpus, split="train"), config, random.Random(config.seed)))
    heldout = list(corpus_dialogues(read_documents(corpus, split="heldout"), config, random.Random(config.seed + 1)))
    for split, dialogues in reasoning_dialogues(config).items():
        (train if split == "train" else heldout).extend(dialogues)
    if not train:
        raise ValueError(
            "the corpus gave no dialogue to train on: it has neither functions nor titled texts; add sources"
        )
    random.Random(config.seed).shuffle(train)
    train = train[: config.max_train]
    heldout = _at_most(heldout, config.heldout_items, {d.messages[0]["content"] for d in train})
    write_dialogues(train, out / "train.jsonl")
    write_dialogues(shuffled(train, config.seed), out / "shuffled.jsonl")
    write_dialogues(heldout, out / "heldout.jsonl")
    counts = {f"train_{task}": sum(d.task == task for d in train) for task in sorted({d.task for d in train})}
    return {"train": len(train), "heldout": len(heldout), **counts}


def corpus_dialogues(documents: Iterator[Document], config: DialogueConfig, rng: random.Random) -> Iterator[Dialogue]:
    """Dialogues of every family that fits each document, each drawn with its family's share."""
    for document in documents:
        function = read_function(document)
        made = _about_function(function, rng) if function else _about_text(document, rng)
        for task, language, fields, answer in made:
            if rng.random() < config.families.get(task, 0.0):
                question = rng.choice(_QUESTIONS[task][language]).format(**fields)
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                yield Dialogue(messages, id=f"{task}/{document.id}", source=document.id, task=task)


def read_function(document: Document) -> _Function | None:
    """The function that a documentation page is about: its first code block is a signature. None for other pages."""
    code = next((document.text[s.start : s.end].strip() for s in document.spans if s.kind == "code"), "")
    if not code.startswith(("def ", "async def ")) or "\n" in code or len(code) > _PASSAGE_CHARACTERS:
        return None
    try:
        node = ast.parse(code.rstrip(":") + ": pass").body[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    a = node.args
    parameters = [
        *a.posonlyargs,
        *a.args,
        *([a.vararg] if a.vararg else []),
        *a.kwonlyargs,
        *([a.kwarg] if a.kwarg else []),
    ]
    after = document.text.partition(code)[2].strip()
    defaults = len(a.defaults) + sum(d is not None for d in a.kw_defaults)
    names, summary = tuple(p.arg for p in parameters), _first_sentence(after.split("\n\n")[0])
    return _Function(node.name, code, names, defaults, bool(a.vararg or a.kwarg), summary)


def _about_function(function: _Function, rng: random.Random) -> Iterator[tuple[str, str, dict, str]]:
    shown = {"text": function.signature, "name": function.name}
    yield "parameter_count", "en", shown, str(len(function.parameters))
    yield "default_count", "en", shown, str(function.defaults)
    yield "any_number", "en", shown, "yes" if function.any_number else "no"
    yield (
        "method_or_function",
        "en",
        shown,
        "method" if function.parameters[:1] in (("self",), ("cls",)) else "function",
    )
    if 15 <= len(function.summary) <= _ANSWER_CHARACTERS:
        yield "describe", "en", shown, function.summary
    cut = function.signature.find("(") + 1 + rng.randrange(1, 12)
    if cut < len(function.signature) - 3:
        yield "complete_signature", "en", {"text": function.signature[:cut]}, function.signature[cut:]


def _about_text(document: Document, rng: random.Random) -> Iterator[tuple[str, str, dict, str]]:
    heading = next((document.text[s.start : s.end] for s in document.spans if s.kind == "heading" and s.start == 0), "")
    name = (heading or document.title.rpartition(" - ")[0] or document.title).strip()
    body = document.text[len(heading) :].strip() if heading else document.text
    paragraph = next((p for p in body.split("\n\n") if len(p) > 80), "")
    passage = _cut(paragraph)
    language = guess_language(passage)
    if not passage or not 2 < len(name) < 60 or language is None:
        return
    if name.casefold() in passage[:120].casefold():
        sentence = _first_sentence(passage)
        if 30 <= len(sentence) <= _ANSWER_CHARACTERS:
            yield "fact", language, {"name": name}, sentence
    yield "sentence_count", language, {"text": passage}, str(len(_SENTENCE.split(passage)))
    asked_in = rng.choice(("en", language))
    yield "language", asked_in, {"text": passage}, _LANGUAGE_NAMES[language]


_STOP_WORDS = {
    "en": frozenset(["the", "of", "and", "is", "in", "was", "a", "to", "by", "from", "with", "that"]),
    "fr": frozenset(["le", "la", "les", "des", "est", "et", "une", "dans", "du", "par", "qui", "en"]),
    "es": frozenset(["el", "los", "las", "es", "y", "una", "en", "del", "por", "que", "con", "de"]),
}


def guess_language(text: str) -> str | None:
    """The language whose commonest words a passage holds most of: enough to ask a question in the passage's language."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    counts = {language: sum(w in stop for w in words) for language, stop in _STOP_WORDS.items()}
    best = max(counts, key=counts.get)
    return best if counts[best] >= 2 else None


def _first_sentence(text: str) -> str:
    return _SENTENCE.split(" ".join(text.split()), maxsplit=1)[0]


def _cut(text: str) -> str:
    """Whole sentences up to the passage's length, or its first words."""
    text = " ".join(text.split())
    if len(text) <= _PASSAGE_CHARACTERS:
        return text
    kept = ""
    for sentence in _SENTENCE.split(text):
        if len(kept) + len(sentence) > _PASSAGE_CHARACTERS:
            break
        kept += sentence + " "
    return kept.strip() or text[:_PASSAGE_CHARACTERS].rpartition(" ")[0]


def reasoning_dialogues(config: DialogueConfig) -> dict[str, list[Dialogue]]:
    """Dialogues of `reasoning-gym` tasks by split; no held-out question stands among the training ones."""
    splits: dict[str, list[Dialogue]] = {"train": [], "heldout": []}
    if not any(config.reasoning.values()):
        return splits
    try:
        import reasoning_gym
    except ImportError:
        return splits
    for task, size in config.reasoning.items():
        settings = config.reasoning_settings.get(task, {})
        try:
            make: Callable = lambda n, seed, t=task, s=settings: reasoning_gym.create_dataset(t, size=n, seed=seed, **s)  # noqa: E731
            heldout = list(make(config.heldout_items, config.seed + 1_000_003))
            train = list(make(size, config.seed))
        except (ValueError, AssertionError, TypeError) as error:
            raise ValueError(f"reasoning task {task!r} with {settings} is refused by reasoning-gym: {error}") from None
        asked = {item["question"] for item in heldout}
        for split, items in (("heldout", heldout), ("train", [i for i in train if i["question"] not in asked])):
            splits[split] += [_reasoning(task, split, i, item) for i, item in enumerate(items)]
    return splits


def _reasoning(task: str, split: str, number: int, item: dict) -> Dialogue:
    messages = [
        {"role": "user", "content": item["question"].strip()},
        {"role": "assistant", "content": str(item["answer"]).strip()},
    ]
    return Dialogue(messages, id=f"{task}/{split}/{number}", source=f"reasoning-gym/{split}/{number}", task=task)


def shuffled(dialogues: list[Dialogue], seed: int) -> list[Dialogue]:
    """The control: the same prompts and the same answers, answers permuted within each family."""
    rng, permuted = random.Random(seed), {}
    for task in sorted({d.task for d in dialogues}):
        answers = [d.messages[-1] for d in dialogues if d.task == task]
        rng.shuffle(answers)
        permuted[task] = iter(answers)
    return [
        Dialogue([*d.messages[:-1], next(permuted[d.task])], d.id, d.source, d.task, d.tools, d.meta) for d in dialogues
    ]


def _at_most(dialogues: list[Dialogue], limit: int, asked: set[str]) -> list[Dialogue]:
    """The first `limit` of each family whose question was not trained on, each question once."""
    kept, counts, seen = [], {}, set(asked)
    for d in dialogues:
        question = d.messages[0]["content"]
        if counts.get(d.task, 0) < limit and question not in seen:
            counts[d.task] = counts.get(d.task, 0) + 1
            seen.add(question)
            kept.append(d)
    return kept
