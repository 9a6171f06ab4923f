"""Judges against a real endpoint on this machine: grades, failures, retries, cache, and cells that stay missing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from components.core.errors import ConfigError, DataError
from components.judging.backends import JudgeConfig
from components.judging.protocol import (
    PROMPTS,
    Exchange,
    Verdict,
    VerdictCache,
    cell,
    judged,
    parse_grade,
    prompt_text,
)

CAT = Exchange(question="What is it?\nAnswer with one word.", answers=("cat", "kitten"), reply="a cat {question}")
KEY = "the-secret-key"


@pytest.mark.parametrize(
    ("said", "strict", "coin"),
    [
        ("Grade: 7", 7.0, 7.0),
        ("7.5", 7.5, 7.5),
        (" score = 10/10. ", 10.0, 10.0),
        ("8/10", 8.0, 8.0),
        ("0", 0.0, 0.0),
        ("11", None, 1.0),  # coin: too high for a number, then its first digit
        ("I give it 6 points", None, 6.0),
        ("Grade: 7 because it is right", None, 7.0),
        ("20/10", None, None),  # coin: a of a/b, which is no grade
        ("none", None, None),
        ("", None, None),
        ("nan", None, None),
    ],
)
def test_parsers(said: str, strict: float | None, coin: float | None) -> None:
    assert parse_grade(said, "strict") == strict
    assert parse_grade(said, "coin") == coin


def test_the_prompt_leaves_out_the_line_that_asks_for_a_form() -> None:
    text = prompt_text("knowledge-1", CAT)
    assert "Question: What is it?\nReference answer: cat or kitten\nAnswer to grade: a cat {question}\n" in text
    assert "one word" not in text
    assert "(no answer)" in prompt_text("knowledge-1", replace(CAT, reply=" "))
    assert "box" in prompt_text("knowledge-1", replace(CAT, box=True))
    assert all({"words", "box"} == set(texts) for texts in PROMPTS.values())


@dataclass
class Endpoint:
    """What the server saw, and what it shall answer next: a status, or words (the last ones for ever)."""

    answers: list[int | str]
    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint(answers=["Grade: 4"])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            state.keys.append(self.headers.get("Authorization"))
            answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            if isinstance(answer, str):
                content = {"choices": [{"message": {"content": answer}}]}
                self.wfile.write(json.dumps(content).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def config(endpoint: Endpoint, **options: object) -> JudgeConfig:
    return JudgeConfig(kind="endpoint", model="m", base_url=endpoint.url, concurrency=1, attempts=3, **options)  # type: ignore[arg-type]


def test_an_endpoint_is_asked_with_the_key_of_the_environment(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    judge = config(endpoint, api_key_env="MY_KEY").build()
    assert judge.verdicts([CAT]) == [Verdict(score=4.0, said="Grade: 4")]
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert KEY not in judge.identity
    [body] = endpoint.bodies
    assert (body["model"], body["temperature"]) == ("m", 0.0)
    assert body["messages"] == [{"role": "user", "content": prompt_text("knowledge-1", CAT)}]


def test_a_busy_endpoint_is_asked_again_and_a_refusing_one_is_not(endpoint: Endpoint) -> None:
    endpoint.answers = [429, 503, "Grade: 9"]
    assert [verdict.score for verdict in config(endpoint).build().verdicts([CAT])] == [9.0]
    assert len(endpoint.bodies) == 3
    endpoint.answers = [401]
    with pytest.raises(ConfigError, match="answered no request \\(status 401\\)"):
        config(endpoint).build().verdicts([CAT, CAT])
    assert len(endpoint.bodies) == 5, "a refusal is not repeated"


def test_verdicts_are_asked_once_and_failures_again(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answers = ["Grade: 8", "well, I do not know", "Grade: 2"]
    dog = replace(CAT, reply="a dog")
    path = tmp_path / "sub" / "cache.jsonl"
    first = judged(config(endpoint).build(), [CAT, dog, CAT], VerdictCache(path))
    assert [verdict.score for verdict in first] == [8.0, None, 8.0]
    assert first[1].failure == "it gave no grade from 0 to 10 (strict parser)"
    assert len(endpoint.bodies) == 2, "equal exchanges are asked once"
    with path.open("a") as file:
        file.write('{"key": "cut o')  # a crash in the middle of a line
    done: list[int] = []
    again = judged(config(endpoint).build(), [CAT, dog], VerdictCache(path), done.append)
    assert [verdict.score for verdict in again] == [8.0, 2.0]
    assert len(endpoint.bodies) == 3
    assert done == [1, 2]
    assert [verdict.score for verdict in judged(config(endpoint).build(), [dog], VerdictCache(path))] == [2.0]
    other = config(endpoint, parser="coin").build()
    assert VerdictCache(path).get(VerdictCache.key(other, CAT)) is None, "another judge has its own verdicts"


def test_a_cell_without_enough_verdicts_is_missing_and_never_zero() -> None:
    good, bad = Verdict(score=6.0), Verdict(score=None, failure="down")
    assert cell([good, good], max_failed=0.0) == 60.0
    assert cell([good, good, good, bad], max_failed=0.25) == 60.0
    assert cell([good, good, good, bad], max_failed=0.2) is None
    assert cell([bad], max_failed=1.0) is None
    assert cell([], max_failed=1.0) is None


def test_similarity_grades_likeness() -> None:
    judge = JudgeConfig(model="hash").build()
    same, near, far, empty = judge.verdicts(
        [replace(CAT, reply=reply) for reply in ("kitten", "kittens", "engine", " ")]
    )
    assert same.score == pytest.approx(10.0)
    assert same.score > near.score > far.score  # type: ignore[operator]
    assert empty.score == 0.0


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of a few letters with a chat template."""
    folder = tmp_path_factory.mktemp("judge-model")
    letters = {letter: number for number, letter in enumerate(["<end>", *map(chr, range(32, 127))])}
    words = Tokenizer(WordLevel(letters, unk_token="<end>"))
    words.pre_tokenizer = Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}>"
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(letters), initializer_range=1.0, **sizes)).save_pretrained(folder)
    return folder


def test_a_local_model_judges_alike_alone_and_beside_others(local_model: Path) -> None:
    """A random model grades nothing; what it says must not depend on the padding that its neighbours ask for."""
    judge = JudgeConfig(kind="local", model=str(local_model), max_tokens=6).build()
    longer = replace(CAT, reply="a very long answer " * 5)
    alone = [judge.verdicts([exchange])[0] for exchange in (CAT, longer)]
    assert judge.verdicts([CAT, longer]) == alone
    assert [verdict.failure for verdict in alone] == ["it gave no grade from 0 to 10 (strict parser)"] * 2
    assert all(verdict.said for verdict in alone)
    assert alone[0].said != alone[1].said
    with pytest.raises(ConfigError, match="cannot be loaded"):
        JudgeConfig(kind="local", model=str(local_model / "none")).build().verdicts([CAT])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "endpoint"}, "give an http"),
        ({"kind": "endpoint", "base_url": "file:///etc"}, "give an http"),
        ({"kind": "endpoint", "base_url": "http://me:pass@host/v1"}, "holds credentials"),
        ({"kind": "endpoint", "base_url": "https://host/v1?apikey=0123"}, "holds credentials"),
        ({"prompt": "knowledge-0"}, "there is no judge prompt 'knowledge-0'"),
        ({"attempts": 0}, "attempts is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        JudgeConfig(**options)  # type: ignore[arg-type]


def test_a_file_of_something_else_is_no_cache(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    with pytest.raises(DataError, match="not a judge's cache"):
        VerdictCache(notes)
    assert notes.read_text() == "my notes\n"
    notes.write_text('{"key": "cut off by a cra')
    assert VerdictCache(notes).get("any") is None
