"""Anthropic's SDK: messages, tools, counting, models, errors."""

import asyncio

import anthropic

from case import LONG_PROMPT, PARAMETERS, TOO_LARGE, Case, declared, user
from compare import headers, request

TOOLS = [{"name": "get_weather", "description": "Weather", "input_schema": PARAMETERS}]
FORCED = {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "get_weather"}}


def given(side, **more):
    return {"model": side.model, "messages": user("Say hello"), "max_tokens": 16, **more}


def message(**more):
    """A message, as a list of events if streamed."""

    def use(side):
        answer = side.anthropic.messages.create(**given(side, **more))
        return list(answer) if more.get("stream") else answer

    return use


def helper(**more):
    """The events that the SDK accumulates, and the message at the end."""

    def use(side):
        with side.anthropic.messages.stream(**given(side, **more)) as stream:
            kinds = [event.type for event in stream]
            return [kinds, stream.get_final_message()]

    return use


def texts(side):
    with side.anthropic.messages.stream(**given(side)) as stream:
        return list(stream.text_stream)


def count(**more):
    def use(side):
        return side.anthropic.messages.count_tokens(**{"model": side.model, "messages": user("Say hello"), **more})

    return use


def raw(side):
    found = side.anthropic.messages.with_raw_response.create(**given(side))
    return {"status": found.status_code, "headers": headers(found.headers), "text": found.text(), "parsed": found.parse()}


def raw_stream(side):
    with side.anthropic.messages.with_streaming_response.create(stream=True, **given(side)) as found:
        text = b"".join(found.iter_bytes()).decode()
        return {"status": found.status_code, "headers": headers(found.headers), "text": text}


def beta(side):
    return side.anthropic.beta.messages.create(betas=["output-128k-2025-02-19"], **given(side))


def sent(side):
    """What the instance is sent, path and headers of the beta API included."""
    beta(side)
    return request(side.seen()["last"])


def leaving(side):
    """Closes a stream after three events."""

    def use():
        stream = side.anthropic.messages.create(stream=True, **given(side, messages=user("pace:0.1")))
        seen = [event for event, _ in zip(stream, range(3))]
        stream.close()
        return seen

    return side.leaves(use)


def concurrent(side):
    async def one(client, number):
        async with client.messages.stream(**given(side, messages=user("pace:0.01 %d" % number))) as stream:
            return await stream.get_final_message()

    async def use(_, client):
        streams = [one(client, number) for number in range(4)]
        return await asyncio.gather(client.messages.create(**given(side)), *streams)

    return side.run_async(use)


def models(side):
    return {"declared": declared(next(iter(side.anthropic.models.list())))}


def missing_messages(side):
    return side.anthropic.post("/v1/messages", body={"model": side.model, "max_tokens": 4}, cast_to=object)


def refused_too_large(side):
    """The SDK puts the model after the messages, so a gateway that does not buffer so much cannot know it."""
    try:
        side.anthropic.messages.create(**given(side, messages=user(TOO_LARGE)))
    except anthropic.APIStatusError as problem:
        return [type(problem).__name__, problem.status_code, problem.body["type"], problem.body["error"]["type"]]
    return "not refused"


CASES = [
    Case("message", message()),
    Case("message-system", message(system="Be terse.", stop_sequences=["END"], extra_body={"temperature": 0.5})),
    Case("message-sent", sent),
    Case("message-beta", beta),
    Case("message-stream", message(stream=True)),
    Case("message-stream-helper", helper()),
    Case("message-stream-text", texts),
    Case("message-tools", message(**FORCED)),
    Case("message-tools-any", message(tools=TOOLS, tool_choice={"type": "any"})),
    Case("message-tools-stream", message(stream=True, **FORCED)),
    Case("message-tools-stream-helper", helper(**FORCED)),
    Case("message-raw", raw),
    Case("message-raw-stream", raw_stream),
    Case("message-concurrent", concurrent),
    Case("message-client-leaves", leaving),
    Case("message-count", count()),
    Case("message-count-tools", count(system="Be terse.", tools=TOOLS)),
    Case("message-models", models),
    Case("message-unknown-model", message(model="nope"), "NotFoundError", own=True),
    Case("message-unknown-model-stream", message(model="nope", stream=True), "NotFoundError", own=True),
    Case("message-count-unknown-model", count(model="nope"), "NotFoundError", own=True),
    Case("message-missing-messages", missing_messages, "BadRequestError", own=True),
    Case("message-too-long", message(messages=user(LONG_PROMPT)), "BadRequestError"),
    Case("message-too-long-stream", message(messages=user(LONG_PROMPT), stream=True), "BadRequestError"),
    Case("message-overload", message(messages=user("replay:overload-messages")), "ServiceUnavailableError"),
    Case("message-overload-stream", message(messages=user("replay:overload-messages-stream"), stream=True), "ServiceUnavailableError"),
    Case("message-after-overload", message()),
    Case("message-too-large", refused_too_large, expected=["ContentTooLargeError", 413, "error", "request_too_large"]),
]
