"""results.tsv: no text breaks a row, and no broken row is read as a sound one."""

from __future__ import annotations

import dataclasses
import random
import string

import pytest
from sample_rows import ROW

from autokernel.run import history
from autokernel.run.history import COLUMNS
from autokernel.types import AutokernelError


def test_the_columns_are_those_that_were_promised():
    assert " ".join(COLUMNS) == (
        "experiment time target problem backend proposer idea status stage decision latency_us incumbent_us speedup "
        "ci_low ci_high speedup_vs_eager speedup_vs_best pct_peak seconds tokens_in tokens_out cost_usd commit parent "
        "attempts isolation"
    )


def test_rows_come_back_as_they_were_written(tmp_path):
    failed = dataclasses.replace(
        ROW, experiment=2, status="CRASH", decision="revert", latency_us=None, speedup=None, pct_peak=None
    )
    path = tmp_path / "results.tsv"
    path.write_text(history.render([ROW]))
    history.append(path, failed)
    assert history.read(path) == history.read(tmp_path) == [ROW, failed]


@pytest.mark.parametrize(
    "text",
    ["", "\t", "a\tb\nc\rd", "\\", "\\t", "\\\\n", "é ü 漢 🙂", '"quoted"', " spaces ", "# tune: 1, 2"],
)
def test_any_text_survives(text):
    assert history.unescape(history.escape(text)) == text
    assert not set(history.escape(text)) & set("\t\n\r")


def test_random_text_survives_and_stays_on_one_line():
    dice = random.Random(1)
    for _ in range(300):
        text = "".join(dice.choices(string.printable + "\\\\\t\n\r\u2028\x85\x00\ud800", k=dice.randint(0, 30)))
        line = history.format_row(dataclasses.replace(ROW, idea=text))
        assert len(line.splitlines()) == 1
        line.encode("utf-8")
        again = history.parse_row(line)
        assert history.format_row(again) == line


def corrupt(column: str, cell: str) -> str:
    cells = history.format_row(ROW).split("\t")
    cells[COLUMNS.index(column)] = cell
    return f"{history.HEADER}\n" + "\t".join(cells) + "\n"


WHOLE = history.render([ROW, dataclasses.replace(ROW, experiment=2), dataclasses.replace(ROW, experiment=3)])
BROKEN = {
    "empty": ("", "line 1"),
    "no header": (WHOLE.split("\n", 1)[1], "line 1"),
    "another header": (WHOLE.replace("speedup_vs_best", "speedup_vs_worst"), "line 1"),
    "cut off inside a row": (WHOLE[:-100], "line 4"),
    "cut off before the newline": (WHOLE[:-1], "line 4"),
    "a column too few": (WHOLE.replace("\tcpp", "", 1), "line 2"),
    "a column too many": (WHOLE.replace("\tcpp", "\tcpp\tcpp", 1), "line 2"),
    "a blank line": (WHOLE.replace("\n2\t", "\n\n2\t"), "line 3"),
    "a row missing": (history.render([ROW, dataclasses.replace(ROW, experiment=3)]), "line 3"),
    "a row twice": (history.render([ROW, ROW]), "line 3"),
    "binary": ("\x00\x01\x02garbage\n", "line 1"),
    "a number that is none": (corrupt("latency_us", "fast"), "column 'latency_us'"),
    "a number that is infinite": (corrupt("seconds", "inf"), "column 'seconds'"),
    "not a number": (corrupt("speedup", "nan"), "column 'speedup'"),
    "no seconds": (corrupt("seconds", ""), "column 'seconds'"),
    "a count below zero": (corrupt("tokens_in", "-3"), "column 'tokens_in'"),
    "a fraction of an experiment": (corrupt("experiment", "1.5"), "column 'experiment'"),
    "an unknown decision": (corrupt("decision", "kept"), "column 'decision'"),
    "an unknown status": (corrupt("status", "OK"), "column 'status'"),
    "an escape that is none": (corrupt("idea", "a\\qb"), "column 'idea'"),
    "an escape that is cut": (corrupt("idea", "a\\"), "column 'idea'"),
    "a short commit": (corrupt("commit", "0123456"), "column 'commit'"),
    "a time of another kind": (corrupt("time", "yesterday"), "column 'time'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(tmp_path, name):
    text, told = BROKEN[name]
    path = tmp_path / "results.tsv"
    path.write_bytes(text.encode())
    with pytest.raises(AutokernelError) as refusal:
        history.read(path)
    assert told in str(refusal.value) and str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "results.tsv"
    path.write_bytes(WHOLE.encode()[:700] + b"\xff\xfe" + WHOLE.encode()[700:])
    with pytest.raises(AutokernelError, match=r"line \d: UTF-8"):
        history.read(path)
    with pytest.raises(AutokernelError, match="no such file"):
        history.read(tmp_path / "elsewhere")


def test_champion_and_false_keeps():
    def row(number, decision, status="PASS", low=None):
        return dataclasses.replace(ROW, experiment=number, decision=decision, status=status, ci_low=low)

    rows = [row(1, "baseline", "CRASH"), row(2, "baseline"), row(3, "revert"), row(4, "aa", low=0.99)]
    assert history.champion(rows[:1], "softmax") is None
    assert history.champion(rows, "softmax").experiment == 2
    assert history.champion([*rows, row(5, "keep"), row(6, "aa", low=1.02)], "softmax").experiment == 5
    assert history.champion(rows, "matmul") is None
    assert history.false_keeps([*rows, row(5, "aa", low=1.02), row(6, "keep", low=2.0)]) == (1, 2)


@pytest.mark.parametrize("columns", history.VERSIONS[:-1])
def test_a_file_of_an_older_version_is_read(tmp_path, columns):
    older = history.render([ROW], columns)
    (tmp_path / "results.tsv").write_text(older)
    assert "isolation" not in older and history.read(tmp_path) == [ROW]
    assert (ROW.attempts, ROW.isolation) == (1, "")
    fixed = dataclasses.replace(ROW, attempts=3)
    (tmp_path / "results.tsv").write_text(history.render([fixed]))
    assert history.read(tmp_path) == [fixed]
