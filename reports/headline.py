"""The first screen in words: the answer made from verdicts, the grade, what was not measured, what to keep in mind."""

from collections.abc import Iterator, Mapping, Sequence

from tare.bench.analysis import Analysis, Grade, GradeLevel, MeasuredBackend
from tare.bench.analysis.answer import START, AreaAnswer, Outcome, PanelKind, PanelLine, area_answers, panels
from tare.bench.analysis.estimates import OWN_CONTAINER, host_virtualization
from tare.bench.catalogue import ConfoundCode, NoteCode
from tare.bench.model import Availability
from tare.bench.readable import one_line, readable
from tare.bench.traits import Category
from tare.bench.units import Unit, format_value
from tare.reports.caveats import caveats, suite_text, suite_title
from tare.reports.names import area_title, plural_of
from tare.reports.wording import (
    TENTATIVE,
    change_words,
    extra_memory,
    format_estimate,
    listed,
    longer_words,
    percent,
    plural,
)

_MOST_TOLD_APART = 2
_MOST_NAMED = 4
"""Of more backends a sentence of the answer has the first and the last, or how many they are; the picture has all."""
MOST_CAVEATS = 3
LARGEST = 150
"""So many letters of the answer are large; at least its first sentence."""
_SAID_ELSEWHERE = frozenset(
    {ConfoundCode.EMULATED, "one-block", "few-blocks", "no-baseline", "run-incomplete", "failures"}
)
"""Caveats that the grade or the fence says already."""
_OF_VERDICTS = frozenset({NoteCode.BLOCKS_UNTESTED, NoteCode.TENTATIVE})
"""Caveats about verdicts, of which a run that is not usable has none."""


def question(analysis: Analysis) -> str:
    """What the suite asks, or its name where it asks nothing."""
    return one_line(suite_text(analysis, "description"), 200) or suite_title(analysis)


def headline(analysis: Analysis) -> str:
    """The answer, from the verdicts that survived the correction for many comparisons."""
    return " ".join(answer(analysis))


def answer(analysis: Analysis) -> list[str]:
    """The sentences of the answer, the first of them first."""
    grade = analysis.grade
    if grade.level is GradeLevel.NOT_USABLE:
        return [f"This run cannot be used: {grade.reason.partition(': ')[0]}."]
    found = area_answers(analysis)
    backends = list(dict.fromkeys(one.backend for one in found))
    if 0 < len(backends) <= _MOST_TOLD_APART:
        sentences = [_of_backend(analysis, one, [each for each in found if each.backend == one]) for one in backends]
    else:
        sentences = list(_by_area(found))
    sentences += _of_instances(analysis)
    return sentences or [f"{_measured_alone(analysis)} was measured, with nothing to compare it with."]


def grade_sentence(grade: Grade) -> str:
    """The grade with its reason, what to do, and where it lies on the scale, in one line."""
    return f"{grade.sentence} (G{grade.level.place[1:]}.)"


def place_of(level: GradeLevel) -> str:
    """Where a grade lies on the scale: ``grade 3 of 4, where 1 is the best``."""
    return level.place


def fences(analysis: Analysis) -> list[str]:
    """What was not measured though it was asked for, each in one sentence."""
    emulated = [one for one in analysis.backends if one.is_fenced and one.name in analysis.measured]
    missing = analysis.manifest.unavailable.items()
    return [
        *(_why_emulated(analysis, one) for one in emulated[:1]),
        *(_why_missing(name, why) for name, why in missing),
    ]


def _why_missing(name: str, why: Availability) -> str:
    said = f"{one_line(name)}: not measured here ({one_line(why.reason, 160).rstrip('.')})."
    return f"{said} To measure it: {one_line(why.remedy, 160).rstrip('.')}." if why.remedy else said


def _why_emulated(analysis: Analysis, backend: MeasuredBackend) -> str:
    """Why there is no virtual machine in the results, and what would measure one."""
    described = analysis.manifest.backends.get(backend.name)
    asked_for = described is not None and described.texts.get("accel_reason", "").rstrip(".") == "asked for"
    why, remedy = "KVM did not boot a guest on this host", "run this where tare doctor finds that KVM works"
    if asked_for:
        why, remedy = "the run asked for emulation (accel = tcg)", "leave that option out"
    return (
        f"Virtual machine: not measured here, because {why}. To measure one, {remedy}. "
        "The emulator's figures are in the appendix."
    )


def top_caveats(analysis: Analysis) -> list[str]:
    """The weightiest caveats that nothing else on the first screen says."""
    fenced = tuple(f"{backend.label}: " for backend in analysis.backends if backend.is_fenced)
    said = _SAID_ELSEWHERE
    if analysis.grade.level is GradeLevel.NOT_USABLE:
        said = said | _OF_VERDICTS
    found = [one for one in caveats(analysis) if one.weight > 1 and one.code not in said]
    kept = [one for one in found if not one.text.startswith(fenced)] if fenced else found
    return [readable(one.text) for one in kept[:MOST_CAVEATS]]


def where(analysis: Analysis) -> str:
    """Host and run in one line."""
    manifest = analysis.manifest
    samples = analysis.run.samples
    blocks, instances = len(samples.distinct("block")), len(samples.distinct("instance"))
    host = readable(manifest.host_summary)
    virtual = ", itself a virtual machine" if host_virtualization(manifest) is not None else ""
    day = one_line(manifest.started_utc[:16].replace("T", " "), 20)
    name = one_line(manifest.run, 60)
    run = f"Run of {day}" if name.lower() == "run" else f"Run {name}, {day}"
    return f"{host}{virtual}. {run} UTC: {plural(blocks, 'block')}, {plural(instances, 'instance')}."


def headings(sentences: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sentences that are large, at least the first, and the others."""
    kept = 1
    while kept < len(sentences) and sum(map(len, sentences[: kept + 1])) <= LARGEST:
        kept += 1
    return list(sentences[:kept]), list(sentences[kept:])


def legend(analysis: Analysis) -> list[str]:
    """What the first picture's marks mean, and whoever in it is not known by name, in a sentence each."""
    kinds = {panel.kind for panel in panels(analysis)}
    said = []
    if kinds:
        shaded = f"; the shaded part: within {percent(analysis.margin)}, the same" if PanelKind.CHANGE in kinds else ""
        points = "; a small point: a block" if kinds & {PanelKind.CHANGE, PanelKind.START} else ""
        is_void = analysis.grade.level is GradeLevel.NOT_USABLE
        hollow = "hollow and grey: not usable" if is_void else "hollow: could not tell"
        said.append(f"The large point: the estimate; the line: its 95 % interval{points}; {hollow}{shaded}.")
        said.append("A block measures everything once, in random order; an instance is a backend started afresh.")
    if any(OWN_CONTAINER in one.label for one in analysis.backends):
        said.append(f"{OWN_CONTAINER}: tare's own container, made of namespaces and cgroups as Docker's are.")
    return said


def _of_backend(analysis: Analysis, backend: MeasuredBackend, found: Sequence[AreaAnswer]) -> str:
    """One backend in two sentences: what it costs, and what this run could not tell."""
    name = plural_of(backend, analysis)
    is_plural = name != backend.label
    by_outcome: dict[Outcome, list[AreaAnswer]] = {}
    for one in found:
        by_outcome.setdefault(one.outcome, []).append(one)
    clauses = []
    if same := _names(by_outcome.get(Outcome.SAME, [])):
        clauses.append(f"{'cost' if is_plural else 'costs'} nothing measurable in {same}")
    told = [*by_outcome.get(Outcome.WORSE, []), *by_outcome.get(Outcome.BETTER, [])]
    differing = [_difference(one) for one in told if one.area != START]
    if differing:
        clauses.append(f"{'are' if is_plural else 'is'} {listed(differing)}")
    if starts := [_start(one, is_plural=is_plural) for one in told if one.area == START]:
        clauses.append(starts[0])
    unknown = by_outcome.get(Outcome.UNKNOWN, [])
    doubt = f"{_names(unknown)}: this run could not tell." if unknown else ""
    doubt = doubt[:1].upper() + doubt[1:]
    if not clauses:
        return f"{name}: this run could not tell what {'they cost' if is_plural else 'it costs'}."
    said = f"{name} {'; they '.join(clauses) if is_plural else ', and '.join(clauses)}."
    return f"{said} {doubt}".strip()


def _names(found: Sequence[AreaAnswer]) -> str:
    return listed([_area(one) for one in found])


def _area(answer: AreaAnswer) -> str:
    """An area; of an own workload without a category its name."""
    if answer.area == Category.APPLICATION:
        return listed(list(dict.fromkeys(told.subject.title for told in answer.told))[:3])
    return area_title(answer.area)


def _difference(answer: AreaAnswer) -> str:
    """``21 % slower in system calls``; of several measurements the largest that differs, and how many do."""
    told = answer.first
    found = told.cell.comparison
    if found is None or found.ratio is None:
        raise ValueError("an area that differs has a ratio")
    words = change_words(told.row.metric, found.ratio, found)
    if len(answer.told) == 1:
        return f"{words} in {_area(answer)}{_tentative(answer)}"
    tentative = f"; {TENTATIVE}" if found.is_tentative else ""
    return f"up to {words} in {_area(answer)} ({answer.n_deciding} of {len(answer.told)} measurements{tentative})"


def _start(answer: AreaAnswer, *, is_plural: bool) -> str:
    """``start 2.1 ms later``: the difference of the typical starts."""
    told = answer.first
    base = told.row.base
    if base is None:
        raise ValueError("a start that differs is compared with the baseline's")
    difference = told.cell.estimate.centre - base.estimate.centre
    size = format_value(abs(difference), Unit.SECOND)
    later = "later" if difference > 0 else "sooner"
    return f"{'start' if is_plural else 'starts'} {size} {later}{_tentative(answer)}"


def _tentative(answer: AreaAnswer) -> str:
    """What is to be said behind the difference that answers for an area, if it is tentative."""
    found = answer.first.cell.comparison
    return f" ({TENTATIVE})" if found is not None and found.is_tentative else ""


def _by_area(found: Sequence[AreaAnswer]) -> Iterator[str]:
    """Many backends, area by area, the least cost first; whoever could not be told is named too."""
    unknown = []
    for area in dict.fromkeys(one.area for one in found):
        own = [one for one in found if one.area == area]
        title = _area(own[0])
        title = title[:1].upper() + title[1:]
        if all(one.outcome is Outcome.SAME for one in own):
            yield f"{title}: no measurable cost on any of the {len(own)}."
        elif all(one.outcome is Outcome.UNKNOWN for one in own):
            unknown.append(title)
        else:
            than = next((told.row.base for one in own for told in one.told if told.row.base is not None), None)
            behind = f", compared with {than.backend.label}" if area == START and than is not None else ""
            yield f"{title}: {'; '.join(_ranked(own))}{behind}."
    if unknown:
        yield f"{listed(unknown)}: this run could not tell."


def _ranked(own: Sequence[AreaAnswer]) -> Iterator[str]:
    """Who costs nothing, who costs how much, and of whom this run could not tell."""
    same, unknown = (
        [one.backend.label for one in own if one.outcome is outcome] for outcome in (Outcome.SAME, Outcome.UNKNOWN)
    )
    told = sorted((one for one in own if one.outcome in (Outcome.WORSE, Outcome.BETTER)), key=_cost)
    if same:
        yield f"no measurable cost on {_named(same, len(own))}"
    if told:
        yield _told_together({one.backend.label: _area_words(one) for one in told})
    if unknown:
        yield f"could not tell for {_named(unknown, len(own))}"


def _named(labels: list[str], n_all: int) -> str:
    """Few backends by name; of more how many they are: ``8 of 10``."""
    return listed(labels) if len(labels) <= _MOST_NAMED else f"{len(labels)} of {n_all}"


def _area_words(answer: AreaAnswer) -> str:
    if answer.area == START:
        return _start(answer, is_plural=True).removeprefix("start ")
    told = answer.first
    found = told.cell.comparison
    if found is None or found.ratio is None:
        return ""
    return f"{change_words(told.row.metric, found.ratio, found)}{_tentative(answer)}"


def _cost(answer: AreaAnswer) -> float:
    found = answer.first.cell.comparison
    ratio = 1.0 if found is None or not found.ratio else found.ratio
    return max(ratio, 1 / ratio) * (1 if answer.outcome is Outcome.WORSE else -1)


def _of_instances(analysis: Analysis) -> Iterator[str]:
    """Whether it was found how many fit, what one more instance takes, and what neighbours take."""
    by_kind = {panel.kind: panel for panel in panels(analysis)}
    if (memory := by_kind.get(PanelKind.MEMORY)) is not None:
        yield from _how_many_fit(analysis)
        yield from _one_more(memory.lines[0])
    if (neighbours := by_kind.get(PanelKind.NEIGHBOURS)) is not None:
        worst: dict[str, float] = {}
        for mark in (mark for line in neighbours.lines for mark in line.marks):
            worst[mark.backend.label] = max(mark.centre, worst.get(mark.backend.label, 0.0))
        shown = {label: longer_words(1 + worst[label]) for label in sorted(worst, key=lambda label: worst[label])}
        yield f"Next to noisy neighbours, work takes at worst {_told_together(shown)}."


def _how_many_fit(analysis: Analysis) -> Iterator[str]:
    results = [one for one in analysis.density if not _is_fenced(analysis, one.cell.backend)]
    asked = [one for one in results if any(ending.was_asked_for for ending in one.cell.endings)]
    if len(asked) == len(results):
        most = max(one.cell.population for one in results)
        yield f"How many fit was not measured: {most:,} ran, as many as were asked for, and nothing ran out."


def _one_more(line: PanelLine) -> Iterator[str]:
    """What one more instance takes of the host's memory, and how much of it is more than the baseline's."""
    base = next((mark for mark in line.marks if mark.backend.is_baseline), None)
    marks = [mark for mark in line.marks if mark is not base] or list(line.marks)
    ordered = sorted(marks, key=lambda mark: mark.centre)
    sizes = {mark.backend.label: format_estimate(mark.centre, mark.low, mark.high, Unit.BYTE) for mark in ordered}
    said = f"Of the host's memory one more instance takes {_told_together(sizes)}"
    if base is not None and base not in marks:
        ends = list(dict.fromkeys(extra_memory(mark, base) for mark in (ordered[0], ordered[-1])))
        first = ends[0].removesuffix(" more") if all(one.endswith(" more") for one in ends[1:]) else ends[0]
        said += f": {' to '.join([first, *ends[1:]] if ends[1:] else ends)} than on {base.backend.label}"
    is_idle = line.subject is None or not line.subject.workload
    yield f"{said}{' (idle instances: what your workload needs is not in it)' if is_idle else ''}."


def _told_together(shown: Mapping[str, str]) -> str:
    """Values by backend in their order, equal ones said once: ``390 KiB on a, 20 MiB on b and c``.

    Of many the ends: ``from 390 KiB on a to 20 MiB on k``.
    """
    if len(shown) > _MOST_NAMED:
        (first, low), *_, (last, high) = shown.items()
        return f"from {low} on {first} to {high} on {last}"
    by_value: dict[str, list[str]] = {}
    for label, text in shown.items():
        by_value.setdefault(text, []).append(label)
    return listed([f"{text} on {listed(labels)}" for text, labels in by_value.items()])


def _is_fenced(analysis: Analysis, name: str) -> bool:
    return any(one.name == name and one.is_fenced for one in analysis.backends)


def _measured_alone(analysis: Analysis) -> str:
    return listed([one.label for one in analysis.backends if one.name in analysis.measured]) or "Nothing"
