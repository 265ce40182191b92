"""A conversation: what it remembers, when it forgets, how it ends; and the command line around it, in a real
terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.serving.chat import Conversation
from coldpress.serving.engine import GREEDY, USUAL, Engine, Sampling, own_sampling


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "out"
    folder.mkdir()
    Press(precision="fp32").run(Model(tiny_model, "hf", "tiny"), Context(folder))
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return Engine(folder, threads=1)


def with_settings(folder: Path, place: Path, **search) -> Path:
    shutil.copytree(folder, place)
    file = place / "genai_config.json"
    config = json.loads(file.read_text())
    context = search.pop("context_length", None)
    config["search"] |= search
    if context:
        config["model"]["context_length"] = config["search"]["max_length"] = context
    file.write_text(json.dumps(config))
    return place


def test_sampling_is_what_the_makers_of_a_model_recommend(folder, tmp_path):
    own = with_settings(folder, tmp_path / "own", do_sample=True, temperature=0.6, top_k=20)
    assert own_sampling(own) == Sampling(temperature=0.6, top_p=0.9, top_k=20)
    assert own_sampling(folder) == USUAL


def test_equal_seeds_give_equal_answers_and_greedy_ones_need_none(engine):
    prompt = [0, 40, 41, 42, 90]
    drawn = {
        seed: [engine.generate(prompt, Sampling(12, 5.0, seed=seed)).finished().tokens for _ in range(2)]
        for seed in (1, 2)
    }
    assert all(first == second for first, second in drawn.values())
    assert drawn[1] != drawn[2]
    assert engine.generate(prompt).finished().tokens == engine.generate(prompt).finished().tokens


def test_an_answer_may_be_left_in_the_middle_and_counts_as_said(engine):
    chat = Conversation(engine, sampling=Sampling(20))
    answer = chat.ask("hello")
    piece = next(answer)
    answer.close()
    assert chat.last.stream.ended == "closed"
    assert chat._said[-1] == {"role": "assistant", "content": piece}
    assert "".join(chat.ask("and now"))


def test_a_full_context_forgets_the_oldest_turns_but_no_instructions(folder, tmp_path):
    engine = Engine(with_settings(folder, tmp_path / "small", context_length=96), threads=1)
    chat = Conversation(engine, system="be brief", sampling=Sampling(8))
    forgotten = []
    for _ in range(6):
        "".join(chat.ask("tell me more of it"))
        forgotten.append(chat.last.forgotten)
    assert forgotten[0] == 0 and max(forgotten) > 0
    with pytest.raises(ColdpressError, match="context 96"):
        next(chat.ask("word " * 200))


def test_the_end_by_length_is_known(engine):
    chat = Conversation(engine, sampling=Sampling(3))
    "".join(chat.ask("hello"))
    assert chat.last.is_cut == (chat.last.stream.ended == "length")
    assert len(chat.last.stream.tokens) <= 3


def typed(*arguments: object, lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coldpress", "chat", *map(str, arguments)],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )


def test_lines_from_a_pipe_and_slash_words(folder):
    lines = "/help\n/system speak plainly\nhello\n/rest\n/reset\nhello\n/exit\nhello\n"
    done = typed(folder, "--greedy", "--max_new_tokens", 4, lines=lines)
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert said.count("first after") == 2, "nothing is asked after the end"
    assert said.index("forgets what was said") < said.index("[instructions: speak plainly]")
    assert "there is no /rest; did you mean '/reset'?" in said and "[forgotten]" in said


def test_a_prompt_from_a_pipe_and_choices_that_contradict(folder):
    piped = typed(folder, "--greedy", "--prompt", "-", lines="hello\n")
    asked = typed(folder, "--greedy", "--prompt", "hello", lines="")
    assert piped.returncode == asked.returncode == 0 and piped.stdout == asked.stdout
    wrong = typed(folder, "--greedy", "--temperature", 0.5, "--prompt", "hello", lines="")
    assert wrong.returncode == 2 and "--temperature has no effect on greedy answers" in wrong.stderr


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *arguments: object, cache: Path):
        self._end, inner = pty.openpty()
        variables = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        command = [sys.executable, "-m", "coldpress", "chat", *map(str, arguments), "--cache_dir", str(cache)]
        self.process = subprocess.Popen(
            command,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=variables,
            start_new_session=True,
        )
        os.close(inner)
        self.unread = ""

    def until(self, words: str, seconds: float = 60) -> None:
        """Read on to these words, from the end of those before."""
        while words not in self.unread:
            ready, _, _ = select.select([self._end], [], [], seconds)
            assert ready, f"'{words}' never came: {self.unread!r}"
            try:
                self.unread += os.read(self._end, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended before '{words}': {self.unread!r}") from None
        self.unread = self.unread.partition(words)[2]

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt(self, is_done: Callable[[], bool]) -> None:
        """Ctrl-C, once more where it came just as a line began to be read, which Python misses."""
        for _ in range(20):
            self.process.send_signal(signal.SIGINT)
            if is_done():
                return
        raise AssertionError(f"nothing happens: {self.unread!r}")

    def says(self, words: str) -> bool:
        """Whether these words come within three seconds."""
        try:
            self.until(words, 3)
        except AssertionError:
            return False
        return True

    def ends(self) -> bool:
        """Whether the command ends within three seconds."""
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            return False
        return True


@pytest.fixture
def terminal(folder, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    made = Terminal(folder, "--greedy", "--max_new_tokens", 4, cache=tmp_path / "cache")
    signal.signal(signal.SIGINT, before)
    yield made
    made.process.kill()
    made.process.wait()


def test_in_a_terminal_one_interrupt_is_a_hint_and_two_are_the_end(terminal):
    terminal.until("> ")
    terminal.type("hello\n")
    terminal.until("first after")
    terminal.until("> ")
    terminal.interrupt(lambda: terminal.says("Ctrl-C again ends"))
    terminal.until("> ")
    terminal.interrupt(terminal.ends)
    assert terminal.process.returncode == 130


def test_the_end_of_the_input_ends_and_lines_are_remembered(terminal, tmp_path):
    pytest.importorskip("readline")
    terminal.until("> ")
    terminal.type("hello\n")
    terminal.until("first after")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    assert "hello" in (tmp_path / "cache" / "chat_history").read_text()


def test_what_is_greedy_is_said_of_the_engine_too():
    assert GREEDY.options == {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
