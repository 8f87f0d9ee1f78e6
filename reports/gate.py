"""The forms of a gate's judgement: for the terminal, for a pull request, and for CI servers."""

import json
from collections.abc import Iterable
from pathlib import Path

import junitparser as junit
import msgspec

from tare.bench.history.findings import Finding, State
from tare.bench.history.forms import GateForm
from tare.bench.history.gate import Judgement, Verdict
from tare.bench.readable import one_line, readable
from tare.reports.gate_words import STATES, coverage, explanation, headline, mark_lines, outlier_lines, title


class TextForm(GateForm):
    """The judgement for a terminal."""

    name = "text"
    summary = "the judgement in words"
    suffix = ".txt"

    def write(self, judgement: Judgement, output: Path, *, link: str = "") -> None:
        lines = [headline(judgement), ""]
        for finding in judgement.findings:
            lines += [
                f"{STATES[finding.state]}  {finding.identifier}  {title(finding)}",
                f"    {explanation(finding)}",
            ]
            if finding.is_open and finding.state is not State.RESOLVED:
                lines.append(f"    to accept it: tare gate ack {finding.identifier} --reason TEXT")
        if judgement.findings:
            lines.append("")
        lines += [*mark_lines(judgement), *outlier_lines(judgement), *coverage(judgement)]
        lines += map(_sentence, judgement.notes)
        if link:
            lines.append(link)
        output.write_text("\n".join(lines) + "\n", "utf-8")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


class MarkdownForm(GateForm):
    """Short: only what is new, with links; what is known is counted."""

    name = "markdown"
    summary = "what is new, for a pull request or a job summary"
    suffix = ".md"

    def write(self, judgement: Judgement, output: Path, *, link: str = "") -> None:
        lines = [f"### {_escaped(headline(judgement))}", ""]
        tonight = judgement.run.run
        fresh = [one for one in judgement.findings if one.is_open and one.first_told == tonight]
        gone = judgement.of_state(State.RESOLVED)
        for finding in fresh:
            name = _escaped(title(finding))
            page = f" ([history]({_address(link, finding)}))" if link else ""
            lines += [f"- **{name}**{page}", f"  {_escaped(explanation(finding))} `{finding.identifier}`"]
        lines += [f"- resolved: {_escaped(title(one))} `{one.identifier}`" for one in gone]
        known = [one for one in judgement.findings if one not in fresh and one not in gone]
        if known:
            standing = sum(one.is_regression for one in known)
            lines.append(f"- {len(known)} reported before ({standing} of them unacknowledged regressions)")
        said = (*mark_lines(judgement), *outlier_lines(judgement), *coverage(judgement))
        lines += ["", *map(_escaped, said)]
        lines += [_escaped(_sentence(note)) for note in judgement.notes]
        output.write_text("\n".join(lines).rstrip() + "\n", "utf-8")


def _address(link: str, finding: Finding) -> str:
    return (
        f"{link.rstrip('/')}/index.html#{finding.identifier}".replace("(", "%28")
        .replace(")", "%29")
        .replace(" ", "%20")
    )


_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#"})


def _escaped(text: str) -> str:
    return one_line(text).translate(_MARKDOWN)


class JsonForm(GateForm):
    """Everything, as one JSON object."""

    name = "json"
    summary = "everything, as one JSON object"
    suffix = ".json"

    def write(self, judgement: Judgement, output: Path, *, link: str = "") -> None:
        values = msgspec.to_builtins(judgement)
        values["exit_code"] = int(judgement.verdict.exit_code)
        values["headline"] = headline(judgement)
        values["smallest_detectable"] = judgement.middling
        values["link"] = link
        for value, finding in zip(values["findings"], judgement.findings, strict=True):
            value |= {
                "title": title(finding),
                "explanation": explanation(finding),
                "is_regression": finding.is_regression,
            }
        output.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


class JUnitForm(GateForm):
    """A test case a finding, and one each for what else can keep a night from being green."""

    name = "junit"
    summary = "findings as test cases (JUnit XML)"
    suffix = ".junit.xml"

    def write(self, judgement: Judgement, output: Path, *, link: str = "") -> None:
        suite = junit.TestSuite(f"tare gate {one_line(judgement.run.suite)}")
        for case in (*map(_case, judgement.findings), *_cases_of_night(judgement)):
            case.time = 0
            suite.add_testcase(case)
        suite.timestamp = judgement.run.started_utc[:19]
        xml = junit.JUnitXml()
        xml.add_testsuite(suite)
        xml.write(str(output), pretty=True)


def _case(finding: Finding) -> junit.TestCase:
    case = junit.TestCase(f"{finding.identifier} {title(finding)}", classname=f"gate.{one_line(finding.metric)}")
    said = readable(explanation(finding))
    if finding.is_regression:
        failure = junit.Failure(title(finding), STATES[finding.state])
        failure.text = said
        case.result = [failure]
    else:
        case.system_out = f"{STATES[finding.state]}: {said}"
    return case


def _cases_of_night(judgement: Judgement) -> Iterable[junit.TestCase]:
    told = "\n".join((*mark_lines(judgement), *coverage(judgement)))
    for verdict, name in (
        (Verdict.INCOMPLETE, "the run is complete"),
        (Verdict.ENVIRONMENT, "the environment is that of the nights before"),
        (Verdict.BLIND, "enough was judged"),
    ):
        case = junit.TestCase(name, classname="gate.night")
        if judgement.verdict is verdict:
            failure = junit.Failure(headline(judgement), str(verdict))
            failure.text = told
            case.result = [failure]
        yield case


class GitHubForm(GateForm):
    """Workflow commands of GitHub Actions: annotations of the job."""

    name = "github"
    summary = "annotations of GitHub Actions (workflow commands)"
    suffix = ".txt"

    def write(self, judgement: Judgement, output: Path, *, link: str = "") -> None:
        lines = []
        for finding in judgement.findings:
            if finding.is_open:
                level = "error" if finding.is_regression else "warning" if finding.worse else "notice"
                lines.append(_command(level, title(finding), f"{explanation(finding)} {link}".strip()))
        if judgement.verdict in (Verdict.INCOMPLETE, Verdict.ENVIRONMENT, Verdict.BLIND):
            said = " ".join((*mark_lines(judgement), *coverage(judgement)))
            lines.append(_command("warning", headline(judgement), said))
        lines.append(_command("notice", headline(judgement), " ".join(coverage(judgement))))
        output.write_text("\n".join(lines) + "\n", "utf-8")


def _command(level: str, name: str, message: str) -> str:
    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    return f"::{level} title={data(one_line(name)).replace(':', '%3A').replace(',', '%2C')}::{data(one_line(message))}"


class GitLabForm(GateForm):
    """GitLab's code quality report: a finding keeps its fingerprint, so that it is shown as new once."""

    name = "gitlab"
    summary = "GitLab's code quality report (JSON)"
    suffix = ".json"

    def write(self, judgement: Judgement, output: Path, *, link: str = "") -> None:
        place = Path(judgement.run.suite_file).name or judgement.run.suite or "suite"
        values = [
            {
                "description": one_line(f"{title(finding)}. {explanation(finding)} {link}".strip()),
                "check_name": f"tare-gate-{finding.kind}",
                "fingerprint": finding.identifier,
                "severity": "critical" if finding.is_regression else "minor" if finding.worse else "info",
                "location": {"path": one_line(place), "lines": {"begin": 1}},
            }
            for finding in judgement.findings
            if finding.is_open
        ]
        output.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
