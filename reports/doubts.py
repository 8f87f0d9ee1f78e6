"""What could be wrong: confounds, flags, noise, corrections in one list, sorted by what they could do to the answer."""

from collections.abc import Iterator

import msgspec

from tare.bench.analysis import Analysis
from tare.bench.readable import one_line, readable
from tare.reports.caveats import caveats
from tare.reports.flags import Flag, FlagKind, flags_of
from tare.reports.names import names_of
from tare.reports.wording import format_ratio, plural

_OTHERS = {FlagKind.STEAL, FlagKind.OTHER_LOAD, FlagKind.THROTTLING, FlagKind.GUEST_CLOCK, FlagKind.CLOCK_STEP}
"""Flags on what only the host or others can do; the rest are milder."""
_WEIGHTS = {3: "could change the answer", 2: "could shift it", 1: "worth knowing"}


class Doubt(msgspec.Struct, frozen=True):
    """Something that could be wrong. ``weight`` is 3 where the answer could change, 1 where it hardly can."""

    weight: int
    code: str
    where: str
    text: str

    @property
    def effect(self) -> str:
        """What it could do, in words."""
        return _WEIGHTS[self.weight]


def doubts(analysis: Analysis) -> list[Doubt]:
    """Every doubt about a run, the weightiest first. What concerns a fenced backend alone changes no answer."""
    fenced = tuple(f"{backend.label}: " for backend in analysis.backends if backend.is_fenced)
    found = [
        Doubt(1 if fenced and one.text.startswith(fenced) else one.weight, one.code, "", readable(one.text))
        for one in caveats(analysis)
    ]
    found += _flag_doubts(analysis)
    if text := noise_sentence(analysis):
        found.append(Doubt(2 if analysis.noise is not None and analysis.noise.false_alarms else 1, "noise", "", text))
    if text := correction_sentence(analysis):
        found.append(Doubt(1, "corrections", "", text))
    return sorted(found, key=lambda one: -one.weight)


def _flag_doubts(analysis: Analysis) -> Iterator[Doubt]:
    """The flags of each kind as one doubt: the worst, and how many other cells have it."""
    labels = {backend.name: backend.label for backend in analysis.backends}
    fenced = {backend.name for backend in analysis.backends if backend.is_fenced}
    names = names_of(analysis)
    found = flags_of(analysis)
    for weight, apart in ((2, False), (1, True)):
        by_kind: dict[FlagKind, list[Flag]] = {}
        for flag in found:
            if (flag.backend in fenced) is apart:
                by_kind.setdefault(flag.kind, []).append(flag)
        for kind, flags in by_kind.items():
            worst = max(flags, key=lambda flag: abs(flag.value))
            known = worst.workload or worst.experiment in analysis.manifest.experiments
            subject = names.subject_of(worst.experiment, worst.workload) if known else worst.where
            where = f"{subject}, {one_line(labels.get(worst.backend, worst.backend))}"
            others = f" {plural(len(flags) - 1, 'more cell')} had this too." if len(flags) > 1 else ""
            yield Doubt(weight if kind in _OTHERS else 1, kind, where, f"{worst.sentence}{others}")


def noise_sentence(analysis: Analysis) -> str:
    """What the baseline against itself says of this run; empty where there is nothing to say."""
    noise = analysis.noise
    if noise is None or analysis.baseline is None:
        return ""
    if noise.detectable is None:
        return "Too few blocks to say how small a difference a run like this detects."
    sentence = (
        f"On this host, a run this long detects differences of about {_excess(noise.detectable)} (nine times in ten)"
    )
    if noise.leading > 1:
        sentence += " in a typical leading measurement"
    if noise.detectable_worst is not None and noise.leading > 1:
        sentence += f", of {_excess(noise.detectable_worst)} in the noisiest"
    alarms = len(noise.false_alarms)
    if noise.tested:
        said = "none" if alarms == 0 else str(alarms)
        sentence += (
            f". Compared with itself, {analysis.baseline.label} differs in {said} of {plural(noise.tested, 'metric')}"
        )
    return f"{sentence}."


def correction_sentence(analysis: Analysis) -> str:
    """How many differences do not survive the correction for many comparisons."""
    lost = sum(one.verdict is not one.verdict_adjusted for *_, one in analysis.comparisons)
    if not lost:
        return ""
    tested = sum(one.p_value is not None for *_, one in analysis.comparisons)
    verb = "does" if lost == 1 else "do"
    what = plural(lost, "difference")
    return f"Of {plural(tested, 'comparison')}, {what} {verb} not survive the correction for many of them."


def _excess(ratio: float) -> str:
    """How far a ratio above 1 is from it, for people: ``3.1 %``, and as a factor from 2."""
    return format_ratio(ratio) if ratio >= 2 else f"{float(f'{(ratio - 1) * 100:.2g}'):g} %"
