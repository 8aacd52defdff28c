"""An HTTP server that answers as a real vLLM did: it replays recordings.

    replay.py PORT[,PORT]... FIXTURES_DIR... [--served NAME]...

Which recording answers a request is decided by its path and by features of its body, so the server can stand behind a gateway
that patches bodies; the first folder that has a recording gives it. What was never recorded is in `handwritten.py`. Words in
the text of a prompt ask for more:

    replay:overload-chat    this recording (`replay:tools/chat` for that folder's)
    wait:1.5                seconds before the head is sent
    pace:0.05               seconds between the events of a stream

Ids are fresh in every answer, and responses are kept, so that clients can come back to them. With --served, a request for
another model is answered as vLLM does. `GET /replay/seen` says how many clients left early, and what the last request was.
"""

import argparse
import asyncio
import json
import re
import secrets
import sys
from email.utils import formatdate
from pathlib import Path

import handwritten

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT, EMBEDDINGS = "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"
REQUIRED = {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input", MESSAGES: "messages", COUNT: "messages", EMBEDDINGS: "input"}
PLAIN = {"/v1/models": "models", "/health": "health", "/ping": "ping", "/load": "load", "/version": "version"}
SUFFIX = {CHAT: "", COMPLETIONS: "-completions", RESPONSES: "-responses", MESSAGES: "-messages", COUNT: "-messages"}
IDS = re.compile(rb"\b(chatcmpl-tool-|chatcmpl-|cmpl-|resp_|msg_|embd-|fc_|call_|modelperm-)([0-9a-f]{16})\b")
PAGE = "".join(
    '# TYPE vllm:%s gauge\nvllm:%s{engine="0",model_name="served"} 0.0\n' % (name, name)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
)
# The recorded server takes 2048 tokens; its own over-long prompt has 15,000 characters.
CONTEXT_CHARACTERS = 12_000
MAX_TOKENS = 2048


class Answer:
    """Status line, headers and either a body or the chunks of a stream."""

    def __init__(self, status, headers, body=b"", chunks=None):
        self.status, self.headers, self.body, self.chunks = status, headers, body, chunks

    def parts(self):
        return [self.body] if self.chunks is None else self.chunks

    def replace(self, change):
        """Applies `change` to the body, or to each chunk."""
        if self.chunks is None:
            self.body = change(self.body)
        else:
            self.chunks = [change(chunk) for chunk in self.chunks]


class Recordings:
    """The folders of recordings."""

    def __init__(self, folders):
        self.folders = [Path(folder) for folder in folders]

    def find(self, name):
        folder, _, rest = name.rpartition("/")
        for path in self.folders:
            if folder in ("", path.name) and (path / (rest + ".head")).exists():
                return path / rest
        raise KeyError(name)

    def answer(self, name):
        path = self.find(name)
        status, *lines = path.with_suffix(".head").read_text().strip().splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        body = path.with_suffix(".body").read_bytes()
        if "transfer-encoding" not in headers:
            return Answer(status, headers, body)
        raw = path.with_suffix(".raw")
        # Where the framing is not recorded it is one event per chunk, as in all that are.
        chunks = unframe(raw.read_bytes()) if raw.exists() else re.findall(rb".+?\n\n", body, re.DOTALL)
        return Answer(status, headers, chunks=chunks)

    def body(self, name):
        return json.loads(self.answer(name).body)

    def events(self, name):
        lines = b"".join(self.answer(name).chunks).splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


def unframe(raw):
    """The chunks of a chunked body."""
    chunks = []
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        chunks.append(rest[:length])
        raw = rest[length + 2 :]
    return chunks


def of_json(value, status="HTTP/1.1 200 OK"):
    body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return Answer(status, {"server": "uvicorn", "content-type": "application/json", "vary": "Origin"}, body)


def longest_text(value):
    """Characters of the longest text in a body."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(map(longest_text, inner), default=0)


class Chooser:
    """Finds the answer to a request."""

    def __init__(self, recordings, served):
        self.recordings, self.served = recordings, served
        self.stored = {}

    def choose(self, method, path, raw):
        path = path.split("?")[0]
        if path == "/metrics":
            return self.metrics()
        if path.startswith(RESPONSES + "/") and method == "GET":
            return self.retrieve(path.rpartition("/")[2])
        if path in PLAIN and method == "GET":
            return self.models() if path == "/v1/models" else self.recordings.answer(PLAIN[path])
        if path not in REQUIRED:
            return self.recordings.answer("err-not-found")
        if method != "POST":
            return self.recordings.answer("err-method")
        try:
            body = json.loads(raw)
        except ValueError:
            return self.recordings.answer("err-invalid-json")
        return self.generate(path, body, raw)

    def metrics(self):
        answer = self.recordings.answer("metrics-idle")
        answer.body = PAGE.encode()
        return answer

    def models(self):
        answer = self.recordings.answer("models")
        if self.served:
            cards = json.loads(answer.body)
            cards["data"] = [{**cards["data"][0], "id": name} for name in self.served]
            answer = of_json(cards)
        return answer

    def generate(self, path, body, raw):
        marker = re.search(rb"replay:([\w/-]+)", raw)
        if marker:
            return self.recordings.answer(marker[1].decode())
        problem = self.problem(path, body)
        if problem is not None:
            return problem
        if path == EMBEDDINGS:
            return of_json(handwritten.embeddings(body))
        if path == RESPONSES:
            return self.response(body)
        if path == COUNT:
            return self.recordings.answer("messages-count")
        if path == COMPLETIONS:
            batch = isinstance(body["prompt"], list) and not isinstance(body["prompt"][0], int)
            return self.recordings.answer("completions-stream" if body.get("stream") else "completions-batch2" if batch else "completions")
        return self.message(body) if path == MESSAGES else self.chat(body)

    def problem(self, path, body):
        """The answer to a request that vLLM refuses, or None."""
        field, suffix, streamed = REQUIRED[path], SUFFIX.get(path, ""), "-stream" if body.get("stream") and path == CHAT else ""
        if field not in body:
            if path == CHAT and len(body) == 1:
                return self.recordings.answer("err-missing-messages")
            return of_json(handwritten.missing(path, body, field), "HTTP/1.1 400 Bad Request")
        limit = next((body[name] for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in body), None)
        if isinstance(limit, str):
            return self.recordings.answer("err-bad-type")
        if self.unknown(body.get("model")):
            return self.recordings.answer("err-unknown-model" + suffix.replace("-completions", "") + streamed)
        if path in SUFFIX and longest_text(body) > CONTEXT_CHARACTERS:
            return self.recordings.answer("err-context" + suffix + streamed)
        if isinstance(limit, int) and limit > MAX_TOKENS:
            return self.recordings.answer("err-max-tokens")
        if (body.get("temperature") or 0) < 0:
            return self.recordings.answer("err-bad-temperature")
        return None

    def unknown(self, model):
        if model is None:
            return False
        return model not in self.served if self.served else model == "nope"

    def chat(self, body):
        several, options = (body.get("n") or 1) > 1, body.get("stream_options") or {}
        if handwritten.called_function(body) or handwritten.wants_structure(body):
            if not body.get("stream"):
                return of_json(handwritten.chat(self.recordings.body("chat"), body))
            answer = self.recordings.answer("chat-stream-usage")
            answer.chunks = handwritten.chat_events(self.recordings.events("chat-stream-usage"), body)
            return answer
        if not body.get("stream"):
            name = "chat-n2" if several else "tools/chat-tools-auto" if body.get("tools") else "chat"
        elif several:
            name = "chat-stream-n2"
        elif options.get("continuous_usage_stats"):
            name = "chat-stream-continuous-usage"
        else:
            name = "chat-stream-usage" if options.get("include_usage") else "chat-stream"
        return self.recordings.answer(name)

    def message(self, body):
        if not handwritten.called_function(body):
            return self.recordings.answer("messages-stream" if body.get("stream") else "messages")
        if not body.get("stream"):
            return of_json(handwritten.messages(self.recordings.body("messages"), body))
        answer = self.recordings.answer("messages-stream")
        answer.chunks = handwritten.messages_events(self.recordings.events("messages-stream"), body)
        return answer

    def response(self, body):
        previous = body.get("previous_response_id")
        if previous and previous not in self.stored:
            return self.unknown_response(previous)
        if handwritten.called_function(body) or handwritten.wants_structure(body):
            return of_json(handwritten.responses(self.recordings.body("responses"), body))
        answer = self.recordings.answer("responses-stream" if body.get("stream") else "responses")
        if previous:
            said = b'"previous_response_id":"%s"' % previous.encode()
            answer.replace(lambda part: part.replace(b'"previous_response_id":null', said))
        return answer

    def unknown_response(self, name):
        answer = self.recordings.answer("responses-previous")
        answer.replace(lambda part: part.replace(b"resp_0123", name.encode()))
        return answer

    def retrieve(self, name):
        return of_json(self.stored[name]) if name in self.stored else self.unknown_response(name)

    def keep(self, answer):
        """Remembers the response in an answer, or in the last event of a stream."""
        data = answer.parts()[-1].rpartition(b"data: ")[2]
        event = json.loads(data)
        response = event.get("response", event)
        if response.get("object") == "response":
            self.stored[response["id"]] = response


def freshen(answer):
    """New ids of the same length, the same one wherever the recording has the same."""
    known = {}

    def fresh(found):
        return found[1] + known.setdefault(found[2], secrets.token_hex(8).encode())

    answer.replace(lambda part: IDS.sub(fresh, part))


def adapt_headers(answer, request_headers):
    headers = answer.headers
    headers["date"] = formatdate(usegmt=True)
    if answer.chunks is None:
        headers["content-length"] = str(len(answer.body))
    if "x-request-id" in headers:
        headers["x-request-id"] = request_headers.get("x-request-id", secrets.token_hex(16))
    # vLLM reports its load to whoever asks, except in streams.
    headers.pop("endpoint-load-metrics", None)
    asked = request_headers.get("endpoint-load-metrics-format", "").upper()
    if answer.chunks is None and answer.status.startswith("HTTP/1.1 200"):
        if asked == "TEXT":
            headers["endpoint-load-metrics"] = "TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0"
        elif asked == "JSON":
            headers["endpoint-load-metrics"] = 'JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}'


async def read_request(reader):
    """Method, path, headers and body; None at the end of a connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    return method, path, headers, body


class Server:
    def __init__(self, chooser):
        self.chooser = chooser
        self.seen = {"left": 0, "last": None}

    async def serve(self, reader, writer):
        try:
            while True:
                await self.exchange(writer, reader, *await read_request(reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def exchange(self, writer, reader, method, path, headers, body):
        if path == "/replay/seen":
            answer = of_json(self.seen)
        else:
            if path != "/metrics":
                text = body.decode("utf-8", "replace")
                self.seen["last"] = {"method": method, "path": path, "headers": headers, "body": text}
            answer = self.chooser.choose(method, path, body)
            freshen(answer)
            if path == RESPONSES and answer.status.startswith("HTTP/1.1 200"):
                self.chooser.keep(answer)
        adapt_headers(answer, headers)
        await self.pause(reader, seconds(rb"wait", body))
        lines = [answer.status] + ["%s: %s" % header for header in answer.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if answer.chunks is None:
            writer.write(answer.body)
            await writer.drain()
            return
        pace = seconds(rb"pace", body)
        for chunk in answer.chunks:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            await self.pause(reader, pace)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def pause(self, reader, duration):
        """Waits, but not for a client that has left."""
        ends = asyncio.get_running_loop().time() + duration
        while True:
            if reader.at_eof():
                self.seen["left"] += 1
                raise ConnectionError
            left = ends - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, min(left, 0.02)))
            if left <= 0:
                return


def seconds(word, body):
    found = re.search(word + rb":([0-9.]*[0-9])", body)
    return float(found[1]) if found else 0.0


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ports", type=lambda ports: [int(port) for port in ports.split(",")])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--served", action="append", default=[])
    options = parser.parse_args()
    server = Server(Chooser(Recordings(options.folders), options.served))
    # Several ports, for gateways that want the addresses of two pools to differ.
    listeners = [await asyncio.start_server(server.serve, "127.0.0.1", port) for port in options.ports]
    print("listening on", *(listener.sockets[0].getsockname()[1] for listener in listeners), flush=True)
    await asyncio.gather(*(listener.serve_forever() for listener in listeners))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(0)
