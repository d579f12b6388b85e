"""What a judge's reply means."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hmx.judge.parse import parse_score, score_is_settled

REPLIES = [
    # ---- as asked for
    ("Score: 7", 7),
    ("Score: 0", 0),
    ("Score: 10", 10),
    ("Score: 7\nReason: It speaks of joy.", 7),
    ("Reason: It speaks of joy.\nScore: 7", 7),
    ("Score: 3\nReason: 9 of the 10 sentences are hollow.", 3),
    # ---- case, spaces, punctuation
    ("score: 7", 7),
    ("SCORE: 7", 7),
    ("  \n\n  Score:7  \n", 7),
    ("Score :7", 7),
    ("Score\t:\t7", 7),
    ("Score:\u00a07", 7),
    ("Score = 7", 7),
    ("Score: 10.", 10),
    ("Score: 7,", 7),
    ("Score: 7!", 7),
    ("Score: 7; good", 7),
    ("Score: 7 - a warm answer", 7),
    ("Score: 7 — a warm answer", 7),
    ("Score: 7\r\nReason: warm", 7),
    ("Final score: 7", 7),
    ("Overall Score: 7", 7),
    ("Total score: 7", 7),
    ("Score: 07", 7),
    ("Score: +7", 7),
    ("Score: 7.0", 7),
    ("Score: 7,0", 7),
    ("Score: -0", 0),
    # ---- markdown and quoting
    ("**Score:** 7", 7),
    ("**Score: 7**", 7),
    ("**Score**: 7", 7),
    ("*Score:* **7**", 7),
    ("# Score: 7", 7),
    ("> Score: 7", 7),
    ("- Score: 7", 7),
    ("`Score: 7`", 7),
    ('"Score: 7"', 7),
    ("Score: [7]", 7),
    ("Score: (7)", 7),
    ("Score: <7>", 7),
    ('"score": 7', 7),
    ('{"score": 7}', 7),
    ('{"score": 7, "reason": "warm"}', 7),
    ('{\n  "reason": "warm",\n  "score": 7\n}', 7),
    ('{"score": "7"}', 7),
    # ---- out of ten
    ("Score: 8/10", 8),
    ("Score: 8 / 10", 8),
    ("Score: 8 out of 10", 8),
    ("**Score:** 8/10", 8),
    ("Score: 8/10.", 8),
    ("Score: 10/10", 10),
    ("Score: 8 of 10", 8),
    ("Score: 8 (out of 10)", 8),
    ("Score: 8 [/10]", 8),
    ("Score: 8 on a scale of 0 to 10", 8),
    ("Score: 8, on a scale from 1-10", 8),
    ("Score (0-10): 8", 8),
    ("**Score** (out of 10, 10 being the warmest): 8", 8),
    ("Score (warmth): 8", 8),
    ("Score: 3 of course", 3),
    ("Score: ... 7", 7),
    # ---- other scales are not ours to convert
    ("Score: 4/5", None),
    ("Score: 80/100", None),
    ("Score: 8/100", None),
    ("Score: 3 out of 5", None),
    ("Score: 8/", None),
    ("Score: 7/10/2024", None),
    ("Score: 10 of 100", None),
    ("Score: 10 (out of 100)", None),
    ("Score: 7 (/100)", None),
    ("Score: 7 on a scale of 1 to 5", None),
    ("Score: 7 (on a scale from 0-100)", None),
    ("Score (1-100): 7", None),
    ("Score (out of 100): 10", None),
    ("Overall score (1-5): 4", None),
    ("Score (10-100): 10", None),
    # ---- out of range, fractions, ranges
    ("Score: 11", None),
    ("Score: 100", None),
    ("Score: 1000000000000000000000", None),
    ("Score: -1", None),
    ("Score: - 1", None),
    ("Score: −1", None),
    ("Score: –1", None),
    ("Score: 7.5", None),
    ("Score: 7,5", None),
    ("Score: 7.5/10", None),
    ("Score: 0.7", None),
    ("Score: 7-8", None),
    ("Score: 7 - 8", None),
    ("Score: 7–8", None),
    ("Score: 7.5.1", None),
    ("Score: .7", None),
    ("Score: ,7", None),
    ("Score: <5", None),
    ("Score: < 5", None),
    ("Score: ≥7", None),
    ("Score: ≤ 7", None),
    ("Score: > 7", None),
    ("Score: 3 → 7", None),
    ("Score: 3 -> 7", None),
    ("Score: 7 and 8", None),
    ("Score: 7 & 8", None),
    ("Score: 7, 8", None),
    ("Score: 7 | 8", None),
    ("Score: 7th", None),
    ("Score: 7a", None),
    ("Score: 7_8", None),
    ("Score: 0x7", None),
    ("Score: 1e1", None),
    # ---- no number
    ("", None),
    (" \n\t ", None),
    ("Score:", None),
    ("Score: ", None),
    ("Score: seven", None),
    ("Score: N/A", None),
    ("Score:\n7", None),  # the label's line has no number, and the first line is not a number
    ("Score 7", None),
    ("The answer is warm and sincere.", None),
    ("I would say 7.", None),
    ("I give it a score of 7.", None),
    ("The score: 7", None),  # another word before the label: it may be a quotation of the answer
    ("He said Score: 10", None),
    ("Underscore: 7", None),
    ("Scores: 7", None),
    ("Score: about 7", None),
    # ---- two scores: the first line that labels one decides
    ("Score: 3\nScore: 9", 3),
    ("Score: 3 Score: 9", 3),
    ("Reason: good\nScore: 3\nScore: 9", 3),
    ("Score: 11\nScore: 7", None),
    ("7\nScore: 4", 4),
    # ---- a number alone
    ("7", 7),
    (" 7 ", 7),
    ("7.", 7),
    ("**7**", 7),
    ("7/10", 7),
    ("7 out of 10", 7),
    ("7\nbecause it is warm", 7),
    ("10", 10),
    ("11", None),
    ("-1", None),
    ("−1", None),
    ("7.5", None),
    ("7-8", None),
    ("7 8", None),
    ("7 points", None),
    ("4/5", None),
    ("because it is warm\n7", None),
    # ---- other scripts
    ("Ｓｃｏｒｅ：７", 7),
    ("Score：8", 8),
    ("Score：８／１０", 8),
    ("Score: ٧", 7),
    ("Score: ७", 7),
    ("Score: ⑦", 7),
    ("Score: ⑩", 10),
    ("٧", 7),
    ("Score: 七", None),
    ("评分：8", None),
    ("Оценка: 8", None),
    ("Score: 8️⃣", 8),
    ("Score: 😀", None),
    ("Score: 7½", None),
]


@pytest.mark.parametrize("text, grade", REPLIES)
def test_replies_from_real_life(text, grade):
    assert parse_score(text) == grade
    assert type(parse_score(text)) is type(grade)


@pytest.mark.parametrize(
    "text",
    [
        "Score: ½",
        "Score: ⅞",  # NFKC makes them 1⁄2 and 7⁄8, with a fraction slash
        "Score: 1,000",
        "Score: 10%",
        "Score: 4 / 5.0",
        "Score: **7**/100",
        "Score: (7)/20",
        "Score: **7** out of 5",
        "Score: 8 out of 10.5",
        "Score: 7~8",
        "Score: 7\u20118",  # a non-breaking hyphen, which NFKC makes a U+2010
        "Score: \u20117",
        "Score: 7 to 8",
    ],
)
def test_fractions_other_scales_and_ranges_in_rarer_spellings(text):
    assert parse_score(text) is None


# Replies are drawn from the pieces that matter to a parser, so that near misses are common.
pieces = st.sampled_from(
    [
        *"0123456789",
        "10",
        "Score",
        "score:",
        "Score: ",
        "Score: 7",
        "Final ",
        ":",
        "：",
        "=",
        "\n",
        "\r",
        "\r\n",
        "\x0b",
        "\u2028",
        "\x85",
    ]
    + [
        " ",
        "\t",
        "\u00a0",
        "/",
        " / ",
        "/10",
        " out of ",
        "10",
        ".",
        ",",
        ".5",
        "-",
        "−",
        "–",
        "+",
        "*",
        "**",
        "_",
        "th",
        "x",
    ]
    + ["\u0301", "\u0338", "\u200d", "½", "²", "⑦", "٧", "７", "Ｓ", "\ufeff", "😀", "\x00", "<", "]", '"', "{", "}"]
)
replies = st.lists(pieces, max_size=12).map("".join) | st.text(max_size=40)


@given(replies)
@example("Score: " + "9" * 5000)
@example("9" * 5000)
@example("Score: 7/" + "9" * 5000)
@settings(max_examples=600)
def test_never_raises_and_never_leaves_the_scale(text):
    grade = parse_score(text)
    assert grade is None or (type(grade) is int and 0 <= grade <= 10)


@given(
    st.integers(-20, 30),
    st.sampled_from(["Score: {}", "score = {}", "**Score:** {}", "{}", "Score: {}/10", "Reason: x\nScore: {}"]),
)
@settings(max_examples=300)
def test_whole_numbers_are_read_if_they_are_on_the_scale(number, form):
    assert parse_score(form.format(number)) == (number if 0 <= number <= 10 else None)


score_lines = st.sampled_from(["Score: 7", "Score: 12", "**Score:** 3/10"])
settled = replies | st.builds("{}\n{}\n{}".format, replies, score_lines, replies)


@given(settled, replies)
@example("Score: 7\n", "\nScore: 8")
@example("Score: 7\n", "\u0338")
@example("Score: 1", "0\n")
@example("Score: 1\n", "0")
@example("7\n", "Score: 8")
@example("Score: 7/10", "0\n")
@settings(max_examples=1500)
def test_a_settled_score_is_not_changed_by_anything_that_follows(text, suffix):
    if score_is_settled(text):
        assert parse_score(text + suffix) == parse_score(text)


@pytest.mark.parametrize(
    "text, is_settled",
    [
        ("Score: 7\n", True),
        ("Score: 7\nReason", True),
        ("Reason: x\nScore: 7\n", True),
        ("Score: 12\n", True),  # never a grade any more, whatever follows
        ("Score: 7", False),  # could become 7.5
        ("Score: 1", False),
        ("Score: 7 ", False),
        ("7\n", False),  # a labelled score could follow
        ("Reason: x\n", False),
        ("", False),
        ("\n", False),
    ],
)
def test_settled_means_that_the_score_line_has_ended(text, is_settled):
    assert score_is_settled(text) is is_settled
