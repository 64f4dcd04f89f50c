"""Everything an API does to a night, and what becomes of it: wait, stop with one clear line, or go on."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import os
import threading
import time
from pathlib import Path

import pytest
from llm_cases import APIS, CHANGED, GOOD, brief, in_turn, proposer
from llm_server import KEY, Fault, LlmServer, Reply

from autokernel.extension import NothingUsable, ProposerFailed, ProposerOptions, ProposerUnavailable, Unanswered
from autokernel.proposers import anthropic, openai
from autokernel.proposers._faults import LONGEST_WAIT_S, retry_after_s

pytestmark = pytest.mark.usefixtures("keys")
STREAMED = ("anthropic", "openai streamed")
LATER = {"retry-after": "7"}
CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to purchase credits."
RPM = "Rate limit reached. You can raise it by adding a payment method in your account's billing settings."
QUOTA = "You exceeded your current quota, please check your plan and billing details."


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault and its outcome: the kind, a part of the line, the pause in seconds; which APIs have it, and how often it
    is met before that is the outcome.
    """

    fault: Fault | Reply
    outcome: type[Unanswered]
    told: str
    pause_s: float | None = None
    apis: tuple[str, ...] = APIS
    met: int = 1


def status(code: int, kind: str = "api_error", message: str = "scripted words", **more) -> Fault:
    return Fault(code, kind, message, **more)


WAIT, STOP = ProposerUnavailable, ProposerFailed
CASES = {
    "429 with retry-after": Case(status(429, headers=LATER), WAIT, "HTTP 429: scripted words", 7.0),
    "429 in ms": Case(status(429, headers={"retry-after-ms": "250"}), WAIT, "HTTP 429", 0.25),
    "429 without": Case(status(429, "rate_limit_error"), WAIT, "HTTP 429", 1.0),
    "429 that names billing": Case(status(429, "requests", RPM), WAIT, "HTTP 429: Rate limit reached", 1.0),
    "500": Case(status(500), WAIT, "HTTP 500: scripted words", 1.0),
    "502": Case(status(502, message="<html>bad gateway</html>"), WAIT, "HTTP 502", 1.0),
    "503": Case(status(503), WAIT, "HTTP 503", 1.0),
    "504": Case(status(504), WAIT, "HTTP 504", 1.0),
    "529": Case(status(529, "overloaded_error"), WAIT, "HTTP 529", 1.0),
    "408": Case(status(408), WAIT, "HTTP 408", 1.0),
    "overloaded in the stream": Case(
        status(529, "overloaded_error", in_stream=True), WAIT, "broke off its answer: scripted words", 1.0, STREAMED
    ),
    "dropped at once": Case(Fault(drop="at once"), WAIT, "broke the connection off", 1.0),
    "dropped mid-stream": Case(Fault(drop="mid-stream"), WAIT, "broke the connection off", 1.0, STREAMED),
    "dropped in a body": Case(Fault(drop="mid-stream"), WAIT, "broke the connection off", 1.0, ("openai",)),
    "ends quietly": Case(Fault(drop="quietly"), WAIT, "ended its answer before it was whole", 1.0, STREAMED),
    "stall": Case(Fault(stall_s=20.0), WAIT, "gave no answer in time", 1.0),
    "pings without end": Case(Fault(stall_s=20.0, pings=True), WAIT, "gave no answer in time", 1.0, STREAMED),
    "401": Case(status(401, message=f"bad key {KEY}"), STOP, "refused the key (HTTP 401): expected a valid one in"),
    "403": Case(status(403, "permission_error"), STOP, "does not let this key use"),
    "404": Case(status(404, "not_found_error"), STOP, "knows no model"),
    "402": Case(status(402, "billing_error"), STOP, "will not go on for money: scripted words", apis=("anthropic",)),
    "no credit": Case(status(400, "invalid_request_error", CREDIT), STOP, "for money: Your credit balance"),
    "no quota": Case(
        status(429, "insufficient_quota", QUOTA, error_code="insufficient_quota"), STOP, "for money: You exceeded"
    ),
    "month's limit": Case(
        status(429, "rate_limit_error", error_code="enforced_spend_limit_reached"), STOP, "for money",
        apis=("anthropic",),
    ),
    "400": Case(status(400, "invalid_request_error"), STOP, "refused the request (HTTP 400): scripted words"),
    "422": Case(status(422), STOP, "refused the request (HTTP 422)"),
    "filtered": Case(status(400, "x", error_code="content_filter"), NothingUsable, "declined", apis=("openai",)),
    "no context left": Case(Reply(stop="context"), NothingUsable, "did not fit", apis=("anthropic",), met=2),
    "a web page": Case(Fault(page="<html>hello</html>"), STOP, "--base-url to end in /v1", apis=("openai",)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "api"), [(kind, api) for kind, case in CASES.items() for api in case.apis], ids=lambda part: part
)
def test_each_fault_has_its_outcome_and_the_next_question_is_answered(kind, api):
    case = CASES[kind]
    limit_s = 0.6 if isinstance(case.fault, Fault) and case.fault.stall_s else 30.0
    with LlmServer(in_turn(*[case.fault] * case.met, GOOD)) as server:
        model = proposer(api, server, time_limit_s=limit_s)
        with pytest.raises(Unanswered) as unanswered:
            model.propose(brief())
        error = unanswered.value
        assert type(error) is case.outcome
        assert case.told in str(error)
        assert len(str(error).splitlines()) == 1
        assert KEY not in str(error)
        assert KEY not in json.dumps(error.exchanges)
        assert len(error.exchanges) == case.met
        assert error.exchanges[0]["fault"]["reason"] in str(error)
        if case.pause_s is not None:
            assert error.retry_after_s == case.pause_s
        assert model.propose(brief()).source == CHANGED
    assert server.violations == []
    assert len(server.requests) == case.met + 1  # the SDK asks once and leaves waiting to the run


@pytest.mark.parametrize("api", APIS)
def test_401_and_404_say_what_to_do(api):
    name = "ANTHROPIC_API_KEY" if api == "anthropic" else "OPENAI_API_KEY"
    with LlmServer(in_turn(status(401), status(403), status(404))) as server:
        model = proposer(api, server, model="claude-opus-5-6")
        with pytest.raises(ProposerFailed, match=f"in {name}"):
            model.propose(brief())
        with pytest.raises(ProposerFailed, match=f"use claude-opus-5-6 .*in {name}"):
            model.propose(brief())
        hint = "did you mean 'claude-opus-5" if api == "anthropic" else ""
        with pytest.raises(ProposerFailed, match=rf"knows no model 'claude-opus-5-6' .*{hint}.*--model"):
            model.propose(brief())


def test_a_server_that_is_not_there_is_waited_for():
    with LlmServer(in_turn(GOOD)) as server:
        model = proposer("openai", server)
    with pytest.raises(ProposerUnavailable, match=r"127\.0\.0\.1.*cannot be reached"):
        model.propose(brief())


@pytest.mark.parametrize("api", ["anthropic", "openai"])
def test_pauses_grow_to_five_minutes_and_begin_anew_after_an_answer(api):
    faults = [status(529)] * 11
    with LlmServer(in_turn(*faults, GOOD, status(500))) as server:
        model = proposer(api, server)
        pauses_s = []
        for _ in faults:
            with pytest.raises(ProposerUnavailable) as away:
                model.propose(brief())
            pauses_s.append(away.value.retry_after_s)
        assert pauses_s == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        model.propose(brief())
        with pytest.raises(ProposerUnavailable) as away:
            model.propose(brief())
        assert away.value.retry_after_s == 1


def test_what_a_broken_conversation_cost_is_told():
    """The first answer was paid for, and so was the beginning of the second."""
    with LlmServer(in_turn(Reply(text="no edit yet"), Fault(drop="mid-stream"))) as server:
        model = proposer("anthropic", server)
        with pytest.raises(ProposerUnavailable) as away:
            model.propose(brief())
    first, second = away.value.exchanges
    assert away.value.cost.tokens_out == 51
    assert second["usage"]["input"] > 0
    assert away.value.cost.cost_usd == pytest.approx(first["cost_usd"] + second["cost_usd"])


@pytest.mark.parametrize("api", APIS)
def test_four_questions_at_once_each_get_their_own_answer(api):
    def script(request):
        number = request.user.split("note number ")[1][0]
        return dataclasses.replace(
            GOOD, calls=(("edit_kernel", {**GOOD.calls[0][1], "idea": f"idea {number}"}),), delay_s=0.2
        )

    with LlmServer(script) as server:
        model = proposer(api, server, in_flight=4)
        found: dict[int, str] = {}

        def ask(number: int) -> None:
            found[number] = model.propose(brief(notes=(f"note number {number}",))).idea

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == {n: f"idea {n}" for n in range(4)}
    assert server.violations == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12.5"}, 12.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1e9"}, LONGEST_WAIT_S),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
    ],
)
def test_retry_after_is_read_as_servers_write_it(headers, seconds):
    assert retry_after_s(headers) == seconds


def test_retry_after_may_be_a_date():
    assert 50 < retry_after_s({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}) <= 60


@pytest.mark.parametrize("create", [anthropic.create, openai.create])
def test_a_password_in_the_url_is_not_shown(create):
    model = create(ProposerOptions(model="m", base_url="http://me:hunter2secret@localhost:1/v1?token=abc"))
    with pytest.raises(ProposerUnavailable, match=r"localhost:1") as away:
        model.propose(brief())
    assert "hunter2secret" not in str(away.value) + json.dumps(away.value.exchanges)


def test_a_wrong_base_url_of_a_key_is_one_clear_line():
    """What the SDKs say about a URL without a scheme is no reason for a traceback."""
    for create, name in ((anthropic.create, None), (openai.create, "m")):
        model = create(ProposerOptions(model=name, base_url="localhost:1/v1"))
        with pytest.raises(Unanswered):
            model.propose(brief())


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
HEAD = """\
# What an API does to a night, and what becomes of it

Each row is a case of `tests/proposers/test_llm_faults.py`: the official SDKs against a local server that does this.
None of them spends an experiment or loses a row. **Waits**: the run pauses and asks again, as long as its budget lasts;
the pause is what the server asks for, or doubles from 1 s to 5 min until an answer comes. **Stops**: the run ends with
this one line, its report and exit code 2, and the same command goes on once it is mended. **Noted**: the next brief
says so; three in a row end the visit to the target. What the answer cost so far is booked in all three. A brief that is
too long is first asked again with half of `--brief-tokens`.

An answer that cannot be used (no tool call, an edit that does not apply or names another file, empty, cut off or
declined) goes back to the model with the reason, twice, and is then noted.

| fault | where | outcome | pause | the line says |
|---|---|---|---|---|
"""


def test_the_document_lists_every_fault_and_its_outcome():
    outcomes = {ProposerUnavailable: "waits", ProposerFailed: "stops", NothingUsable: "noted"}
    wheres = {APIS: "all", STREAMED: "streamed", ("openai",): "chat completions", ("anthropic",): "Messages"}
    rows = [
        f"| {kind} | {wheres[case.apis]} | {outcomes[case.outcome]} | "
        f"{'' if case.pause_s is None else f'{case.pause_s:g} s'} | {case.told} |\n"
        for kind, case in CASES.items()
    ]
    written = HEAD + "".join(rows)
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(written)
    assert DOCUMENT.read_text() == written, "run UPDATE_DOCS=1 python -m pytest tests/proposers/test_llm_faults.py"
