"""OpenAI's SDK: chat, completions, Responses, embeddings, models, errors."""

import asyncio
import time

import openai
import pydantic

from case import LONG_PROMPT, PARAMETERS, TOO_LARGE, Case, declared, user
from compare import headers, request

WEATHER = {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": WEATHER}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
PARTS = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]


class City(pydantic.BaseModel):
    city: str
    degrees: int
    tags: list[str]


SCHEMA = {"type": "json_schema", "json_schema": {"name": "City", "schema": City.model_json_schema()}}


def chat(**more):
    """A chat completion, as a list of chunks if streamed."""

    def use(side):
        given = {"model": side.model, "messages": user(), "max_tokens": 16, **more}
        answer = side.openai.chat.completions.create(**given)
        return list(answer) if more.get("stream") else answer

    return use


def completion(**more):
    def use(side):
        answer = side.openai.completions.create(**{"model": side.model, "prompt": "def main(", "max_tokens": 16, **more})
        return list(answer) if more.get("stream") else answer

    return use


def response(**more):
    def use(side):
        answer = side.openai.responses.create(**{"model": side.model, "input": "Say hello", "max_output_tokens": 16, **more})
        return list(answer) if more.get("stream") else answer

    return use


def embedding(given, **more):
    return lambda side: side.openai.embeddings.create(model=side.embedding_model, input=given, **more)


def post(path, **body):
    """A body that the SDK's own methods would not let pass."""
    return lambda side: side.openai.post(path, body={"model": side.model, **body}, cast_to=object)


def no_embedding_input(side):
    return post("/embeddings", model=side.embedding_model)(side)


def chat_parsed(side):
    answer = side.openai.chat.completions.parse(model=side.model, messages=user(), response_format=City)
    return [answer, type(answer.choices[0].message.parsed).__name__]


def chat_stream_helper(side):
    """The events that the SDK accumulates, and the snapshot at the end."""
    given = {"model": side.model, "messages": user(), "stream_options": {"include_usage": True}}
    with side.openai.chat.completions.stream(response_format=City, **given) as stream:
        kinds = [event.type for event in stream]
        return [kinds, stream.get_final_completion()]


def chat_conversation(side):
    """The result of a tool goes back to the model."""
    first = side.openai.chat.completions.create(model=side.model, messages=user(), tools=TOOLS, tool_choice="required")
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21"}
    messages = user() + [message.model_dump(exclude_none=True), result]
    return [first, side.openai.chat.completions.create(model=side.model, messages=messages, tools=TOOLS)]


def raw(resource, **more):
    """Headers and bytes of an answer that is not streamed."""

    def use(side):
        found = resource(side).with_raw_response.create(**{"model": side.model, **more})
        return {"status": found.status_code, "headers": headers(found.headers), "text": found.text, "parsed": found.parse()}

    return use


def raw_stream(resource, **more):
    """Headers and bytes of a stream."""

    def use(side):
        with resource(side).with_streaming_response.create(**{"model": side.model, "stream": True, **more}) as found:
            text = b"".join(found.iter_bytes()).decode()
            return {"status": found.status_code, "headers": headers(found.headers), "text": text}

    return use


def sent(use):
    """What the instance is sent."""

    def look(side):
        use(side)
        return request(side.seen()["last"])

    return look


def spread(side):
    """Whether events come one by one: 0.03 s lie between two."""
    times = []
    for _ in side.openai.chat.completions.create(model=side.model, messages=user("pace:0.03"), stream=True):
        times.append(time.monotonic())
    return {"events": len(times), "one_by_one": sum(b - a > 0.01 for a, b in zip(times, times[1:])) >= len(times) // 2}


def chats(side):
    return side.openai.chat.completions


def leaving(side):
    """Closes a stream after three events."""

    def use():
        stream = side.openai.chat.completions.create(model=side.model, messages=user("pace:0.1"), stream=True)
        seen = [chunk for chunk, _ in zip(stream, range(3))]
        stream.close()
        return seen

    return side.leaves(use)


def impatient(text, **more):
    """A client that waits 0.8 s for an answer, or for the next event."""

    def use(side):
        client = side.openai.with_options(timeout=0.8)

        def ask():
            answer = client.chat.completions.create(model=side.model, messages=user(text), **more)
            return list(answer) if more.get("stream") else answer

        return side.leaves(ask)

    return use


def concurrent(side):
    async def use(client, _):
        asks = [client.chat.completions.create(model=side.model, messages=user("wait:0.1 %d" % n), max_tokens=16) for n in range(8)]
        return await asyncio.gather(*asks)

    return side.run_async(use)


def concurrent_streams(side):
    async def one(client, number):
        text = "pace:0.01 %d" % number
        stream = await client.chat.completions.create(model=side.model, messages=user(text), stream=True, max_tokens=16)
        return [chunk async for chunk in stream]

    async def use(client, _):
        return await asyncio.gather(*(one(client, number) for number in range(4)))

    return side.run_async(use)


def async_response(side):
    async def use(client, _):
        stream = await client.responses.create(model=side.model, input="Say hello", stream=True)
        return [event async for event in stream]

    return side.run_async(use)


def async_overload(side):
    return side.run_async(lambda client, _: client.chat.completions.create(model=side.model, messages=user("replay:overload-chat")))


def response_parsed(side):
    answer = side.openai.responses.parse(model=side.model, input="Say hello", text_format=City)
    return [answer, answer.output_text, answer.output_parsed]


def response_stream_helper(side):
    with side.openai.responses.stream(model=side.model, input="Say hello", max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
        return [kinds, stream.get_final_response()]


def response_chain(side):
    """A response that the instance holds is continued, streamed, and fetched."""
    client = side.openai.responses
    first = client.create(model=side.model, input="Say hello", max_output_tokens=16)
    second = client.create(model=side.model, input="Again", max_output_tokens=16, previous_response_id=first.id)
    last = list(client.create(model=side.model, input="Again", previous_response_id=second.id, stream=True))
    fetched = [client.retrieve(found.id) for found in (first, second, last[-1].response)]
    return [first, second, last, fetched, [found.id for found in fetched]]


def models(side):
    return {"declared": declared(next(iter(side.openai.models.list())))}


def model(side):
    found = side.openai.models.retrieve(side.model)
    return {"declared": declared(found), "same": found.id == side.model}


def no_model(side):
    try:
        return side.openai.models.retrieve("nope")
    except openai.NotFoundError as problem:
        return [type(problem).__name__, problem.status_code, sorted(problem.body)]


def refused_too_large(side):
    """The model comes after the prompt, so a gateway that does not buffer so much cannot know it."""
    try:
        side.openai.post("/responses", body={"input": TOO_LARGE, "model": side.model}, cast_to=object)
    except openai.APIStatusError as problem:
        return [type(problem).__name__, problem.status_code, sorted(problem.body), headers(problem.response.headers)["content-type"]]
    return "not refused"


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
ERROR_KEYS = ["code", "message", "param", "type"]
A_MODEL = {"class": "Model", "created": "int", "id": "str", "object": "str", "owned_by": "str"}

CASES = [
    Case("chat", chat()),
    Case("chat-two-choices", chat(n=2)),
    Case("chat-usage-details", chat(messages=user("replay:tools/chat"))),
    Case("chat-no-limit", chat(max_tokens=None)),
    Case("chat-completion-tokens", chat(max_completion_tokens=16)),
    Case("chat-unknown-field", chat(extra_body={"frobnicate": 1})),
    Case("chat-unicode", chat(messages=user("Grüße 👋🏽 \u2028 \\ud83d 日本語 \" \\"))),
    Case("chat-parts", chat(messages=user(PARTS))),
    Case("chat-developer", chat(messages=[{"role": "developer", "content": "Be terse."}, *user()])),
    Case("chat-nearly-too-long", chat(messages=user("import os " * 1150))),
    Case("chat-stream", chat(stream=True)),
    Case("chat-stream-usage", chat(**STREAMED)),
    Case("chat-stream-two-choices", chat(n=2, **STREAMED)),
    Case("chat-stream-continuous", chat(**CONTINUOUS)),
    Case("chat-stream-helper", chat_stream_helper),
    Case("chat-tools-auto", chat(tools=TOOLS, tool_choice="auto")),
    Case("chat-tools-named", chat(tools=TOOLS, tool_choice=NAMED)),
    Case("chat-tools-required", chat(tools=TOOLS, tool_choice="required")),
    Case("chat-tools-named-stream", chat(tools=TOOLS, tool_choice=NAMED, **STREAMED)),
    Case("chat-tools-required-stream", chat(tools=TOOLS, tool_choice="required", **STREAMED)),
    Case("chat-tools-conversation", chat_conversation),
    Case("chat-json-schema", chat(response_format=SCHEMA)),
    Case("chat-parsed", chat_parsed),
    Case("chat-sent", sent(chat(n=2, user="me", seed=7, logit_bias={"53": 1}, extra_headers={"x-tenant": "a"}, **STREAMED))),
    Case("chat-sent-without-limit", sent(chat(max_tokens=None, messages=user("\u2028 日本語 👋🏽 \" \\ \x00")))),
    Case("chat-spread", spread),
    Case("chat-raw", raw(chats, messages=user(), max_tokens=16)),
    Case("chat-raw-load-text", raw(chats, messages=user(), extra_headers={"endpoint-load-metrics-format": "TEXT"})),
    Case("chat-raw-load-json", raw(chats, messages=user(), extra_headers={"endpoint-load-metrics-format": "JSON"})),
    Case("chat-raw-stream", raw_stream(chats, messages=user(), stream_options={"include_usage": True})),
    Case("chat-concurrent", concurrent),
    Case("chat-concurrent-streams", concurrent_streams),
    Case("chat-client-leaves", leaving),
    Case("chat-client-times-out", impatient("wait:3")),
    Case("chat-stream-times-out", impatient("pace:3", stream=True)),
    Case("completion", completion()),
    Case("completion-batch", completion(prompt=["def main(", "import "])),
    Case("completion-tokens", completion(prompt=[53, 800, 602])),
    Case("completion-lists-of-tokens", completion(prompt=[[53, 800], [602]])),
    Case("completion-stream", completion(**STREAMED)),
    Case("completion-raw", raw(lambda side: side.openai.completions, prompt="def main(")),
    Case("response", response()),
    Case("response-items", response(input=user(), instructions="Be terse.", metadata={"a": "b"})),
    Case("response-stream", response(stream=True)),
    Case("response-stream-async", async_response),
    Case("response-stream-helper", response_stream_helper),
    Case("response-chain", response_chain),
    Case("response-parsed", response_parsed),
    Case("response-tools", response(tools=[{"type": "function", **WEATHER}], tool_choice="required")),
    Case("response-sent", sent(response(input=user(), instructions="Be terse.", store=False, extra_query={"a": "b"}))),
    Case("response-raw", raw(lambda side: side.openai.responses, input="Say hello")),
    Case("response-raw-stream", raw_stream(lambda side: side.openai.responses, input="Say hello")),
    Case("response-unknown-previous", response(previous_response_id="resp_0123"), "NotFoundError"),
    Case("response-unknown", lambda side: side.openai.responses.retrieve("resp_0123"), "NotFoundError"),
    Case("embedding", embedding("hello router")),
    Case("embedding-strings", embedding(["hello", "router", "日本"])),
    Case("embedding-tokens", embedding([53, 800, 602])),
    Case("embedding-lists-of-tokens", embedding([[53, 800], [602]])),
    Case("embedding-floats", embedding("hello", encoding_format="float")),
    Case("embedding-base64", embedding(["hello", "router"], encoding_format="base64")),
    Case("embedding-sent", sent(embedding(["hello", "日本"]))),
    Case("embedding-dimensions", embedding("hello", dimensions=8)),
    Case("models", models),
    Case("model", model, expected={"declared": A_MODEL, "same": True}),
    Case("model-unknown", no_model, expected=["NotFoundError", 404, ERROR_KEYS]),
    Case("unknown-model-chat", chat(model="nope"), "NotFoundError", own=True),
    Case("unknown-model-chat-stream", chat(model="nope", stream=True), "NotFoundError", own=True),
    Case("unknown-model-completion", completion(model="nope"), "NotFoundError", own=True),
    Case("unknown-model-response", response(model="nope"), "NotFoundError", own=True),
    Case("unknown-path", lambda side: side.openai.get("/nope", cast_to=object), "NotFoundError"),
    Case("missing-messages", post("/chat/completions"), "BadRequestError", own=True),
    Case("missing-prompt", post("/completions", max_tokens=1), "BadRequestError", own=True),
    Case("missing-input", post("/responses"), "BadRequestError", own=True),
    Case("missing-embedding-input", no_embedding_input, "BadRequestError", own=True),
    Case("bad-type", post("/chat/completions", messages=user(), max_tokens="many"), "BadRequestError"),
    Case("bad-temperature", chat(temperature=-3), "BadRequestError"),
    Case("too-many-tokens", chat(max_tokens=5000), "BadRequestError"),
    Case("too-long-chat", chat(messages=user(LONG_PROMPT)), "BadRequestError"),
    Case("too-long-chat-stream", chat(messages=user(LONG_PROMPT), stream=True), "BadRequestError"),
    Case("too-long-completion", completion(prompt=LONG_PROMPT), "BadRequestError"),
    Case("too-long-response", response(input=LONG_PROMPT), "BadRequestError"),
    Case("no-tool-parser", chat(messages=user("replay:plain/chat-tools-auto"), tools=TOOLS), "BadRequestError"),
    Case("overload-chat", chat(messages=user("replay:overload-chat")), "InternalServerError"),
    Case("overload-chat-async", async_overload, "InternalServerError"),
    Case("overload-chat-stream", chat(messages=user("replay:overload-chat-stream"), stream=True), "InternalServerError"),
    Case("overload-completion-stream", completion(prompt="replay:overload-completions-stream", stream=True), "InternalServerError"),
    Case("overload-response", response(input="replay:overload-responses"), "InternalServerError"),
    Case("overload-response-stream", response(input="replay:overload-responses-stream", stream=True), "InternalServerError"),
    Case("chat-after-overload", chat()),
    Case("large-chat", chat(messages=user(TOO_LARGE)), "BadRequestError"),
    Case("too-large", refused_too_large, expected=["APIStatusError", 413, ERROR_KEYS, "application/json"]),
]
