"""The report as one HTML file that needs nothing else: no network, no second file, and no script to be read."""

import base64
import functools
import gzip
import json
import re
from pathlib import Path
from typing import Any

from tare.bench.analysis import Analysis, RunResults
from tare.bench.readable import one_line, readable
from tare.bench.reporter import Reporter

TEMPLATES = Path(__file__).with_name("templates")
MOST_IN_OPTION = 60


class HtmlReporter(Reporter):
    """One self-contained page: verdicts first, then figures, then everything needed to doubt them."""

    name = "html"
    summary = "one HTML file to read and to mail, which needs no network"
    suffix = ".html"

    def write(self, results: RunResults, output: Path) -> None:
        output.write_text(render_page(results.analysis, output.parent), "utf-8")


def render_page(analysis: Analysis, beside: Path | None = None) -> str:
    """The page, to lie in the folder ``beside``: it links to samples that are there."""
    import jinja2

    from tare.reports.page import page_context

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["oneline"] = lambda text: one_line(text, MOST_IN_OPTION)
    context = page_context(analysis, beside)
    template = environment.get_template("report.html.j2")
    return template.render(
        **context,
        style=(TEMPLATES / "report.css").read_text("utf-8"),
        script=(TEMPLATES / "report.js").read_text("utf-8"),
        engine=_packed_engine(),
        charts=_packed(json.dumps(_specs(context), separators=(",", ":"))),
    )


def _finalize(value: object) -> object:
    """Every text that the template shows passes here, before it is escaped."""
    from markupsafe import Markup

    return readable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> object:
    """A name that may be broken after its dots and underscores."""
    from markupsafe import Markup, escape

    # As str: joining pieces of Markup escapes them again.
    escaped = str(escape(readable(name)))
    return Markup(re.sub(r"([._])", r"\1<wbr>", escaped))  # noqa: S704 - escaped, then only <wbr> added


def _specs(context: dict[str, Any]) -> dict[str, Any]:
    from tare.reports.charts import chart_config, short_label

    subjects = [subject for section in context["sections"] for subject in section.subjects]
    charts = {panel.name: panel.chart.spec for subject in subjects for row in subject.rows for panel in row.panels}
    charts |= {tail.chart_name: tail.chart.spec for subject in subjects for tail in subject.tails}
    if context["phases"] is not None:
        charts |= {bar.name: bar.chart.spec for bar in context["phases"].bars}
    if context["capacity"] is not None:
        curves = [curve for *_, own in context["capacity"].curves for curve in own]
        charts |= {curve.name: curve.chart.spec for curve in curves}
    if context["costs"] is not None:
        charts |= {bar.name: bar.chart.spec for bar in context["costs"].bars}
    places = {short_label(backend): backend.place for backend in context["backends"]}
    return {"config": chart_config(), "backends": places, "charts": charts}


@functools.cache
def _packed_engine() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, packed. Bundling takes seconds: once a process."""
    import vl_convert

    return _packed(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _packed(text: str) -> str:
    """Compressed, in letters that are safe inside a script element. The browser unpacks it (DecompressionStream)."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode("ascii")
