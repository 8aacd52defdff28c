"""Whether vLLM, SGLang and TensorRT-LLM read the same limits in a body as the gateway does, however a client spells them.

    spellings.py generate N SEED     prints N bodies as JSON lines {"api", "asked"}; a seed always gives the same ones
    spellings.py check FILE.jsonl    reads lines {"api", "sent", "asked", "left", "status"}

`asked` is the body that the client wrote, `sent` the one that the gateway forwards, `left` what the request may still generate, and
`status` 0 or that of the gateway's refusal. For each forwarded body and each server that accepts it:

 - tokens:  limit * answers <= left, or one token per answer where less is left than answers;
 - minimum: `min_tokens` is not above the limit, unless the client itself asked for that;
 - meaning: where vLLM's reading of `asked` is within `left`, and no server's is beyond it, vLLM reads the same limit in `sent`.

A body that a server accepts as asked and refuses as sent is noted and fails nothing.

Needs pydantic, which all three servers read bodies with.
"""

import json
import random
import sys
from collections import Counter
from typing import Annotated, Any, List, NamedTuple, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError

VIOLATIONS_SHOWN, NOTES_SHOWN, TEXT_SHOWN = 20, 3, 400


TokenId = Annotated[int, Field(ge=0)]


class Asks(NamedTuple):
    """What a server would generate: `limit` tokens per answer, None up to the end of the context."""

    limit: Optional[int]
    answers: int
    minimum: int = 0


def count(prompts):
    """One prompt as text or token ids, or several of them."""
    several = isinstance(prompts, list) and not (prompts and isinstance(prompts[0], int))
    return max(len(prompts), 1) if several else int(prompts is not None)


# vLLM, its main branch of 2026: vllm/entrypoints/openai/{chat_completion,completion}/protocol.py at 002032ee and
# responses/protocol.py at 010a69ce, vllm/entrypoints/anthropic/protocol.py at 00589e56, get_max_tokens in
# vllm/entrypoints/serve/utils/api_utils.py at 00a5fdd2, _verify_args in vllm/sampling_params.py at 00388f65. Its V0 engine read
# `best_of` too, as TensorRT-LLM does.


class VllmChat(BaseModel):
    messages: List[Any]
    max_tokens: Optional[int] = None
    max_completion_tokens: Optional[int] = None
    n: Optional[int] = 1
    min_tokens: int = 0

    def asks(self):
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return vllm_verified(Asks(limit, 1 if self.n is None else self.n, self.min_tokens))


class VllmCompletions(BaseModel):
    prompt: Union[List[TokenId], List[List[TokenId]], str, List[str], None] = None
    prompt_embeds: Union[bytes, List[bytes], None] = None
    # Null is no limit, since newer versions take the default instead.
    max_tokens: Optional[int] = 16
    n: int = 1
    min_tokens: int = 0
    echo: Optional[bool] = False

    def asks(self):
        limit = 1 if self.echo and self.max_tokens == 0 else self.max_tokens
        prompts = count(self.prompt) + count(self.prompt_embeds)
        asks = vllm_verified(Asks(limit, self.n, self.min_tokens)) if prompts else None
        return asks and asks._replace(answers=asks.answers * prompts)


class VllmResponses(BaseModel):
    input: Union[str, List[Any]]
    max_output_tokens: Optional[int] = None

    def asks(self):
        return vllm_verified(Asks(self.max_output_tokens, 1))


class VllmMessages(BaseModel):
    model: str
    messages: List[Any]
    max_tokens: int

    def asks(self):
        return vllm_verified(Asks(self.max_tokens, 1))


def vllm_verified(asks):
    limit = float("inf") if asks.limit is None else asks.limit
    return asks if asks.answers >= 1 and limit >= 1 and 0 <= asks.minimum <= limit else None


# SGLang, its main branch of 2026: python/sglang/srt/entrypoints/openai/{protocol,serving_completions}.py at 004c82e0 and
# anthropic/protocol.py at 032977b3, `verify` in python/sglang/srt/sampling/sampling_params.py at 00c17caf, and
# _handle_parallel_sampling in python/sglang/srt/managers/io_struct.py.


class SglangChat(BaseModel):
    messages: List[Any]
    max_tokens: Optional[int] = None
    max_completion_tokens: Optional[int] = None
    n: int = 1
    min_tokens: int = 0

    def asks(self):
        return sglang_verified(Asks(self.max_completion_tokens or self.max_tokens, self.n, self.min_tokens))


class OlderSglangChat(SglangChat):
    """SGLang of 2024 read `max_tokens` first."""

    def asks(self):
        return sglang_verified(Asks(self.max_tokens or self.max_completion_tokens, self.n, self.min_tokens))


class SglangCompletions(BaseModel):
    prompt: Union[List[int], List[List[int]], str, List[str]]
    best_of: Optional[int] = None  # Read and not used.
    max_tokens: Annotated[int, Field(ge=1)] = 16
    n: int = 1
    min_tokens: int = 0

    def asks(self):
        asks = sglang_verified(Asks(self.max_tokens, self.n, self.min_tokens))
        return asks and asks._replace(answers=asks.answers * count(self.prompt))


class SglangResponses(BaseModel):
    input: Union[str, List[Any]]
    max_output_tokens: Optional[int] = None

    def asks(self):
        return sglang_verified(Asks(None if self.max_output_tokens is None else self.max_output_tokens - 2, 1))


class SglangMessages(BaseModel):
    model: str
    messages: List[Any]
    max_tokens: Annotated[int, Field(ge=1)]

    def asks(self):
        return sglang_verified(Asks(self.max_tokens, 1))


def sglang_verified(asks):
    limit = float("inf") if asks.limit is None else asks.limit
    if not 0 <= asks.minimum <= limit:
        return None
    # Prefill makes a token even where none is asked for, and a single prompt is answered even where `n` is 0.
    return asks._replace(limit=asks.limit if asks.limit is None else max(asks.limit, 1), answers=max(asks.answers, 1))


# TensorRT-LLM, its main branch of 2026: tensorrt_llm/serve/openai_protocol.py at 0076e939, anthropic_protocol.py at 7b6d11c0,
# SamplingParams in tensorrt_llm/sampling_params.py at 000a01de, and _deduce_max_tokens in
# tensorrt_llm/executor/base_worker.py. Chat and completions refuse fields that they do not know; `max_completion_tokens`, whose
# alias is `max_tokens`, is an unknown one beside it.

TRTLLM_BOTH = frozenset(
    "frequency_penalty logit_bias logprobs presence_penalty seed stop stream stream_options temperature top_p user lora_request "
    "prompt_ignore_length use_beam_search top_k top_p_min min_p repetition_penalty length_penalty early_stopping stop_token_ids "
    "include_stop_str_in_output ignore_eos skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens "
    "thinking_token_budget add_special_tokens response_format disaggregated_params priority conversation_params".split()
)
TRTLLM_CHAT = TRTLLM_BOTH | frozenset(
    "prompt_token_ids prompt_token_ids_b64 top_logprobs tools tool_choice parallel_tool_calls reasoning_effort thinking echo "
    "add_generation_prompt documents chat_template chat_template_kwargs injected_chat_template_kwargs media_io_kwargs cache_salt "
    "agent_hierarchy mm_processor_kwargs".split()
)
TRTLLM_COMPLETIONS = TRTLLM_BOTH | frozenset("echo suffix return_context_logits detokenize".split())


class TrtllmChat(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    model: str
    messages: List[Any]
    max_completion_tokens: Optional[int] = Field(default=None, validation_alias="max_tokens")
    n: int = 1
    best_of: Optional[int] = None
    min_tokens: int = 0

    def asks(self):
        asks = trtllm_verified(self.max_completion_tokens, self.n, self.best_of, self.min_tokens)
        return asks if self.model_extra.keys() <= TRTLLM_CHAT else None


class TrtllmCompletions(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    prompt: Union[List[int], List[List[int]], str, List[str]]
    max_tokens: Optional[int] = None
    n: int = 1
    best_of: Optional[int] = None
    min_tokens: int = 0

    def asks(self):
        asks = trtllm_verified(self.max_tokens, self.n, self.best_of, self.min_tokens)
        is_known = self.model_extra.keys() <= TRTLLM_COMPLETIONS
        return asks._replace(answers=asks.answers * count(self.prompt)) if asks and is_known else None


class TrtllmResponses(BaseModel):
    model: str
    input: Union[str, List[Any]]
    max_output_tokens: Optional[int] = None

    def asks(self):
        return trtllm_verified(self.max_output_tokens, 1, None, 0)


class TrtllmMessages(BaseModel):
    model: str
    messages: Annotated[List[Any], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)]

    def asks(self):
        return trtllm_verified(self.max_tokens, 1, None, 0)


def trtllm_verified(limit, n, best_of, minimum):
    """All of `best_of` answers are generated. Older versions take a limit of 0 for none, newer ones refuse it. Nothing compares
    `min_tokens` with the limit, which wins."""
    answers = best_of or n
    is_refused = answers < max(n, 1) or (limit is not None and limit < 0)
    return None if is_refused else Asks(limit or None, answers, minimum)


SERVERS = {
    "vLLM": {"chat": VllmChat, "completions": VllmCompletions, "responses": VllmResponses, "messages": VllmMessages},
    "older SGLang": {"chat": OlderSglangChat},
    "SGLang": {"chat": SglangChat, "completions": SglangCompletions, "responses": SglangResponses, "messages": SglangMessages},
    "TensorRT-LLM": {
        "chat": TrtllmChat,
        "completions": TrtllmCompletions,
        "responses": TrtllmResponses,
        "messages": TrtllmMessages,
    },
}


class Lax(BaseModel):
    value: int


# === check ===


def parsed(text):
    """The body as Python reads it; None if it is no JSON object. Numbers of more than 4300 digits are an error too."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def read_by(model, body):
    if body is None:
        return None
    try:
        return model.model_validate(body).asks()
    except ValidationError:
        return None


def is_within(asks, left):
    if asks.limit is None:
        return False
    return asks.limit * asks.answers <= left or (asks.limit == 1 and left < asks.answers)


def must_keep(asked, body, left):
    """Whether vLLM's reading of the body fits into what is left, and no other reading needs more: a gateway that does not know
    the server must count `best_of`, and obey the server that generates most."""
    vllm = asked["vLLM"]
    if vllm is None or vllm.limit is None:
        return False
    try:
        best_of = Lax(value=body.get("best_of") or 0).value
    except ValidationError:
        best_of = 0
    most = vllm.limit * max(vllm.answers, best_of * count(body.get("prompt", "")))
    others = [asks.limit * asks.answers for asks in asked.values() if asks and asks.limit is not None]
    return max(most, *others) <= left


def violations_of(line):
    """What is wrong with the line, as (server, rule, explanation), and what each server reads in both bodies."""
    api, left = line["api"], line["left"]
    bodies = {side: parsed(line[side]) for side in ("sent", "asked")}
    asked = {server: read_by(models[api], bodies["asked"]) for server, models in SERVERS.items() if api in models}
    sent = {server: read_by(models[api], bodies["sent"]) for server, models in SERVERS.items() if api in models}
    wrong = []
    if bodies["sent"] is None and bodies["asked"] is not None:
        wrong.append(("all", "syntax", "the body was an object and no longer is one"))
    for server, asks in sent.items():
        if asks is None:
            continue
        if not is_within(asks, left):
            wrong.append((server, "tokens", f"{asks.limit} tokens times {asks.answers} answers, {left} left"))
        before = asked[server]
        is_asked_so = before is not None and before.limit is not None and before.minimum > before.limit
        if asks.limit is not None and asks.minimum > asks.limit and not is_asked_so:
            wrong.append((server, "minimum", f"at least {asks.minimum} tokens of {asks.limit}"))
    before, after = asked["vLLM"], sent["vLLM"]
    if must_keep(asked, bodies["asked"] or {}, left) and (after is None or after[:2] != before[:2]):
        wrong.append(("vLLM", "meaning", f"asked {before}, sent {after}, {left} left"))
    return wrong, asked, sent


def check(path):
    lines, forwarded, accepted, rules, refused_now, shown = 0, 0, Counter(), Counter(), Counter(), []
    notes = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            line = json.loads(text)
            lines += 1
            if line["status"] != 0:
                continue
            forwarded += 1
            wrong, asked, sent = violations_of(line)
            accepted.update(server for server, asks in sent.items() if asks)
            for server in asked:
                if asked[server] and not sent[server]:
                    refused_now[server] += 1
                    if refused_now[server] <= NOTES_SHOWN:
                        notes.append(show(number, line, server, "note", "accepts what was asked and refuses what is sent"))
            for server, rule, explanation in wrong:
                rules[rule] += 1
                if len(shown) < VIOLATIONS_SHOWN:
                    shown.append(show(number, line, server, rule, explanation))
    print(f"{lines} lines, {forwarded} forwarded; accepted by", ", ".join(f"{server} {accepted[server]}" for server in SERVERS))
    print("accepted as asked, refused as sent:", ", ".join(f"{server} {refused_now[server]}" for server in SERVERS))
    print(*notes, *shown, sep="\n", end="\n" if notes or shown else "")
    found = sum(rules.values())
    print(f"{found} violations", dict(rules) if found else "")
    return 1 if found else 0


def show(number, line, server, rule, explanation):
    asked, sent = (repr(line[side][:TEXT_SHOWN]) for side in ("asked", "sent"))
    return f"line {number}, {line['api']}, {server}, {rule}: {explanation}\n  asked {asked}\n  sent  {sent}"


# === generate ===

LIMITS = {
    "chat": ["max_tokens", "max_completion_tokens"],
    "completions": ["max_tokens"],
    "responses": ["max_output_tokens"],
    "messages": ["max_tokens"],
}
# Fields that another API reads, and this one ignores or refuses.
FOREIGN = ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"]
SPACES = [" ", "\\t", "\\n", "\\r", "\\f", "\\u000b", "\\u00a0", "\\u0085", "\\u2003", "\\u3000", "\\u001c", "\\u200b", "\\ufeff"]
WORDS = ["true", "True", "yes", "on", "t", "null", "None", "NaN", "inf", "Infinity", "", " ", "-", "+", "_", "."]
WORDS += ["1e2", "0x10", "\\uff11\\uff16", "\\u0663"]
NO_LIMITS = ["true", "false", "0", "-0", "-1", "0.0", "-0.0", "NaN", "Infinity", "-Infinity", "[5]", "[]", "{}", '{"n":1}']


def digits_of(rng, number):
    """The number's digits, perhaps with underscores; not all of these are allowed."""
    digits = str(abs(number))
    if rng.random() < 0.3:
        digits = "".join(digit + rng.choice(["", "", "", "", "_", "_", "_", "__"]) for digit in digits)
        digits = digits if rng.random() < 0.2 else digits.rstrip("_")
    return digits


def text_of(rng, number):
    """The number as a JSON string."""
    sign = "-" if number < 0 else rng.choice([""] * 12 + ["+"] * 4 + ["-", "+-", "-+", "++", "0-", "0_-"])
    zeros = rng.choice(["", "", "", "0", "00", "0_0", "0_", "0" * 300])
    behind = rng.choice(["", "", "", "", ".0", ".000", ".", ".5", "_", ".0_0", "." + "0" * 300])
    before, after = (rng.choice(SPACES) * rng.randint(1, 2) if rng.random() < 0.15 else "" for _ in range(2))
    return f'"{before}{sign}{zeros}{digits_of(rng, number)}{behind}{after}"'


def number_of(rng, number):
    """The number as a float, or one far from it."""
    zeros = "0" * 300 if number else ""
    form = rng.randrange(8)
    if form < 3:
        return f"{number}." + rng.choice(["0", "000", "5", "0" * 300, "0" * 300 + "1"])
    if form < 6:
        exponent = rng.choice([0, 0, 1, 2, -1, -2])
        mantissa = f"{number}{zeros[:-exponent]}" if exponent < 0 else f"{number}"
        sign = "" if exponent < 0 else rng.choice(["", "+"])
        return f"{mantissa}{rng.choice(['', '.0'])}{rng.choice('eE')}{sign}{exponent}"
    return rng.choice([f"{number}{zeros}", f"{number}e300", f"{number}e-300", f"{number}e400", f"{number}.0e18"])


def value_of(rng, numbers):
    """A field's value as JSON text: mostly a plain number, for the more exotic bodies are refused for their other fields."""
    number, form = rng.choice(numbers), rng.random()
    if form < 0.5:
        return str(number)
    if form < 0.65:
        return number_of(rng, number)
    if form < 0.87:
        return text_of(rng, number)
    if form < 0.92:
        return "null"
    if form < 0.96:
        return rng.choice(NO_LIMITS)
    return '"' + rng.choice(WORDS) + '"'


def key_of(rng, name):
    if rng.random() < 0.9:
        return f'"{name}"'
    return '"' + "".join(f"\\u{ord(char):04x}" if rng.random() < 0.3 or char == "_" else char for char in name) + '"'


def input_of(rng, api):
    text = rng.choice(["hi", "\\ud83d\\ude00 \\\"max_tokens\\\": 9", "a{}[]", "\\ud800"])
    if api in ("chat", "messages"):
        return "messages", f'[{{"role":"user","content":"{text}","max_tokens":7,"n":9}}]'
    if api == "responses":
        return "input", rng.choice([f'"{text}"', f'[{{"role":"user","content":"{text}"}}]'])
    texts = [f'"{text}"', f'"{text}"', f'["{text}"]', f'["{text}","b"]', f'["{text}","b","c","d"]']
    return "prompt", rng.choice([*texts, "[1,2,3]", "[[1,2],[3]]", "[[1],[2],[3]]"])


def body_of(rng, api):
    few = rng.random() < 0.25
    limits = [-1, 0, 1, 5, 7, 16, 50, 64, 100, 128, 999, 1000, 4096, 100_000]
    limits = [1, 2, 3] if few else limits + [2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64]
    fields = [("model", '"m"'), input_of(rng, api)]
    for name in LIMITS[api]:
        fields += [(name, value_of(rng, limits))] * (rng.random() < 0.7)
    fields += [(rng.choice(FOREIGN), value_of(rng, limits))] * (rng.random() < 0.08)
    fields += [("n", value_of(rng, [1, 1, 2, 3, 4, 8, 100]))] * (rng.random() < 0.35)
    fields += [("best_of", value_of(rng, [1, 2, 4, 5, 9]))] * (rng.random() < 0.2)
    fields += [("min_tokens", value_of(rng, [0, 1, 5, 20, 100]))] * (rng.random() < 0.25)
    fields += [("stream", rng.choice(["true", "false", "null", '"yes"', "1"]))] * (rng.random() < 0.2)
    fields += [("echo", rng.choice(["true", "false"]))] * (rng.random() < 0.1 and api == "completions")
    numeric = [name for name, _ in fields if name not in ("model", "messages", "input", "prompt", "stream", "echo")]
    if numeric and rng.random() < 0.15:
        fields.append((rng.choice(numeric), value_of(rng, limits)))
    rng.shuffle(fields)
    colon, comma = rng.choice([(":", ","), (": ", ", "), (" :\n\t", " ,\r\n")])
    return "{" + comma.join(f"{key_of(rng, name)}{colon}{value}" for name, value in fields) + "}"


def generate(number, seed):
    rng = random.Random(seed)
    for _ in range(number):
        api = rng.choice(["chat", "chat", "completions", "completions", "responses", "messages"])
        print(json.dumps({"api": api, "asked": body_of(rng, api)}))


def main(arguments):
    match arguments:
        case ["check", path]:
            return check(path)
        case ["generate", number, seed]:
            return generate(int(number), int(seed))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
