"""Answers for which there is no recording, in the shape of vLLM 0.32: forced tool calls, structured output, embeddings.

Where possible a recorded answer is taken and only what must differ is replaced.
"""

import base64
import copy
import json
import math
import struct

ARGUMENTS = '{"city": "Oslo", "unit": "c"}'
STRUCTURED = '{"city": "Oslo", "degrees": 21, "tags": ["sunny", "dry"]}'
CALL_ID = "chatcmpl-tool-0123456789abcdef"
DIMENSIONS = 384


def pieces(text, size=7):
    """The text in the portions in which a model would stream it."""
    return [text[start : start + size] for start in range(0, len(text), size)]


def missing(path, body, field):
    """What a request without a required field is answered."""
    message = (
        "1 validation error:\n  {'type': 'missing', 'loc': 'body.%s', 'msg': 'Field required', "
        "'input': '<dict of %d items>'}" % (field, len(body))
    )
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": "Bad Request", "message": message}}
    return {"error": {"message": message, "type": "Bad Request", "param": "body." + field, "code": 400}}


def called_function(body):
    """Name of the function that a request forces, or None."""
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in ("tool", "function"):
        return choice.get("name") or choice["function"]["name"]
    if kind in ("required", "any"):
        tool = body["tools"][0]
        return tool.get("name") or tool["function"]["name"]
    return None


def wants_structure(body):
    """Whether the answer must be JSON of a schema, in chat and in Responses."""
    text = body.get("text") or {}
    wanted = body.get("response_format") or text.get("format") or {}
    return wanted.get("type") == "json_schema"


def call(name, arguments, **more):
    return {"id": CALL_ID, "type": "function", **more, "function": {"name": name, "arguments": arguments}}


def chat(recorded, body):
    """A chat completion with a tool call or with JSON."""
    answer = copy.deepcopy(recorded)
    choice = answer["choices"][0]
    name = called_function(body)
    if name:
        # vLLM ends a named call with `stop` and a required one with `tool_calls`.
        choice["message"].update(content="", tool_calls=[call(name, ARGUMENTS)])
        choice["finish_reason"] = "stop" if isinstance(body["tool_choice"], dict) else "tool_calls"
    else:
        choice["message"]["content"] = STRUCTURED
        choice["finish_reason"] = "stop"
    return answer


def chat_events(recorded, body):
    """The same as a stream; `recorded` are the chunks of a recorded one with usage."""
    first, middle, last, usage = (copy.deepcopy(recorded[index]) for index in (0, 1, -2, -1))
    name = called_function(body)
    deltas = []
    if name:
        start = call(name, "", index=0)
        deltas.append({"tool_calls": [start]})
        rest = [{"index": 0, "function": {"arguments": piece}} for piece in pieces(ARGUMENTS)]
        deltas += [{"tool_calls": [part]} for part in rest]
    else:
        deltas += [{"content": piece} for piece in pieces(STRUCTURED)]
    events = [first]
    for delta in deltas:
        event = copy.deepcopy(middle)
        event["choices"][0]["delta"] = delta
        events.append(event)
    last["choices"][0].update(delta={"content": ""}, finish_reason="tool_calls" if name else "stop")
    events.append(last)
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(usage)
    return [sse(event) for event in events] + [b"data: [DONE]\n\n"]


def responses(recorded, body):
    """A response with a function call or with JSON."""
    answer = copy.deepcopy(recorded)
    answer.update(status="completed", incomplete_details=None)
    name = called_function(body)
    if name:
        answer.update(tools=body["tools"], tool_choice=body["tool_choice"])
        item = {"arguments": ARGUMENTS, "call_id": "call_0123456789abcdef", "name": name, "type": "function_call"}
        answer["output"] = [{**item, "id": "fc_0123456789abcdef", "status": "completed"}]
    else:
        answer["output"][0]["content"][0]["text"] = STRUCTURED
    return answer


def messages(recorded, body):
    """A message with the use of a tool."""
    answer = copy.deepcopy(recorded)
    use = {"type": "tool_use", "id": CALL_ID, "name": called_function(body), "input": json.loads(ARGUMENTS)}
    answer.update(content=[use], stop_reason="tool_use")
    return answer


def messages_events(recorded, body):
    """The same as a stream; `recorded` are the data of a recorded stream's events."""
    start, block, stop = (copy.deepcopy(event) for event in (recorded[0], recorded[1], recorded[-2]))
    block["content_block"] = {"type": "tool_use", "id": CALL_ID, "name": called_function(body), "input": {}}
    stop["delta"]["stop_reason"] = "tool_use"
    deltas = [
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": piece}, "index": 0}
        for piece in pieces(ARGUMENTS)
    ]
    events = [start, block, *deltas, {"type": "content_block_stop", "index": 0}, stop, recorded[-1]]
    return [sse(event, event["type"]) for event in events]


def embeddings(body):
    """Unit vectors that depend on the input; a list of lists or of strings is several inputs."""
    given = body["input"]
    several = isinstance(given, list) and not isinstance(given[0], int)
    inputs = given if several else [given]
    data = []
    for index, one in enumerate(inputs):
        vector = unit_vector(one, body.get("dimensions") or DIMENSIONS)
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<%df" % len(vector), *vector)).decode()
        data.append({"index": index, "object": "embedding", "embedding": vector})
    tokens = sum(len(one) if isinstance(one, list) else len(one.split()) + 2 for one in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    head = {"id": "embd-0123456789abcdef", "object": "list", "created": 1795319378}
    return {**head, "model": body.get("model"), "data": data, "usage": usage}


def unit_vector(given, dimensions):
    state = sum(value * (place + 1) for place, value in enumerate(given if isinstance(given, list) else given.encode()))
    values = [math.sin(state + step) for step in range(dimensions)]
    length = math.sqrt(sum(value * value for value in values))
    return [round(value / length, 6) for value in values]


def sse(event, name=None):
    data = "data: %s\n\n" % json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    return (("event: %s\n" % name if name else "") + data).encode()
