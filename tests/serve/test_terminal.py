import pytest
import torch

from herder.engine import Engine, Sampling
from herder.model import Llama, LlamaConfig
from herder.serve import chat
from herder.serve.terminal import printable
from herder.tokenizer import ChatFormat

SAMPLING = Sampling(max_tokens=12, seed=4)


@pytest.fixture(scope="module")
def engine(tok):
    model = Llama(LlamaConfig(tok.n_vocab, 32, 1, 2, 2, 64, max_seq_len=96)).init_weights(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    return Engine(model, tok)


class Terminal:
    """A user who types the given lines (an exception among them is raised), and a screen."""

    def __init__(self, *lines):
        self.lines, self.screen = list(lines), ""

    def read(self, prompt):
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return line

    def write(self, text="", end="\n", flush=False):
        self.screen += text + end


def talk(engine, tok, *lines, sampling=SAMPLING, **options):
    terminal = Terminal(*lines)
    messages = chat(engine, ChatFormat(tok), sampling, terminal.read, terminal.write, **options)
    return messages, terminal.screen


def test_answers_are_those_of_the_engine_and_the_history_is_encoded(engine, tok):
    messages, screen = talk(engine, tok, "hi", "", "and?")
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    fmt = ChatFormat(tok)
    for end in (1, 3):
        prompt = fmt.encode(messages[:end], add_generation_prompt=True).ids
        done = engine.generate([prompt], SAMPLING)[0]
        assert messages[end] == fmt.parse(done.ids)
        assert printable(done.text) in screen


def test_reset_forgets_and_system_stays(engine, tok):
    messages, _ = talk(engine, tok, "/system Be brief.", "one", "/reset", "two")
    assert [m["content"] for m in messages[:2]] == ["Be brief.", "two"]
    assert len(messages) == 3
    assert talk(engine, tok, "/system", "x", system="old")[0][0]["role"] == "user"


def test_quit_and_the_end_of_input_leave(engine, tok):
    assert talk(engine, tok, "/quit", "never read")[0] == []
    assert talk(engine, tok)[0] == []


def test_an_unknown_command_is_not_sent_to_the_model(engine, tok):
    messages, screen = talk(engine, tok, "/rest")
    assert messages == []
    assert "/rest is no command" in screen


def test_ctrl_c_stops_the_current_answer_only(engine, tok):
    class Impatient(Terminal):
        pieces = 0

        def write(self, text="", end="\n", flush=False):
            super().write(text, end)
            if end == "":
                self.pieces += 1
                if self.pieces == 3:
                    raise KeyboardInterrupt

    terminal = Impatient("hi", "more")
    messages = chat(engine, ChatFormat(tok), SAMPLING, terminal.read, terminal.write)
    whole = talk(engine, tok, "hi")[0]
    assert messages[1]["stop_reason"] == "out_of_tokens"
    assert whole[1]["content"].startswith(messages[1]["content"])
    assert len(messages) == 4
    assert "(stopped)" in terminal.screen
    assert not torch.is_inference_mode_enabled()


def test_ctrl_c_at_the_prompt_does_not_leave(engine, tok):
    messages, screen = talk(engine, tok, KeyboardInterrupt, "hi")
    assert len(messages) == 2
    assert "/quit" in screen


def test_the_oldest_turns_go_when_the_context_is_full(engine, tok):
    messages, screen = talk(engine, tok, *["word " * 12] * 4, system="s")
    assert "dropped" in screen
    assert messages[0] == {"role": "system", "content": "s"}
    assert messages[1]["role"] == "user"
    assert len(ChatFormat(tok).encode(messages[:-1], add_generation_prompt=True).ids) + 12 <= engine.context


def test_a_message_too_long_by_itself_is_refused_and_forgotten(engine, tok):
    assert talk(engine, tok, "x y " * 200)[0] == []
    messages, screen = talk(engine, tok, "x y " * 200, "hi")
    assert "too long for the model's context of 96" in screen
    assert [m["content"] for m in messages if m["role"] == "user"] == ["hi"]


def test_the_model_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\r\n\tc\x07\x9b") == "a\ufffd[2Jb\ufffd\n\tc\ufffd\ufffd"


def test_the_end_of_input_leaves_the_cursor_on_a_new_line(engine, tok):
    _, screen = talk(engine, tok)
    assert screen.splitlines(keepends=True)[1:] == ["\n"]
