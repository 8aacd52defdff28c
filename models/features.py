"""Prompt text to features: the same rule as src/core/features.rs, bit for bit (golden.json holds both to it).

Only integer counts, one division and one square root per value: every step is exact or correctly rounded by IEEE 754,
so Python, x86-64 and WebAssembly agree without sharing a maths library.
"""

import re

import numpy as np

FEATURE_VERSION = 1
HEAD_CHARS = 4_000
TAIL_CHARS = 2_000
SLOT_BITS_MAX = 14
SURFACE = 32

# Tokens per 1,000 occurrences in the whole text. Fitted by fit_tokens.py against Qwen2.5's tokenizer.
TOKEN_MILLIS = {
    "letter": 7,
    "word": 698,
    "digit": 1225,
    "space": 368,
    "newline": 0,
    "symbol": 651,
    "two_byte": 891,
    "three_byte": 1014,
    "four_byte": 1112,
}

KEYWORD_GROUPS = [
    ["for", "while"],
    ["if", "elif", "else"],
    ["class", "def", "function", "import", "lambda", "return"],
    ["append", "dict", "join", "len", "list", "range", "replace", "sort", "split", "str", "string"],
    ["calculate", "compute", "determine", "evaluate", "find", "solve"],
    ["angle", "circle", "equation", "integer", "integers", "polynomial", "positive", "probability", "prove", "real", "triangle"],
    ["create", "describe", "explain", "generate", "implement", "summarize", "write"],
    ["how", "many", "much", "what", "when", "which", "who", "why"],
]

# Positions in the surface features of what depends on the number of slots.
DISTINCT, DISTINCT_SHARE = 4, 5

TOKEN = re.compile(r"[a-z]+|[0-9]|[^\x00-\x20\x7fa-z0-9]")
ASCII_LOWER = {c: c + 32 for c in range(ord("A"), ord("Z") + 1)}
U32 = 0xFFFF_FFFF


def fnv1a(token):
    """32-bit FNV-1a of the token's UTF-8 bytes."""
    h = 0x811C_9DC5
    for byte in token.encode():
        h = ((h ^ byte) * 0x0100_0193) & U32
    return h


def slot(h, bits=SLOT_BITS_MAX):
    """The top bits of Knuth's multiplicative hash: a slot of fewer bits is the start of one of more."""
    return ((h * 2_654_435_761) & U32) >> (32 - bits)


def fold(slots, counts, surface, bits):
    """Features of SLOT_BITS_MAX bits as features of fewer bits; slots stay in order of first occurrence."""
    folded = {}
    for s, n in zip(slots, counts):
        s = int(s) >> (SLOT_BITS_MAX - bits)
        folded[s] = folded.get(s, 0) + int(n)
    surface = surface.copy()
    surface[DISTINCT], surface[DISTINCT_SHARE] = log2(len(folded)), share(len(folded), sum(folded.values()))
    return np.fromiter(folded.keys(), np.int64), np.fromiter(folded.values(), np.int64), surface


KEYWORDS = {fnv1a(word): group for group, words in enumerate(KEYWORD_GROUPS) for word in words}
_hashes = {}


def token_hash(token):
    h = _hashes.get(token)
    if h is None:
        h = _hashes[token] = fnv1a(token)
    return h


def window(text):
    """The first HEAD_CHARS characters and the last TAIL_CHARS of what follows them, joined without a gap."""
    return text[:HEAD_CHARS] + text[HEAD_CHARS:][-TAIL_CHARS:]


def character_classes(text):
    """Counts over the whole text, from its UTF-8 bytes; continuation bytes belong to no class."""
    b = np.frombuffer(text.encode(), dtype=np.uint8)
    low = b | 0x20
    letter = (low >= ord("a")) & (low <= ord("z")) & (b < 0x80)
    before = np.concatenate([[False], letter[:-1]])
    digit = (b >= ord("0")) & (b <= ord("9"))
    newline = b == 0x0A
    space = (b <= 0x20) & ~newline
    counts = {
        "letter": letter,
        "word": letter & ~before,
        "digit": digit,
        "space": space,
        "newline": newline,
        "symbol": (b < 0x80) & ~(letter | digit | newline | space),
        "two_byte": (b >= 0xC0) & (b < 0xE0),
        "three_byte": (b >= 0xE0) & (b < 0xF0),
        "four_byte": b >= 0xF0,
    }
    return {name: int(mask.sum()) for name, mask in counts.items()}


def estimated_tokens(text):
    counts = character_classes(text)
    return (sum(TOKEN_MILLIS[name] * n for name, n in counts.items()) + 500) // 1_000


def log2(n):
    """log2(1 + n), linear between powers of two: exact where a logarithm depends on the maths library."""
    n += 1
    k = n.bit_length() - 1
    return np.float32(k + n / 2**k - 1.0)


def share(part, whole):
    return np.float32(part) / np.float32(max(whole, 1))


def weights(counts):
    """The square root of each slot's share: its squares sum to 1."""
    counts = np.asarray(counts, dtype=np.float64)
    return np.sqrt(counts / max(counts.sum(), 1.0)).astype(np.float32)


def extract(text, bits=SLOT_BITS_MAX):
    """-> (slots, counts, surface): slots in order of first occurrence."""
    kept = window(text)
    lower = kept.translate(ASCII_LOWER)
    tokens = TOKEN.findall(lower)
    slots, previous = {}, None
    words = letters = long_words = 0
    groups = [0] * len(KEYWORD_GROUPS)
    for token in tokens:
        h = token_hash(token)
        s = slot(h, bits)
        slots[s] = slots.get(s, 0) + 1
        if previous is not None:
            s = slot((previous * 31 + h * 1_000_003 + 17) & U32, bits)
            slots[s] = slots.get(s, 0) + 1
        previous = h
        if "a" <= token[0] <= "z":
            words += 1
            letters += len(token)
            long_words += len(token) >= 8
            group = KEYWORDS.get(h)
            if group is not None:
                groups[group] += 1
    depth = deepest = 0
    for c in re.findall(r"[()\[\]{}]", kept):
        depth = depth + 1 if c in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    lines = kept.split("\n")
    numbers = re.findall(r"[0-9]+", kept)
    chars = len(kept)
    count = lambda pattern: len(re.findall(pattern, kept))
    total = sum(slots.values())
    surface = np.array(
        [
            log2(len(text)),
            log2(estimated_tokens(text)),
            log2(words),
            log2(len(lines) - 1),
            log2(len(slots)),
            share(len(slots), total),
            share(letters, chars),
            share(count(r"[A-Z]"), letters),
            share(count(r"[0-9]"), chars),
            share(count(r"[\x00-\x20\x7f]"), chars),
            share(count(r"[^\x00-\x7f]"), chars),
            share(count(r"[()\[\]{}]"), chars),
            share(count(r"[-+*/=<>^%]"), chars),
            share(count(r"['\"`]"), chars),
            share(count(r"[.,;:]"), chars),
            log2(count(r"\?")),
            log2(count(r"[\\$]")),
            share(letters, words),
            share(long_words, words),
            log2(len(numbers)),
            log2(max(map(len, numbers), default=0)),
            log2(max(map(len, lines))),
            share(sum(line[:1] in (" ", "\t") for line in lines if line), len(lines)),
            np.float32(min(deepest, 255)),
            *(log2(n) for n in groups),
        ],
        dtype=np.float32,
    )
    assert surface.shape == (SURFACE,)
    return np.fromiter(slots.keys(), np.int64), np.fromiter(slots.values(), np.int64), surface
