"""The judges: an OpenAI-compatible endpoint, a local language model, and sentence similarity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from components.core.errors import ConfigError
from components.core.options import Count, NonNegative, Positive, check_options
from components.core.secrets import without_secrets
from components.judging.protocol import HIGHEST, Exchange, Judge, Parser, Verdict, parse_grade, prompt_text

if TYPE_CHECKING:
    import requests
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

JudgeKind = Literal["similarity", "local", "endpoint"]
WEAKNESS: dict[JudgeKind, str] = {
    "similarity": "cosine of sentence embeddings: it measures similar wording, not truth; opposites score high.",
    "local": "a local language model: below a few billion parameters its grades are close to chance.",
    "endpoint": "",
}


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Which judge grades the replies, and how."""

    kind: JudgeKind = "similarity"
    """similarity (offline, embedded), local (a Hugging Face causal model), endpoint (OpenAI-compatible)."""
    model: str = "minilm"
    """similarity: a sentence encoder; local: a directory or hub id; endpoint: the model's name there."""
    base_url: str | None = None
    """endpoint: the address up to /v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """endpoint: the environment variable that holds the key; an unset one sends none."""
    prompt: str = "knowledge-1"
    """The prompt, by name and version."""
    parser: Parser = "strict"
    """How a grade is read from the judge's reply."""
    temperature: NonNegative = 0.0
    """Sampling temperature of the judge; 0 is greedy."""
    max_tokens: Count = 20
    """Maximum number of tokens the judge may write."""
    concurrency: Count = 8
    """endpoint: concurrent requests."""
    attempts: Count = 5
    """endpoint: tries per request, with growing waits, for connection errors and answers 408, 429 and 5xx."""
    timeout_s: Positive = 60.0
    """endpoint: seconds to wait for one answer."""

    def __post_init__(self) -> None:
        check_options(self, "judge")
        if self.kind == "endpoint":
            address = urlsplit(self.base_url or "")
            if without_secrets(self.base_url or "") != (self.base_url or ""):
                raise ConfigError(f"the judge's base_url holds credentials; put the key into ${self.api_key_env}.")
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ConfigError(f"the judge's base_url is {self.base_url!r}; give an http(s) address up to /v1.")
        prompt_text(self.prompt, Exchange(question="", answers=(), reply=""))

    def build(self) -> Judge:
        """The judge; models load at the first verdict."""
        return {"similarity": SimilarityJudge, "local": LocalJudge, "endpoint": EndpointJudge}[self.kind](self)


@dataclass(frozen=True)
class SimilarityJudge:
    """10 times the cosine between reply and the nearest accepted answer, negative ones as 0: offline and weak."""

    config: JudgeConfig

    @property
    def identity(self) -> str:
        return f"similarity {self.config.model}"

    def verdicts(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        import torch

        from components.models.sentence import load_sentence_encoder  # imports transformers

        encoder = load_sentence_encoder(self.config.model)
        texts = [text for exchange in exchanges for text in (exchange.reply, *exchange.answers)]
        directions = torch.nn.functional.normalize(encoder.encode(texts), dim=1)
        vectors = dict(zip(texts, directions, strict=True))

        def grade(exchange: Exchange) -> float:
            if not exchange.reply.strip():
                return 0.0
            nearest = max(float(vectors[exchange.reply] @ vectors[answer]) for answer in exchange.answers)
            return HIGHEST * min(max(nearest, 0.0), 1.0)

        return [Verdict(score=grade(exchange)) for exchange in exchanges]


@dataclass(frozen=True)
class LocalJudge:
    """A causal language model with a chat template, greedy or sampled, in one process."""

    config: JudgeConfig

    @property
    def identity(self) -> str:
        return f"local {_asked(self.config)}"

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.config.model, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(self.config.model, dtype="auto", use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"the judge model {self.config.model!r} cannot be loaded ({first}).") from error
        if not tokenizer.chat_template:
            raise ConfigError(f"the judge model {self.config.model!r} has no chat template; give an instruct model.")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return model, tokenizer

    def verdicts(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        import torch

        model, tokenizer = self._loaded
        chats = [[{"role": "user", "content": prompt_text(self.config.prompt, exchange)}] for exchange in exchanges]
        encoded = cast("Any", tokenizer).apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        inputs: dict[str, Tensor] = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        sampling: dict[str, bool | float] = {"do_sample": False}
        if self.config.temperature:
            sampling = {"do_sample": True, "temperature": self.config.temperature}
        with torch.no_grad():
            tokens = cast("Any", model).generate(
                **inputs, max_new_tokens=self.config.max_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
            )
        replies = cast("Tensor", tokens)[:, inputs["input_ids"].shape[1] :]
        said = tokenizer.batch_decode(replies, skip_special_tokens=True)
        return [_verdict(words, self.config.parser) for words in said]


@dataclass(frozen=True)
class EndpointJudge:
    """POST base_url/chat/completions; the key is read from the environment and is never written anywhere."""

    config: JudgeConfig

    @property
    def identity(self) -> str:
        return f"endpoint {self.config.base_url} {_asked(self.config)}"

    @cached_property
    def _session(self) -> requests.Session:
        import requests

        session = requests.Session()
        if key := os.environ.get(self.config.api_key_env):
            session.headers["Authorization"] = f"Bearer {key}"
        return session

    def verdicts(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        pool = ThreadPoolExecutor(max_workers=self.config.concurrency)
        try:
            found = list(pool.map(self._verdict, exchanges))
        finally:
            # After a signal nobody waits for an endpoint that may take minutes. Otherwise all have ended by now.
            pool.shutdown(wait=False, cancel_futures=True)
        failures = {verdict.failure for verdict in found if verdict.score is None and not verdict.said}
        if len(failures) == 1 and all(verdict.score is None and not verdict.said for verdict in found):
            raise ConfigError(f"the judge at {self.config.base_url} answered no request ({failures.pop()}).")
        return found

    def _verdict(self, exchange: Exchange) -> Verdict:
        import requests

        try:
            answer = self._post(prompt_text(self.config.prompt, exchange))
        except requests.RequestException as error:
            return Verdict(score=None, failure=_reason(error))
        try:
            content = answer.json()
            said = str(content["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError):
            return Verdict(score=None, failure="its answer is not a chat completion")
        return _verdict(said, self.config.parser)

    def _post(self, prompt: str) -> requests.Response:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        retrying = Retrying(
            stop=stop_after_attempt(self.config.attempts),
            wait=wait_exponential_jitter(initial=0.5, max=30),
            retry=retry_if_exception(_passing),
            reraise=True,
        )

        def once() -> requests.Response:
            address = f"{str(self.config.base_url).rstrip('/')}/chat/completions"
            answer = self._session.post(address, json=body, timeout=self.config.timeout_s)
            answer.raise_for_status()
            return answer

        return retrying(once)


def _asked(config: JudgeConfig) -> str:
    return f"{config.model} {config.prompt} {config.parser} t{config.temperature:g} n{config.max_tokens}"


def _verdict(said: str, parser: Parser) -> Verdict:
    grade = parse_grade(said, parser)
    failure = None if grade is not None else f"it gave no grade from 0 to 10 ({parser} parser)"
    return Verdict(score=grade, said=said.strip(), failure=failure)


def _passing(error: BaseException) -> bool:
    """Whether a retry may help."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, requests.ConnectionError | requests.Timeout)


def _reason(error: Exception) -> str:
    """One phrase without address, headers or body: those may hold secrets."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return type(error).__name__ if status is None else f"status {status}"
