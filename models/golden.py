"""Texts with their features and onnxruntime's outputs; the tests of src/core/features and src/core/predictor replay them."""

import numpy as np

import features as F
import graph

CODE = """#include <vector>
int sum(const std::vector<int>& xs) {
\tint total = 0; // running total
\tfor (auto x : xs) { total += x * 2; }
\treturn total;
}
"""

# Each text is a list of (piece, repetitions): long texts stay short here.
TEXTS = {
    "empty": [],
    "one letter": [("a", 1)],
    "one upper-case letter": [("Z", 1)],
    "one digit": [("7", 1)],
    "one space": [(" ", 1)],
    "one newline": [("\n", 1)],
    "one symbol": [("?", 1)],
    "one non-ASCII letter": [("é", 1)],
    "one emoji": [("🦀", 1)],
    "nul": [("\0", 1)],
    "question": [("What is the capital of France?", 1)],
    "upper case": [("WHAT IS THE CAPITAL OF FRANCE?", 1)],
    "how many": [("How many positive integers n < 1000 satisfy n^2 = 4 (mod 7)? Explain why.", 1)],
    "german": [("Größe und Höhe: Übermäßig schöne Äpfel kosten 3,50 € – warum?", 1)],
    "chinese": [("请写一个函数,计算列表中所有偶数的和。", 1)],
    "russian": [("Напишите функцию, которая возвращает сумму чисел.", 1)],
    "arabic": [("ما هي عاصمة فرنسا؟", 1)],
    "hindi with joiners": [("क्या आप मुझे बता सकते हैं?", 1)],
    "emoji sequence": [("Family 👨‍👩‍👧‍👦 and flag 🇨🇭 and tone 👍🏽!", 1)],
    "combining marks": [("e\u0301a\u0300o\u0302 naive\u0308", 1)],
    "unusual white space": [("a\u00a0b\u2003c\u200bd\ufeffe\u2028f\u0085g", 1)],
    "control characters": [("a\x01b\x7fc\x1b[0m\td\r\ne\x0b\x0cf", 1)],
    "capital dotted i and kelvin": [("İSTANBUL \u212a ſ K", 1)],
    "noncharacters": [("\uffff\U0010ffff\ufffd\ue000", 1)],
    "c++": [(CODE, 1)],
    "html": [('<div class="a b">1 &lt; 2</div>\n<!-- note -->\n', 3)],
    "json": [('{"a": [1, 2, {"b": null}], "c": "d\\"e"}', 1)],
    "latex": [(r"Prove that $\sum_{k=1}^{n} \frac{1}{k(k+1)} = \frac{n}{n+1}$ for every positive integer $n$.", 1)],
    "windows line ends": [("first line\r\n  second line\r\n\tthird\r\n", 2)],
    "only brackets": [("(", 300), (")", 400), ("[{", 5)],
    "only digits": [("0123456789", 30)],
    "one long word": [("Donaudampfschifffahrtsgesellschaft", 100)],
    "newlines": [("\n", 50)],
    "exactly the head": [("ab c", 1_000)],
    "one past the head": [("ab c", 1_000), ("d", 1)],
    "exactly the window": [("word ", 1_200)],
    "one past the window": [("word ", 1_200), ("!", 1)],
    "non-ASCII across the cuts": [("ä🦀b ", 2_500)],
    "long, ends differ": [("start here: ", 300), ("lost middle 123 ", 5_000), ("the end? ", 230)],
    "very long": [("The quick brown fox jumps over 13 lazy dogs.\n", 2_500), (CODE, 5)],
    "very long, non-ASCII": [("漢字かな交じり文。", 12_000)],
}


def cases(session, prompts, bits):
    """-> the cases of golden.json: TEXTS and some whole prompts."""
    texts = {name: parts for name, parts in TEXTS.items()} | {name: [(text, 1)] for name, text in prompts.items()}
    result = []
    for name, parts in texts.items():
        text = "".join(piece * times for piece, times in parts)
        slots, counts, surface = F.extract(text, bits)
        weights = F.weights(counts)
        out = graph.run(session, slots, weights, surface)
        ln = out["ln_output_tokens"].astype(np.float64)
        numbers = lambda values: [float(x) for x in values]
        result.append(
            {
                "name": name,
                "parts": parts,
                "chars": len(text),
                "estimated_tokens": F.estimated_tokens(text),
                "slots": slots.tolist(),
                # Bits of the f32: decimal numbers would not survive every JSON reader unchanged.
                "weight_bits": weights.view(np.uint32).tolist(),
                "surface_bits": surface.view(np.uint32).tolist(),
                "quality": numbers(out["quality"]),
                "quality_sd": numbers(out["quality_sd"]),
                "output_tokens": numbers(np.exp(ln)),
                "output_tokens_p80": numbers(np.exp(ln + out["ln_p80"])),
                "output_tokens_p90": numbers(np.exp(ln + out["ln_p90"])),
                "familiarity": float(out["familiarity"][0]),
                "prototype": int(out["prototype_logits"].argmax()),
            }
        )
    return result
