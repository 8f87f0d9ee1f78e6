"""``tare fleet``: one suite on many hosts, and what it says about hosts that nobody measured."""

from tare.bench.cli.fleet_report import audit, report
from tare.bench.cli.guard import make_app

app = make_app("fleet", "Run a suite on many hosts; report what they say together, audit plans.")
app.command()(report)
app.command()(audit)
