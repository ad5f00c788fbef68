"""Writes tests/fixtures/patterns.json: the pieces into which Python's `tokenizers` cuts texts.

    python scripts/make_pattern_fixture.py

Requires the package tokenizers. For each pattern the file lists, per text, the number of characters of each
piece; `null` for a pattern that the library refuses. `replaced` lists texts after a Replace normalizer.
"""

import json
import pathlib

from tokenizers import Regex, normalizers, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = [
    GPT2, GPT4, CL100K, GPT4O, GPT4.replace("{1,3}", ""),
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", r"[^\n]+|[\n]+", r" ?[^(\s|[.,!?…。，、।۔،])]+", r"\d{1,3}(?=(?:\d{3})*\b)",
    r"\w+|[^\w\s]+|\s+", r"\w+", r"\W+", r"\b", r"\B", r"\b\w", r"\w\b", r"\s+", r"\S+", r"\d", r"\D+", r"\h+", r"\H+",
    r"^", r"$", r"^.", r".$", r"(?m)^.", r"(?m).+", r".+", r"(?s).+", r"\A.", r".\z", r".\Z", r"\R", r"\X", r"\N+", r"\O",
    r"[[:alpha:]]+", r"[[:space:]]", r"[[:punct:]]", r"[[:upper:]]", r"[[:^alpha:]]+", r"[[:alnum:]]+", r"[[:word:]]+",
    r"\p{Alpha}+", r"\p{^L}+", r"\P{L}+", r"\p{Han}", r"\p{Script=Han}", r"\p{Emoji}+", r"\p{Lu}", r"\p{Zs}", r"\p{Cf}",
    r"\p{Greek}+", r"\p{In_Basic_Latin}+",
    r"[a-c]{1,3}+", r"\p{L}{2}+", r"a{,2}", r"a{2,}", r"a{0,1}?b", r"a?+b", r"a*+a", r"a++", r"\w+?", r".*?b",
    r"(?i)strasse", r"(?i)ß", r"(?i)ﬁ", r"(?i:k)+", r"(?i)σ", r"(?i)[a-c]+", r"(?i)ǆ", r"(?-i)a", r"(?i)a(?-i)b",
    r"(?<=a)b", r"(?<!a)b", r"(?<=\s)\S", r"(?=\d)", r"(?!\s)\W", r"(?<=ab|c)d?", r"(?>a+)b", r"(a)(b)?\1",
    r"(?<x>a|b)\k<x>", r"a|", r"|a", r"", r"()", r"[^a]", r"[a&&[^b]]", r"[\w&&[^\d]]+", r"[]a]", r"[\]\-]", r"\x61",
    r"\x{4e2d}", r"\u4e2d", r"\t|\n", r"\.\.\.", r"\Qa.b\E", r"(?x) a b # c", r"\K", r"a\Kb", r"\G\w", r"(?:a|ab)(?:c|bcd)",
    r"(?~ab)", r"(?<x>a\g<x>?b)", r"\g<0>", r"\cJ", r"(", r"a**", r"[z-a]", r"\p{Nope}", r"(?<n>a)|(?<n>b)", r"(?W)\w+",
    r"(?a)\w+", r"[\p{L}--[a]]", r"\y", r"(?y{g})\X", r"\s+$|^\s+", r"(?:\w+\s?)+", r"(a|b|ab)*c",
]
TEXTS = [
    "", "a", "abc aab abab cab", "The quick brown fox, isn't it? It's 12345 o'clock!", "  two  spaces \t tab\n\n\nlines\r\nend ",
    "line one\nline two\r\nline three\r", "Straße STRASSE straſse ﬁne FINE K K k", "می‌خواهم کتاب‌ها را ببینم", "👨‍👩‍👧 ok 🇩🇪 👍🏽 ☺️",
    "中文测试 日本語テスト 한국어 1２３", "naïve cafe\u0301 e\u0301\u0301 नि हिन्दी", "x_y __init__ a1b2 3.14 -5 1,000,000", "ΑΒΓ αβγ ς σ Σ",
    "ⓐⓑ ① ² ½ Ⅷ", "a.b...c!!! (x) [y] {z} <t>", "\u00a0nb\u2003em\u3000ideo\u200bzero\ufeffbom", "don't DON'T we'll I'M they're",
    "http://example.com/a?b=c&d=%20", "def f(x):\n    return x + 1  # c\n", "1234567890 12 123 1234", "\n", "   ", "aaaaabbbbbccccc",
    "ǅ ǆ Ǆ ĳ Ĳ", "a\u0000b\u0007c", "...a\\b\"c'd`e~",
]
REPLACED = [
    (r"^\s+|\s+$", ""), (r"\s+", " "), (r" {2,}", "▁"), (r"(?<=\w)'", "’"), (r"$", "|"), (r"^", "> "), (r"", "."),
    (r"\p{Mn}", ""), (r"(?i)s", "z"), (r"\R", "\n"),
]


def pieces(pattern, text):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return [len(piece) for piece, _ in split.pre_tokenize_str(text)]


def attempt(compute):
    try:
        return [compute(text) for text in TEXTS]
    except Exception:
        return None


def main():
    patterns = [{"pattern": p, "pieces": attempt(lambda text, p=p: pieces(p, text))} for p in PATTERNS]
    replaced = []
    for pattern, content in REPLACED:
        compute = lambda text: normalizers.Replace(Regex(pattern), content).normalize_str(text)
        replaced.append({"pattern": pattern, "content": content, "texts": attempt(compute)})
    path = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "patterns.json"
    lines = [json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in patterns]
    more = [json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in replaced]
    texts = json.dumps(TEXTS, ensure_ascii=False)
    body = ",\n".join(lines)
    path.write_text(
        f'{{"texts": {texts},\n"patterns": [\n{body}\n],\n"replaced": [\n' + ",\n".join(more) + "\n]}\n", encoding="utf-8"
    )
    print(len(PATTERNS), "patterns,", sum(item["pieces"] is None for item in patterns), "refused,", len(TEXTS), "texts")


main()
