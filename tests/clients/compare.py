"""What a case saw, as plain JSON without what may differ: ids, times, names of models, and headers that belong to a gateway."""

import difflib
import json
import re

import anthropic
import openai

IDS = re.compile(r"\b(chatcmpl-tool-|chatcmpl-|cmpl-|resp_|msg_|embd-|fc_|call_|modelperm-)[0-9a-f]{16,32}\b")
TIMES = re.compile(r'("created(?:_at)?": ?)[0-9.]+')
MODELS = re.compile(r'("model": ?)"[^"]*"')
OWN_HEADERS = re.compile(r"server|date|x-request-id|x-envoy-.*|x-routebalance-.*")
# Of a request: what every proxy adds or takes, what depends on the length of the model's name, and what the gateway asks the
# instance or tells Envoy.
HOP_HEADERS = re.compile(
    r"host|connection|content-length|transfer-encoding|x-forwarded-.*|x-request-id|x-envoy-.*|x-routebalance-.*"
    r"|endpoint-load-metrics-format|x-gateway-destination-endpoint"
)
SHOWN_LINES = 40


def plain(value):
    """An SDK's object as JSON, with its class."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "model_dump"):
        # Generic classes have their parameter in the name, and the parsed object has a class of its own.
        return {"class": type(value).__name__, **plain(value.model_dump(mode="json", warnings=False))}
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


def headers(found):
    """Headers without those that a gateway may add or change."""
    return {name.lower(): text for name, text in sorted(found.items()) if not OWN_HEADERS.fullmatch(name.lower())}


def request(seen):
    """A request as the instance saw it."""
    kept = {name: text for name, text in seen["headers"].items() if not HOP_HEADERS.fullmatch(name)}
    return {**seen, "headers": kept}


def raised(problem):
    """An exception of an SDK, or of what is below it."""
    value = {"raised": type(problem).__name__}
    if isinstance(problem, (openai.APIStatusError, anthropic.APIStatusError)):
        value.update(status=problem.status_code, body=problem.body, headers=headers(problem.response.headers))
        value.update({name: getattr(problem, name) for name in ("code", "param", "type") if hasattr(problem, name)})
    value["message"] = str(problem)
    return value


class Masks:
    """Ids by the order in which they are seen, so that those that were equal stay so."""

    def __init__(self, names):
        self.ids = {}
        self.names = sorted(names, key=len, reverse=True)

    def text(self, text):
        text = IDS.sub(lambda found: self.ids.setdefault(found[0], "<%s%d>" % (found[1], len(self.ids))), text)
        text = MODELS.sub(r'\1"<model>"', TIMES.sub(r"\1<time>", text))
        for name in self.names:
            text = text.replace(name, "<model>")
        return text

    def value(self, value, key=None):
        if isinstance(value, dict):
            return {name: self.value(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if key == "model" and isinstance(value, str):
            return "<model>"
        if key in ("created", "created_at") and isinstance(value, (int, float)):
            return "<time>"
        return self.text(value) if isinstance(value, str) else value


def keys(value):
    """A body without its values."""
    return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else None


def own_error(value):
    """What an error that the gateway words itself has in common with the instance's."""
    content_type = value.get("headers", {}).get("content-type")
    return {name: value.get(name) for name in ("raised", "status")} | {"body": keys(value.get("body")), "type": content_type}


def difference(expected, found):
    """Lines of a unified diff, none if there is no difference."""
    sides = [json.dumps(side, indent=1, sort_keys=True, ensure_ascii=False).splitlines() for side in (expected, found)]
    lines = list(difflib.unified_diff(*sides, "instance", "gateway", n=2, lineterm=""))
    more = len(lines) - SHOWN_LINES
    return lines[:SHOWN_LINES] + (["... %d more lines" % more] if more > 0 else [])
