"""What limits a run's results: what is missing, what may mislead, what differs other than isolation."""

from collections.abc import Iterator

import msgspec

from tare.bench.analysis import Analysis
from tare.bench.analysis.estimates import host_virtualization
from tare.bench.analysis.grade import is_untested
from tare.bench.catalogue import CONFOUND_WEIGHTS, ConfoundCode, NoteCode
from tare.bench.readable import one_line
from tare.bench.records import RunStatus
from tare.bench.stats.comparisons import differs
from tare.bench.stats.precision import Standing
from tare.reports.density_costs import SKEWED_COSTS
from tare.reports.names import names_of
from tare.reports.wording import TENTATIVE, percent, plural

MOST_NAMED = 4
MOST_TENTATIVE = 2
_VIRTUAL_HOST = (
    'The host is itself a virtual machine, so "host" here is not bare metal; results on hardware may differ.'
)
"""In the same words whenever the run was made; the hypervisor's name is among the host's facts."""
FEW_BLOCKS = 4
"""Below this, Student's t makes intervals so wide that only large differences can be told."""


class Caveat(msgspec.Struct, frozen=True):
    """Something to keep in mind. ``code`` is stable; the weight is 3 if results are missing, 2 if they may mislead."""

    code: str
    text: str
    weight: int = 1


def suite_title(analysis: Analysis) -> str:
    """The suite's name, as the run's manifest has it."""
    return one_line(suite_text(analysis, "name") or analysis.manifest.run)


def suite_text(analysis: Analysis, key: str) -> str:
    """What the suite says of itself under ``key``; empty if it does not."""
    suite = analysis.manifest.suite
    head = suite.get("suite")
    return str((head if isinstance(head, dict) else suite).get(key) or "")


def caveats(analysis: Analysis) -> list[Caveat]:
    """What limits the results, the weightiest first."""
    found = [
        *_about_the_run(analysis),
        *_about_backends(analysis),
        *_about_blocks(analysis),
        *_about_precision(analysis),
        *_about_warm_up(analysis),
    ]
    found.extend(_about_dependence(analysis))
    found.extend(_about_tentative(analysis))
    if analysis.density:
        found.append(Caveat(NoteCode.COSTS_SKEWED, SKEWED_COSTS))
    # The harness lists a backend's confounds with the host's too: each is said once.
    found.extend(dict.fromkeys(_confounds(analysis)))
    virtual = host_virtualization(analysis.manifest)
    if virtual is not None and all(caveat.code != ConfoundCode.HOST_VIRTUAL for caveat in found):
        found.append(Caveat(ConfoundCode.HOST_VIRTUAL, _VIRTUAL_HOST, 2))
    return sorted(found, key=lambda caveat: -caveat.weight)


def _about_the_run(analysis: Analysis) -> Iterator[Caveat]:
    manifest = analysis.manifest
    if manifest.status is not RunStatus.COMPLETE:
        measured = len(analysis.run.samples.distinct("instance"))
        word = "was interrupted" if manifest.status is RunStatus.INTERRUPTED else "has not ended, or was killed"
        text = f"The run {word}: {measured} of {manifest.planned_instances} planned instances are in this report."
        yield Caveat("run-incomplete", text, 3)
    if analysis.baseline is None and analysis.subjects:
        name, known = one_line(manifest.baseline), {**manifest.backends, **manifest.unavailable}
        missing = f"The baseline {name} was not measured"
        if name not in known:
            missing = f"The run names {name} as its baseline, which is none of its backends ({', '.join(known)})"
        yield Caveat("no-baseline", f"{missing}: there are values, but no ratios and no verdicts.", 3)
    yield from (Caveat("data", f"{warning.rstrip('.')}.", 2) for warning in analysis.run.warnings)
    if analysis.failures:
        cells = {event.cell for event in analysis.failures}
        failed = f"{plural(len(analysis.failures), 'instance')} failed, in {plural(len(cells), 'cell')}"
        yield Caveat("failures", f"{failed}; see Failures for the reasons.", 3)


def _about_backends(analysis: Analysis) -> Iterator[Caveat]:
    unavailable, measured = analysis.manifest.unavailable, analysis.measured
    for name, availability in unavailable.items():
        text = f"{name} was asked for and is not available here: {availability.reason.rstrip('.')}."
        yield Caveat("unavailable", text, 3)
    for backend in analysis.backends:
        if backend.name not in measured and backend.name not in unavailable and not backend.is_baseline:
            yield Caveat("no-samples", f"{backend.label} has no measurement that counts in this run.", 3)


def _about_blocks(analysis: Analysis) -> Iterator[Caveat]:
    counts = [found.n_blocks for _, _, _, found in analysis.comparisons if found.ratio is not None]
    if single := counts.count(1):
        which = f"All {single}" if single == len(counts) else f"{single} of {len(counts)}"
        yield Caveat("one-block", f"{which} ratios come from one block: they have no interval and no verdict.", 3)
    if any(1 < count < FEW_BLOCKS for count in counts):
        text = f"Some intervals rest on fewer than {FEW_BLOCKS} blocks and are therefore wide; more blocks narrow them."
        yield Caveat("few-blocks", text, 2)


def _about_precision(analysis: Analysis) -> Iterator[Caveat]:
    """Which cells did not reach the precision that the suite asked for, and what it would have taken."""
    yield from (Caveat("not-estimated", f"{note.rstrip('.')}.", 1) for note in analysis.notes)
    missed = [
        (subject, cell, cell.precision)
        for subject, _, cell in analysis.cells
        if cell.precision is not None and cell.precision.standing is not Standing.REACHED
    ]
    if missed:
        parts = []
        for subject, cell, precision in missed[:MOST_NAMED]:
            needs = f"about {plural(precision.needed, 'block')}" if precision.needed else precision.note or "unknown"
            parts.append(f"{subject.name} on {cell.backend.label} ({precision.n_blocks} of {needs})")
        more = f" and {len(missed) - MOST_NAMED} more" if len(missed) > MOST_NAMED else ""
        text = f"The precision asked for ({percent(missed[0][2].wanted)}) was not reached for {'; '.join(parts)}{more}."
        yield Caveat("precision", text, 2)


def _about_warm_up(analysis: Analysis) -> Iterator[Caveat]:
    """Where iterations beyond the suite's own count were found to be warm-up, and where cells never settled."""
    for subject, row in analysis.rows:
        if not row.is_leading:
            continue
        for cell in row.cells:
            if not cell.warm_up.settled:
                text = (
                    f"{subject.name} on {cell.backend.label} has not settled: its iterations still change beyond the "
                )
                yield Caveat("not-settled", f"{text}first half; state more of them, or more warm-up.", 2)
        taken = max((cell.warm_up.iterations for cell in row.cells), default=0)
        if taken:
            which = "first iteration" if taken == 1 else f"first {taken} iterations"
            text = f"{subject.name}: the {which} of each instance turned out to be warm-up, and does not count on any"
            yield Caveat("warm-up", f"{text} backend.")


def _about_dependence(analysis: Analysis) -> Iterator[Caveat]:
    """Whose neighbouring blocks depend on one another, and where there are too few blocks to show it."""
    labels = {backend.name: backend.label for backend in analysis.backends}
    for backend, found in analysis.dependence.items():
        if found.lag1 > 0:
            text = (
                f"{labels[backend]}: ratios of neighbouring blocks resemble each other (correlation {found.lag1:.1f}); "
                "its intervals are wider for it."
            )
            yield Caveat(NoteCode.BLOCKS_DEPENDENT, text, 2)
    untested = [found for *_, found in analysis.comparisons if is_untested(found)]
    if untested:
        text = (
            "The blocks are too few to show whether neighbouring ones resemble each other. On a host where they do, up "
            "to one verdict in five is wrong."
        )
        yield Caveat(NoteCode.BLOCKS_UNTESTED, text, 2)


def _about_tentative(analysis: Analysis) -> Iterator[Caveat]:
    """Which differences would not survive a skewness that few blocks may hide; weighty if an answer rests on one."""
    real = [one for one in analysis.comparisons if not one[2].backend.is_fenced and differs(one[3].verdict_adjusted)]
    tentative = [one for one in real if one[3].is_tentative]
    if not tentative:
        return
    names = names_of(analysis)
    tentative.sort(key=lambda one: not one[1].is_leading)
    listed = [
        f"{names.subject(subject)}, {names.row(subject, row)}, {cell.backend.label}"
        for subject, row, cell, _ in tentative
    ]
    more = f" and {len(tentative) - MOST_TENTATIVE} more" if len(tentative) > MOST_TENTATIVE else ""
    is_one = len(tentative) == 1
    text = (
        f"Of {plural(len(real), 'difference')} found in this run {len(tentative)} {'is' if is_one else 'are'} "
        f"{TENTATIVE} ({'; '.join(listed[:MOST_TENTATIVE])}{more}): a few unusual blocks could have caused "
        f"{'it' if is_one else 'them'}. More blocks settle it."
    )
    yield Caveat(NoteCode.TENTATIVE, text, 2 if tentative[0][1].is_leading else 1)


def _confounds(analysis: Analysis) -> Iterator[Caveat]:
    labels = {backend.name: backend.label for backend in analysis.backends}
    described = [confound for one in analysis.manifest.backends.values() for confound in one.confounds]
    for confound in (*described, *analysis.manifest.confounds):
        opening = f"{labels.get(confound.backend, confound.backend)}: " if confound.backend else ""
        weight = CONFOUND_WEIGHTS.get(confound.code, 1)
        text = _VIRTUAL_HOST if confound.code == ConfoundCode.HOST_VIRTUAL else f"{confound.detail.rstrip('.')}."
        yield Caveat(confound.code, f"{opening}{text}", weight)
