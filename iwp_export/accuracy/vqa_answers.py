"""The normal form in which VQA's evaluation code (visualqa.org/evaluation) compares answers.

Lower case, no articles, no punctuation, numbers as digits, contractions with their apostrophes. The code leaves answers
as they are where all annotators agree, which makes "Yes" wrong beside ten times "yes"; lmms-eval's task and this module
normalise always.
"""

from __future__ import annotations

import itertools
import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
COMMA_IN_NUMBER = re.compile(r"\d,\d")
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
} | {"none": "0"}
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def normalised(answer: str) -> str:
    """An answer in the form in which it is compared."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = (NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark beside a space goes, one between words leaves a space; periods go but for those before a digit."""
    in_number = COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        goes = in_number or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if goes else " ")
    return PERIOD.sub("", out)


def _misspelt(word: str) -> list[str]:
    """Ways to write a contraction that lack one of its apostrophes or more, but keep one of several."""
    parts = word.split("'")
    ways = ["".join(itertools.chain(*zip(parts, (*marks, ""), strict=True)))
            for marks in itertools.product(("'", ""), repeat=len(parts) - 1)]  # fmt: skip
    least = 1 if len(parts) > 2 else 0
    return [way for way in ways if way != word and way.count("'") >= least]


CONTRACTIONS = {way: word for word in CONTRACTED.split() for way in _misspelt(word)}
