#!/usr/bin/env bash
# Words of Hindi, Bengali and Thai under Python's regular expressions.
#
# Guessed: \w matches all that a word is written with, so \b stands at a word's ends alone, in any script.
# True:    to `re` the combining vowel signs and the virama (Unicode categories Mc and Mn) are no letters: \b stands
#          inside most words of Hindi and Bengali. "50 per cent" (৫০ শতাংশ) reads as fifty hundred by r"(\d+) শত\b",
#          and \w+ cuts a word into pieces. The package `regex` follows Unicode (UTS 18, annex C): \w has the marks.
# Versions: Python 3.11 and 3.12 (`re`), regex 2026.11.19.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet regex==2026.11.19
"$folder/venv/bin/python" - <<'PY'
import re
import sys

import regex

PER_CENT, LAKHS, THAI = "৫০ শতাংশ", "5 लाखों", "ที่"
seen = {
    name: (
        bool(module.search(r"(\d+) শত\b", PER_CENT)),
        bool(module.search(r"(\d+) लाख\b", LAKHS)),
        [module.findall(r"\w+", text) for text in (PER_CENT, LAKHS, THAI)],
    )
    for name, module in (("re", re), ("regex", regex))
}
for name, (hundred, lakh, words) in seen.items():
    print(f"{name}: hundred in 'per cent' {hundred}, lakh in 'lakhs' {lakh}, words {words}")
whole = [["৫০", "শতাংশ"], ["5", "लाखों"], ["ที่"]]
as_found = seen["re"][:2] == (True, True) and seen["re"][2] != whole and seen["regex"] == (False, False, whole)
sys.exit(0 if as_found else "this has changed")
PY
