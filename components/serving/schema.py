"""OpenAI's chat completion requests, as far as they can be answered, and the row that each of them asks.

What a request leaves out has OpenAI's default. What cannot be answered as asked (tools, logprobs, several choices, a
system message, which no run was trained with) is refused by name and never passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from components.data.rows import IMAGE_TOKEN, Row, RowPicture, Turn
from components.serving.options import Limits
from components.serving.pictures import picture_of
from components.serving.refusals import bad_request

Neutral = Literal[None, 0]
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(BaseModel):
    """A text of a message."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """A picture as a data URL; its `detail` says nothing here, every picture is taken as the backbone takes it."""

    model_config = _STRICT
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """A picture of a message."""

    model_config = _STRICT
    type: Literal["image_url"]
    image_url: ImageUrl


def _part(part: object) -> str:
    return f"({part.get('type')})" if isinstance(part, dict) else f"({getattr(part, 'type', None)})"


# Tags of branches are in brackets, so that they can be left out of a place such as messages.0.content.
Part = Annotated[
    Annotated[TextPart, Tag("(text)")] | Annotated[ImagePart, Tag("(image_url)")],
    Discriminator(_part, custom_error_type="part", custom_error_message="Input should be of type text or image_url"),
]
Content = Annotated[
    Annotated[str, Tag("(string)")] | Annotated[list[Part], Tag("(parts)")],
    Discriminator(lambda content: "(parts)" if isinstance(content, list) else "(string)"),
]
Stop = Annotated[
    Annotated[str, Tag("(string)")] | Annotated[list[str], Tag("(texts)")],
    Discriminator(lambda stop: "(texts)" if isinstance(stop, list) else "(string)"),
]


class Message(BaseModel):
    """A turn of the conversation."""

    model_config = _STRICT
    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: Content
    name: str | None = None


class StreamOptions(BaseModel):
    """What a stream says beside the reply."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(BaseModel):
    """A request. The fields from `frequency_penalty` on may have the value that changes nothing, and no other."""

    model_config = _STRICT
    model: str
    messages: list[Message]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    n: Literal[None, 1] = None
    frequency_penalty: Neutral = None
    presence_penalty: Neutral = None
    logprobs: Literal[None, False] = None
    top_logprobs: Neutral = None
    logit_bias: dict[str, object] | None = Field(default=None, max_length=0)
    response_format: PlainText | None = None
    tools: list[object] | None = Field(default=None, max_length=0)
    tool_choice: Literal[None, "none", "auto"] = None
    parallel_tool_calls: bool | None = None


class PlainText(BaseModel):
    """The one form of a reply."""

    model_config = _STRICT
    type: Literal["text"]


ChatRequest.model_rebuild()


class Wanted(BaseModel):
    """Which checkpoints are to answer: those that are named, and no others. Shares are 0..1."""

    model_config = _STRICT
    serve: str
    canary: str | None = None
    canary_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    shadow: str | None = None
    shadow_share: Annotated[float, Field(ge=0, le=1)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a reply is generated."""

    max_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


ModelT = TypeVar("ModelT", bound=BaseModel)


def read_body(kind: type[ModelT], body: bytes) -> ModelT:
    """The request in a body; raises `Refusal` for what is not JSON, of another form, or not to be answered."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(place) for place in first["loc"] if not str(place).startswith("("))[:200]
        if first["type"] == "json_invalid":
            raise bad_request(f"the body is not JSON ({first['msg'][:200]}).", code="invalid_json") from error
        if first["type"] == "extra_forbidden":
            raise bad_request(
                f"{param} is not known here; leave it out.", param=param, code="unknown_parameter"
            ) from error
        if first["type"] == "too_long":  # of fields that must be empty
            raise bad_request(
                f"{param} cannot be answered here; leave it out.", param=param, code="unsupported_value"
            ) from error
        if first["type"] == "missing":
            raise bad_request(f"{param} is missing.", param=param, code="missing_parameter") from error
        said = first["msg"].removeprefix("Input ").replace("None", "null")
        raise bad_request(f"{param or 'the body'}: it {said[:200]}.", param=param or None) from error


def decoding_of(request: ChatRequest, limits: Limits) -> Decoding:
    """How the reply is generated; a request without `temperature` is greedy, as evaluation is. Raises `Refusal`."""
    both = [number for number in (request.max_completion_tokens, request.max_tokens) if number is not None]
    if len(set(both)) > 1:
        raise bad_request("max_tokens and max_completion_tokens differ; give one of them.", param="max_tokens")
    tokens = both[0] if both else min(limits.default_tokens, limits.tokens)
    if tokens > limits.tokens:
        raise bad_request(f"max_tokens is {tokens}; at most {limits.tokens} are generated here.", param="max_tokens")
    given = request.stop if request.stop is not None else []
    stops = [given] if isinstance(given, str) else given
    if len(stops) > 4 or any(not stop or len(stop) > 200 for stop in stops):
        raise bad_request("stop takes up to 4 texts of 1 to 200 characters.", param="stop")
    return Decoding(
        max_tokens=tokens,
        temperature=request.temperature or 0.0,
        top_p=request.top_p or 1.0,
        seed=request.seed,
        stops=tuple(stops),
    )


def row_of(request: ChatRequest, limits: Limits) -> Row:
    """The row that a request asks, in the form that evaluation asks it; raises `Refusal`.

    The parts of a message stand on lines of their own, in their order, and a placeholder stands for each picture: what
    LLaVA's data have as "<image>\\n" and a question is a picture part and a text part.
    """
    if not request.messages or len(request.messages) > limits.messages:
        raise bad_request(f"messages has {len(request.messages)}; 1 to {limits.messages} are taken.", param="messages")
    turns: list[Turn] = []
    pictures: list[bytes] = []
    left = limits.characters
    for number, message in enumerate(request.messages):
        param = f"messages.{number}"
        _check_role(message, number, param)
        asked, lines = message.role == "user", list[str]()
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for place, part in enumerate(parts):
            where = param if isinstance(message.content, str) else f"{param}.content.{place}"
            if isinstance(part, TextPart):
                left -= len(part.text)
                _check_text(part.text, left, limits, where)
                lines.append(part.text)
            else:
                if not asked:
                    raise bad_request("only messages of role user have pictures.", param=where)
                if len(pictures) == limits.pictures:
                    raise bad_request(f"more than {limits.pictures} pictures are not taken.", param=where)
                pictures.append(picture_of(part.image_url.url, limits, where))
                lines.append(IMAGE_TOKEN)
        text = "\n".join(lines)
        if not text.strip():
            raise bad_request("a message is empty; give it a text or leave it out.", param=param)
        turns.append(Turn(speaker="human" if asked else "gpt", text=text))
    if request.messages[-1].role != "user":
        raise bad_request("the last message must be of role user; it is what is answered.", param="messages")
    return Row(
        sample_id="request",
        task="request",
        split="test",
        turns=(*turns, Turn(speaker="gpt", text="")),
        answers=(),
        metric="exact",
        source="asked",
        image=pictures[0] if pictures else None,
        more_images=tuple(RowPicture(picture, None, None) for picture in pictures[1:]),
    )


def _check_role(message: Message, number: int, param: str) -> None:
    if message.role in ("system", "developer"):
        raise bad_request(
            f"messages of role {message.role} are not taken: a run learns questions and answers only, and would pass "
            "over it; put what matters into the question.",
            param=param,
            code="unsupported_value",
        )
    if message.role != ("user", "assistant")[number % 2]:
        raise bad_request(
            f"the roles of messages must alternate user, assistant, user; message {number + 1} is of role "
            f"{message.role}.",
            param=param,
        )


def _check_text(text: str, left: int, limits: Limits, param: str) -> None:
    if left < 0:
        raise bad_request(
            f"the texts have more than {limits.characters} characters; shorten them.", param=param, code="too_long"
        )
    if IMAGE_TOKEN in text:
        raise bad_request(
            f"a text holds {IMAGE_TOKEN}, which stands for pictures; send a picture as a part of its own.", param=param
        )


def canonical(request: ChatRequest) -> bytes:
    """What makes a request the same as another one, whatever its JSON looks like and whoever sends it."""
    asked = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"}
    return request.model_dump_json(include=asked, exclude_none=True).encode()
