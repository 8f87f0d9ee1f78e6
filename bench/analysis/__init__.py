"""What a run says: cells, warm-up, estimates, verdicts, noise floor. Computed once, held in one immutable value.

``analyse`` makes it from a loaded run. Reports format it; ``tare compare`` and ``tare plan`` begin with it. Adaptive
sampling and the noise suite go the same way for single cells: ``cells``, then ``estimates``.
"""

from tare.bench.analysis.cells import Points
from tare.bench.analysis.estimates import RunResults, analyse
from tare.bench.analysis.grade import Grade, GradeLevel
from tare.bench.analysis.results import Analysis, CellResult, MeasuredBackend, Row, RunNoise, Subject

__all__ = [
    "Analysis",
    "CellResult",
    "Grade",
    "GradeLevel",
    "MeasuredBackend",
    "Points",
    "Row",
    "RunNoise",
    "RunResults",
    "Subject",
    "analyse",
]
