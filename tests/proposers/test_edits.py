"""Edits are applied to the letter, or refused with what the model needs to mend them."""

from __future__ import annotations

import pytest

from autokernel.proposers._edits import EditRefused, edited, replaced

FILE = "kernels/softmax.py"
SOURCE = '''"""A kernel."""
BLOCK = 64  # tune: 32, 64
WARPS = 4


def load(x):
    return x * 2


def store(x):
    return x * 2
'''


def call(**arguments):
    return {"path": FILE, "idea": "tier 1: a larger block", **arguments}


def block(search, replace="REPLACED"):
    return {"search": search, "replace": replace}


def test_blocks_are_applied_together_whatever_their_order():
    edits = [block("WARPS = 4", "WARPS = 8"), block("BLOCK = 64 ", "BLOCK = 128 ")]
    change = edited(SOURCE, FILE, call(edits=edits))
    assert change.source == SOURCE.replace("BLOCK = 64 ", "BLOCK = 128 ").replace("WARPS = 4", "WARPS = 8")
    assert change.idea == "tier 1: a larger block"


def test_a_search_is_looked_up_in_the_file_as_shown_not_in_what_another_block_left():
    with pytest.raises(EditRefused, match="edit 2: the search text does not occur"):
        edited(SOURCE, FILE, call(edits=[block("BLOCK = 64", "BLOCK = 128"), block("BLOCK = 128", "BLOCK = 256")]))


def test_neighbouring_blocks_do_not_overlap():
    assert replaced("abcdef", [("cd", "X"), ("ab", "Y"), ("ef", "")]) == "YX"


def test_a_whole_file_is_taken_as_it_is():
    content = SOURCE + "# the end\n"
    assert edited(SOURCE, FILE, call(content=content)).source == content
    assert edited(SOURCE, FILE, call(content=content, edits=[])).source == content


def test_replacements_are_text_and_no_pattern():
    assert replaced("a + b", [("a +", r"\g<0> \1 $1 +")]) == r"\g<0> \1 $1 + b"


def test_an_idea_becomes_one_line():
    change = edited(SOURCE, FILE, call(edits=[block("WARPS = 4")], idea=" tier 2:\n\n wide \t loads " + "x" * 900))
    assert change.idea.startswith("tier 2: wide loads xxx")
    assert len(change.idea) == 300


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (call(edits=[block("return x * 2")]), r"occurs 2 times \(at lines 7, 11\)"),
        (call(edits=[block("")]), "empty search text"),
        (call(edits=[block("WARPS = 4", "WARPS = 4")]), "changes nothing: its search and replace"),
        (call(content=SOURCE), "changes nothing: the file would be"),
        (call(edits=[block("= 4\n", "= 8\n"), block("WARPS = 4", "")]), "edits 1 and 2 overlap at line 3"),
        (call(edits=[block("WARPS = 4\r\n")]), "differs from the file in its line ends alone: the file has LF"),
        (call(edits=[block("WARPS = 4", "WARPS = 4\r\nA = 1")]), "edit 1's replace text has carriage returns"),
        (call(content=SOURCE.replace("\n", "\r\n")), "content has carriage returns"),
        (call(edits=[block("WARPS = 4   \n\n")]), "differs from those at line 3 in trailing whitespace alone"),
        (call(edits=[block("def load(x):\n  return x * 2\n")]), "differs from those at line 6 in indentation alone"),
        (call(edits=[block("WARPS = 5")]), r"the nearest lines are .*\n +3 \| WARPS = 4"),
        (
            call(edits=[block("def stor(x):\n    return x * 3")]),
            r"nearest .*\n +10 \| def store\(x\):\n +11 \|",
        ),
        (call(path="kernels/other.py", content="x = 1"), "expected path 'kernels/softmax.py', the only file"),
        (call(path="../softmax.py", content="x = 1"), "the only file that can change"),
        (call(path=["kernels/softmax.py"], content="x = 1"), "the only file that can change"),
        (call(), "holds no edit"),
        (call(edits=[], content=""), "content is empty"),
        (call(content="  \n"), "content is empty"),
        (call(content=["a"]), "content is empty"),
        (call(edits=[block("WARPS = 4")], content="x = 1"), "not both"),
        (call(edits="WARPS"), "expected edits to be a list of search/replace blocks, got str"),
        (call(edits=["WARPS"]), "expected edit 1 to be an object"),
        (call(edits=[{"search": "WARPS = 4"}]), "expected edit 1 to be an object"),
        (call(edits=[{"search": "WARPS = 4", "replace": None}]), "expected edit 1 to be an object"),
        ({"path": FILE, "content": "x = 1"}, "expected idea to be one line of text"),
        (call(idea="  ", content="x = 1"), "expected idea to be one line of text"),
    ],
)
def test_what_does_not_apply_is_refused_with_its_own_reason(arguments, reason):
    with pytest.raises(EditRefused, match=f"(?s){reason}"):
        edited(SOURCE, FILE, arguments)


def test_occurrences_that_overlap_are_as_ambiguous_as_any():
    with pytest.raises(EditRefused, match="occurs 3 times"):
        replaced("aaaa", [("aa", "b")])


def test_a_file_with_crlf_keeps_its_line_ends():
    source = SOURCE.replace("\n", "\r\n")
    assert replaced(source, [("BLOCK = 64", "BLOCK = 32")]).count("\r\n") == source.count("\r\n")
    with pytest.raises(EditRefused, match="the file has CRLF, it has LF"):
        replaced(source, [("WARPS = 4\n\n", "")])
    with pytest.raises(EditRefused, match="has bare LF"):
        replaced(source, [("WARPS = 4", "WARPS = 4\nA = 1")])


def test_a_long_search_text_shows_no_more_of_the_file_than_helps():
    source = "\n".join(f"line {n} = {n * 7}" for n in range(400))
    wanted = "\n".join(f"line {n} = {n * 7 + (n == 250)}" for n in range(240, 290))
    with pytest.raises(EditRefused) as refusal:
        replaced(source, [(wanted, "")])
    assert "  241 | line 240 = 1680" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 13
