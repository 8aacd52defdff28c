"""Uses the official SDKs of OpenAI and Anthropic through the gateway and at the instance behind it, and compares.

    suite.py GATEWAY_URL INSTANCE_URL MODEL_AT_GATEWAY MODEL_AT_INSTANCE [--embedding AT_GATEWAY AT_INSTANCE] [--only NAME]...

The instance is `replay.py`. A client must not be able to tell whether there is a gateway: the same objects, events, raw bytes
and headers, the same exceptions; and the instance is sent the same. Only ids, times, names of models and the gateway's own
headers may differ, and the words of errors that the gateway gives itself. One line per case, a diff where one differs, and
exit code 1 if any does.
"""

import argparse
import asyncio
import json
import os
import sys
import time
import urllib.request

# The servers are on this machine, whatever proxies the environment has.
os.environ.update(NO_PROXY="*", no_proxy="*")

import anthropic
import openai

import anthropic_cases
import compare
import openai_cases

TIMEOUT_SECONDS = 20


class Side:
    """One of the two ways to the instance, with clients that go there."""

    def __init__(self, url, model, embedding_model, instance_url):
        self.url, self.model, self.embedding_model, self.instance_url = url.rstrip("/"), model, embedding_model, instance_url.rstrip("/")
        self.options = {"api_key": "x", "max_retries": 0, "timeout": TIMEOUT_SECONDS}
        self.openai = openai.OpenAI(base_url=self.url + "/v1", **self.options)
        self.anthropic = anthropic.Anthropic(base_url=self.url, **self.options)

    def run_async(self, use):
        """Runs `use(openai_client, anthropic_client)` with asynchronous clients of its own."""

        async def run():
            async with openai.AsyncOpenAI(base_url=self.url + "/v1", **self.options) as first:
                async with anthropic.AsyncAnthropic(base_url=self.url, **self.options) as second:
                    return await use(first, second)

        return asyncio.run(run())

    def seen(self):
        """What the instance has seen so far."""
        with urllib.request.urlopen(self.instance_url + "/replay/seen", timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)

    def leaves(self, use):
        """What `use` returns or raises, and whether the instance learns that the client has left."""
        before = self.seen()["left"]
        try:
            seen = compare.plain(use())
        except Exception as problem:
            seen = compare.raised(problem)
        ends = time.monotonic() + 3
        while self.seen()["left"] == before and time.monotonic() < ends:
            time.sleep(0.02)
        return {"seen": seen, "instance_was_left": self.seen()["left"] - before}


def observe(case, side):
    try:
        return compare.plain(case.use(side))
    except Exception as problem:
        return compare.raised(problem)


def findings(case, gateway, instance, names):
    """The lines of what is wrong."""
    if case.expected is not None:
        return compare.difference(case.expected, compare.Masks(names).value(observe(case, gateway)))
    found, expected = (compare.Masks(names).value(observe(case, side)) for side in (gateway, instance))
    problems = []
    seen = expected.get("raised") if isinstance(expected, dict) else None
    if seen != case.raises:
        message = expected["message"] if seen else ""
        problems.append("the instance itself: expected %s, got %s %s" % (case.raises, seen, message))
    if case.own:
        expected, found = compare.own_error(expected), compare.own_error(found)
    return problems + compare.difference(expected, found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gateway_url", "instance_url", "model_at_gateway", "model_at_instance"):
        parser.add_argument(name)
    parser.add_argument("--embedding", nargs=2, default=["bge-small-en-v1.5", "BAAI/bge-small-en-v1.5"])
    parser.add_argument("--only", action="append", default=[])
    options = parser.parse_args()
    gateway = Side(options.gateway_url, options.model_at_gateway, options.embedding[0], options.instance_url)
    instance = Side(options.instance_url, options.model_at_instance, options.embedding[1], options.instance_url)
    names = [options.model_at_gateway, options.model_at_instance, *options.embedding]
    started, differing, cases = time.monotonic(), 0, openai_cases.CASES + anthropic_cases.CASES
    cases = [case for case in cases if not options.only or case.name in options.only]
    for case in cases:
        lines = findings(case, gateway, instance, names)
        differing += bool(lines)
        print("DIFF" if lines else "ok", case.name, flush=True)
        for line in lines:
            print("    " + line, flush=True)
    print("%d cases, %d differ, %.1f s" % (len(cases), differing, time.monotonic() - started))
    return 1 if differing or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
