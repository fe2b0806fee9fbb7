import json
import random
import sys

import numpy as np
import pytest
import torch

from herder.engine.constrain import Constraint, Masks, apply
from herder.engine.schemas import smallest
from herder.engine.tools import tool_constraint
from herder.tokenizer import ChatFormat, Tokenizer, special_names

WORDS = "ca cat do dog ts he ll lo hello tr true null é € 12 [[ ]] ,["
PIECES = [*WORDS.split(" "), '{"', '":', '": ', '",', '", ', '"}', ", ", ', "']


@pytest.fixture(scope="module")
def tokenizer():
    ranks = {bytes([i]): i for i in range(256)}
    for piece in PIECES:
        ranks.setdefault(piece.encode(), len(ranks))
    return Tokenizer(ranks, special_names(12))


@pytest.fixture(scope="module")
def masks(tokenizer):
    pytest.importorskip("llguidance")
    return Masks(tokenizer)


def walk(matcher, rng, most=400):
    """Takes random allowed tokens until the end, preferring those that close what is open once it gets long."""
    ids = []
    while not matcher.finished and len(ids) < most:
        allowed = matcher.allowed().nonzero()[0].tolist()
        ending = [i for i in allowed if i in matcher.ends]
        ids.append(rng.choice(ending if ending and len(ids) > 30 else allowed))
        matcher.advance(ids[-1])
    return ids


def language(matcher, tokenizer, text=b""):
    """All texts that paths through the allowed tokens spell, with the claim that a path may end exactly there."""
    allowed = matcher.allowed()
    special = {i for i in allowed.nonzero()[0].tolist() if i in tokenizer.special_ids}
    assert special == (matcher.ends if matcher.may_end else set())
    found = {text} if special else set()
    for token in set(allowed.nonzero()[0].tolist()) - special:
        matcher.advance(token)
        found |= language(matcher, tokenizer, text + tokenizer.decode_bytes([token]))
        matcher.rollback(1)
    return found


@pytest.mark.parametrize(
    ("regex", "texts"),
    [
        ("(cat|car|dog)s?", {"cat", "car", "dog", "cats", "cars", "dogs"}),
        (
            "[ab]{1,3}",
            {*"ab", *(a + b for a in "ab" for b in "ab"), *(a + b + c for a in "ab" for b in "ab" for c in "ab")},
        ),
        ("é|€?a|😀", {"é", "€a", "a", "😀"}),
        ("hello", {"hello"}),
        ("(ab)?", {"", "ab"}),
    ],
)
def test_the_paths_through_the_masks_spell_the_language_and_end_only_in_it(masks, tokenizer, regex, texts):
    matcher = masks.matcher(Constraint(regex=regex))
    assert language(matcher, tokenizer) == {text.encode() for text in texts}


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_every_answer_meets_its_schema(masks, tokenizer):
    for seed in range(30):
        ids = walk(masks.matcher(Constraint(json_schema=SCHEMA)), random.Random(seed))
        assert ids[-1] in tokenizer.stop_ids
        assert not tokenizer.special_ids & set(ids[:-1])
        value = json.loads(tokenizer.decode(ids[:-1]))
        assert {"name", "age"} <= value.keys() <= SCHEMA["properties"].keys()
        assert isinstance(value["name"], str)
        assert len(value["name"]) <= 8
        assert type(value["age"]) is int
        assert 0 <= value["age"] <= 150
        assert set(value.get("tags", ())) <= {"a", "b"}
        assert len(value.get("tags", ())) <= 3


def test_control_tokens_stay_out_of_text_that_may_spell_anything(masks, tokenizer):
    matcher = masks.matcher(Constraint(json_schema={"type": "string"}))
    matcher.advance(tokenizer.encode('"')[0])
    allowed = matcher.allowed()
    assert allowed.sum() > 100
    assert not any(allowed[i] for i in tokenizer.special_ids)
    with pytest.raises(ValueError, match="not allowed here"):
        matcher.advance(tokenizer.special["<|eot_id|>"])


def test_white_space_between_parts_is_bounded(masks, tokenizer):
    matcher, space = masks.matcher(Constraint(json_schema=SCHEMA)), ord("\n")
    matcher.advance(ord("{"))
    count = 0
    while matcher.allowed()[space]:
        matcher.advance(space)
        count += 1
    assert 1 < count <= 32


def test_a_schema_may_recurse_where_it_can_end(masks, tokenizer):
    tree = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }
    depths = set()
    for seed in range(20):
        value = json.loads(
            tokenizer.decode(walk(masks.matcher(Constraint(json_schema=tree)), random.Random(seed))[:-1])
        )
        depth = 0
        while value is not None:
            value, depth = value["next"], depth + 1
        depths.add(depth)
    assert len(depths) > 1


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"json_schema": False}, "schema is false"),
        ({"json_schema": {"$ref": "#"}}, "cannot be met: every document .* endless"),
        (
            {"json_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
            "cannot be met: every document .* endless",
        ),
        ({"json_schema": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}}, "endless"),
        ({"json_schema": {"type": "string", "minLength": 10**9}}, "1,000,000,002 characters"),
        ({"json_schema": {"type": "string", "minLength": 5, "maxLength": 2}}, "minLength"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "number"}]}}, "incompatible types"),
        ({"json_schema": {"type": "strng"}}, "Invalid type: strng"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "does not exist"),
        ({"json_schema": {"$ref": "http://example.com/schema"}}, "does not fetch"),
        ({"json_schema": {"const": "\ud800"}}, "the JSON schema cannot be used: "),
        ({"regex": "\ud800"}, "the regular expression cannot be used: .*surrogates"),
        ({"regex": "("}, "the regular expression cannot be used: .*unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"grammar": "start: missing"}, "the grammar cannot be used: .*unknown name"),
        ({"grammar": "start: start"}, "the grammar cannot be met: nothing matches it"),
        ({"grammar": 'start: "a" <|eot_id|>'}, "names a special token"),
    ],
)
def test_what_cannot_be_met_is_refused_in_a_sentence(masks, constraint, message):
    with pytest.raises(ValueError, match=message) as error:
        masks.matcher(Constraint(**constraint))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has nothing; give exactly one"),
        ({"regex": "a", "grammar": "b"}, "has regex and grammar; give exactly one"),
        ({"json_schema": 42}, "json_schema is 42; a JSON schema is an object"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": {"const": float("nan")}}, "json_schema is no JSON"),
        ({"json_schema": {"const": {1}}}, "json_schema is no JSON"),
        ({"json_schema": "[" * 100_000}, "json_schema nests too deeply"),
        ({"regex": 3}, "regex is of type int"),
    ],
)
def test_what_is_no_constraint_is_refused_in_a_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        Constraint(**fields)


LINKS = {
    str(i): {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{i + 1}"}}, "required": ["a"]} for i in range(800)
}
CHAIN = {"$defs": {**LINKS, "800": {"type": "null"}}, "$ref": "#/$defs/0"}


@pytest.mark.parametrize(
    ("schema", "length"),
    [
        ({"type": "object", "properties": {"a": {"const": "xy"}}, "required": ["a"]}, len('{"a":"xy"}')),
        ({"type": "array", "minItems": 3, "items": {"type": "null"}}, len("[null,null,null]")),
        ({"enum": ["abc", 1234567, None]}, 4),
        ({"type": ["string", "integer"], "minLength": 9}, 1),
        ({"$defs": {"a/b": {"type": "string", "minLength": 3}}, "$ref": "#/$defs/a~1b"}, 5),
        ({"type": "object", "additionalProperties": False, "required": ["a"]}, float("inf")),
        ({"anyOf": [{"$ref": "#"}, {"type": "boolean"}]}, 4),
        (CHAIN, len('{"a":' * 800 + "null" + "}" * 800)),
        ({**CHAIN, "$defs": {**CHAIN["$defs"], "800": {"$ref": "#/$defs/0"}}}, float("inf")),
    ],
)
def test_the_shortest_document_is_counted(schema, length):
    assert smallest(schema) == length


def test_steps_taken_back_leave_no_trace(masks, tokenizer):
    rng = random.Random(1)
    matcher, shadow = (masks.matcher(Constraint(json_schema=SCHEMA)) for _ in range(2))
    for _ in range(60):
        if shadow.finished:
            break
        before, count = shadow.allowed(), 0
        for _ in range(rng.randint(0, 5)):
            if matcher.finished:
                break
            matcher.advance(int(rng.choice(matcher.allowed().nonzero()[0])))
            count += 1
        matcher.rollback(count)
        np.testing.assert_array_equal(matcher.allowed(), before)
        token = int(rng.choice(before.nonzero()[0]))
        matcher.advance(token)
        shadow.advance(token)
    assert matcher.finished == shadow.finished


def test_rows_of_drafts_are_those_of_single_steps(masks, tokenizer):
    constraints = [
        Constraint(json_schema=SCHEMA),
        Constraint(regex="(cat|dog)+"),
        Constraint(json_schema={"type": "null"}),
    ]
    drafts = [tokenizer.encode('{"name": "x')[:4], tokenizer.encode("catdog"), [*tokenizer.encode("nul"), 7]]
    matchers = [masks.matcher(c) for c in constraints]
    bits = masks.rows(matchers, drafts)
    assert len(bits) == sum(len(d) + 1 for d in drafts)
    np.testing.assert_array_equal(masks.rows(matchers, drafts), bits)  # nobody has moved
    at = 0
    for constraint, draft in zip(constraints, drafts, strict=True):
        matcher = masks.matcher(constraint)
        for token in [*draft, None]:
            flags = np.unpackbits(bits[at].view(np.uint8), bitorder="little", count=tokenizer.n_vocab).astype(bool)
            at += 1
            np.testing.assert_array_equal(flags, matcher.allowed())
            if token is None or not flags[token]:
                at += draft[::-1].index(token) if token is not None else 0
                break
            matcher.advance(token)


def test_a_grammar_that_grows_beyond_the_librarys_limits_breaks_off_with_an_error(masks, tokenizer):
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}
    matcher = masks.matcher(Constraint(json_schema=wide))
    matcher.advance(ord("{"))
    assert not matcher.allowed().any()
    assert not matcher.may_end
    assert not matcher.finished
    assert matcher.error


def test_masks_forbid_in_their_rows_alone(masks, tokenizer):
    matcher = masks.matcher(Constraint(regex="cat"))
    logits = torch.zeros(3, tokenizer.n_vocab + 5)
    apply(logits, [1], masks.rows([matcher], [()]))
    np.testing.assert_array_equal(logits[1, : tokenizer.n_vocab].isfinite().numpy(), matcher.allowed())
    assert not logits[1, tokenizer.n_vocab :].isfinite().any()
    assert (logits[[0, 2]] == 0).all()


def test_without_an_id_to_end_by_a_request_is_finished_when_all_is_said(masks, tokenizer):
    matcher = masks.matcher(Constraint(regex="ab?"), stop_ids=())
    matcher.advance(ord("a"))
    assert not matcher.finished
    matcher.advance(ord("b"))
    assert matcher.finished


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 9}, "unit": {"$ref": "#/$defs/unit"}},
                "required": ["city", "unit"],
                "additionalProperties": False,
                "$defs": {"unit": {"enum": ["c", "f"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


@pytest.mark.parametrize(
    ("dialect", "calls"),
    [("llama3.1", "json"), ("llama3.1", "function_tag"), ("llama3.2", None), ("hf-llama3.1", None), ("chatml", None)],
)
def test_a_forced_call_is_read_back_as_a_call_of_a_declared_function(masks, tokenizer, dialect, calls):
    if dialect == "chatml":
        tokenizer = Tokenizer(tokenizer.ranks, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
        masks = Masks(tokenizer)
    chat, called = ChatFormat(tokenizer, dialect, calls=calls), set()
    for seed in range(12):
        ids = walk(masks.matcher(tool_constraint(chat, TOOLS), chat.stop_ids), random.Random(seed))
        (call,) = chat.parse(ids, TOOLS)["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        called.add(call["function"]["name"])
        if call["function"]["name"] == "weather":
            assert arguments.keys() == {"city", "unit"}
            assert arguments["unit"] in ("c", "f")
            assert len(arguments["city"]) <= 9
        else:
            assert arguments == {}
    assert called == {"weather", "now"}
    for seed in range(3):
        ids = walk(masks.matcher(tool_constraint(chat, TOOLS, ["now"]), chat.stop_ids), random.Random(seed))
        assert [c["function"]["name"] for c in chat.parse(ids, TOOLS)["tool_calls"]] == ["now"]


def test_a_forced_call_is_spelled_as_the_chat_format_writes_it(masks, tokenizer):
    chat = ChatFormat(tokenizer, "llama3.1")
    arguments = {"city": "Rome", "unit": "c"}
    call = {"type": "function", "function": {"name": "weather", "arguments": json.dumps(arguments)}}
    turn = chat.encode(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}], TOOLS
    )
    span = turn.spans[-1]
    matcher = masks.matcher(tool_constraint(chat, TOOLS), chat.stop_ids)
    for token in turn.ids[span.content : span.end]:
        matcher.advance(token)
    assert matcher.finished


def test_several_calls_where_the_form_has_room(tokenizer):
    tokenizer = Tokenizer(tokenizer.ranks, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    chat = ChatFormat(tokenizer, "chatml")
    matcher = Masks(tokenizer).matcher(tool_constraint(chat, TOOLS, ["now"], parallel=True), chat.stop_ids)
    block = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for token in tokenizer.encode(f"{block}\n{block}"):
        matcher.advance(token)
    assert matcher.may_end


@pytest.mark.parametrize(
    ("tools", "names", "message"),
    [
        ([], None, "no function is declared"),
        ([{"type": "brave_search"}], None, "no function is declared"),
        (TOOLS, ["weathr"], "'weathr' is no function among the tools, which are weather, now"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}], None, "parameters of f"),
        (
            [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
                }
            ],
            None,
            "the schema of the parameters of f cannot be met",
        ),
    ],
)
def test_tools_that_cannot_be_forced_are_refused_in_a_sentence(tokenizer, tools, names, message):
    with pytest.raises(ValueError, match=message):
        tool_constraint(ChatFormat(tokenizer, "llama3.1"), tools, names)


def test_the_missing_library_is_named_with_the_command_that_installs_it(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r'pip install "herder\[constrain\]"'):
        Masks(tokenizer)
