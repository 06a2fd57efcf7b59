#!/usr/bin/env python3
"""Writes src/tokenizer/unicode_tables.cc: character classes and case mappings.

The classes come from the package unicodedata2==16.0.0, because 16.0 is the version of the pattern engine inside
Hugging Face's `tokenizers` 0.23; the case mappings come from this Python's own str.upper/lower/title, which is what
Jinja templates call. Both versions are written into the file.

    pip install unicodedata2==16.0.0
    tools/make_unicode_tables.py            # rewrites the table
    tools/make_unicode_tables.py --check    # exit 1 if the committed table differs
"""
import argparse
import pathlib
import sys
import unicodedata

OUT = pathlib.Path(__file__).resolve().parent.parent / "src/tokenizer/unicode_tables.cc"
WHITE_SPACE = set(
    [*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
)
# Order of enum class CharClass in unicode.h.
OTHER, LETTER, NUMBER, SPACE, MARK, HIDDEN = range(6)


def char_class(data, code):
    if code in WHITE_SPACE:
        return SPACE
    category = data.category(chr(code))
    if category[0] == "L":
        return LETTER
    if category[0] == "N":
        return NUMBER
    if category[0] == "M":
        return MARK
    return HIDDEN if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs") else OTHER


def rows(values, per_line):
    for start in range(0, len(values), per_line):
        yield "    " + ", ".join(values[start : start + per_line]) + ",\n"


def class_table(data):
    runs, last = [], None
    for code in range(0x110000):
        now = char_class(data, code)
        if now != last:
            runs.append(f"0x{code << 3 | now:x}")
            last = now
    return runs


def case_ranges(mapping):
    """[first, last, stride, delta] over the code points whose mapping is one code point."""
    single = [(c, ord(mapping(chr(c))) - c) for c in range(0x110000)
              if not 0xD800 <= c < 0xE000 and len(mapping(chr(c))) == 1 and mapping(chr(c)) != chr(c)]
    out = []
    for code, delta in single:
        if out and out[-1][3] == delta:
            first, last, stride, _ = out[-1]
            gap = code - last
            if (first == last and gap <= 2) or (first != last and gap == stride):
                out[-1] = [first, code, gap, delta]
                continue
        out.append([code, code, 1, delta])
    return [f"{{0x{a:x}, 0x{b:x}, {s}, {d}}}" for a, b, s, d in out]


def escaped(text):
    return '"' + "".join(f"\\x{b:02x}" for b in text.encode()) + '"'


def specials(mapping):
    return [f"{{0x{c:x}, {escaped(mapping(chr(c)))}}}" for c in range(0x110000)
            if not 0xD800 <= c < 0xE000 and len(mapping(chr(c))) > 1]


def render():
    import unicodedata2

    if unicodedata2.unidata_version != "16.0.0":
        sys.exit(f"unicodedata2 {unicodedata2.unidata_version} found, 16.0.0 wanted: pip install unicodedata2==16.0.0")
    text = [
        "// Made by tools/make_unicode_tables.py; do not edit.\n",
        f"// Classes: Unicode {unicodedata2.unidata_version}. Case mappings: Unicode {unicodedata.unidata_version}.\n",
        "// clang-format off\n",
        '#include "tokenizer/unicode_tables.h"\n\nnamespace tessera::tokenizer::tables {\n\n',
    ]
    runs = class_table(unicodedata2)
    text.append("const uint32_t kClassRuns[] = {\n" + "".join(rows(runs, 12)) + "};\n")
    text.append(f"const size_t kClassRunCount = {len(runs)};\n\n")
    for name, mapping in (("Upper", str.upper), ("Lower", str.lower)):
        ranges = case_ranges(mapping)
        text.append(f"const CaseRange k{name}Ranges[] = {{\n" + "".join(rows(ranges, 5)) + "};\n")
        text.append(f"const size_t k{name}RangeCount = {len(ranges)};\n\n")
    for name, mapping in (("Upper", str.upper), ("Lower", str.lower)):
        longer = specials(mapping)
        text.append(f"const CaseSpecial k{name}Specials[] = {{\n" + "".join(rows(longer, 4)) + "};\n")
        text.append(f"const size_t k{name}SpecialCount = {len(longer)};\n\n")
    # Title case differs from upper case for a handful of digraphs and ligatures only.
    title = [f"{{0x{c:x}, {escaped(chr(c).title())}}}" for c in range(0x110000)
             if not 0xD800 <= c < 0xE000 and chr(c).title() != chr(c).upper()]
    text.append("const CaseSpecial kTitleSpecials[] = {\n" + "".join(rows(title, 4)) + "};\n")
    text.append(f"const size_t kTitleSpecialCount = {len(title)};\n\n")
    text.append("}  // namespace tessera::tokenizer::tables\n")
    return "".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = render()
    if args.check:
        if OUT.read_text() != text:
            sys.exit(f"{OUT} differs from what this script makes")
        print(f"{OUT.name}: the same")
    else:
        OUT.write_text(text)
        print(f"{OUT.name}: {len(text)} bytes")


if __name__ == "__main__":
    main()
