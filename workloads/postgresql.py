"""PostgreSQL: transactions by pgbench, whose log of every one is counted, so that there are percentiles of all of them.

The cluster is made and filled inside the instance by the ordinary user ``postgres``, below the scratch folder.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.model import SCRATCH, SERVER, Command, Commands, Completed, Envelope, Histogram, Measurement, Service
from tare.bench.traits import Parameter
from tare.bench.units import Unit
from tare.workloads.metrics import percentiles_of, rate_of, time_of
from tare.workloads.output import LINES, nearest_rank, one_match, one_number, positive, read_output, refuse
from tare.workloads.parameters import (
    READY_WITHIN_S,
    START_MARGIN_S,
    TimedWorkload,
    WholeSeconds,
    require_scratch,
    timeout_of,
)

_TOOL = "pgbench"
_PORT = "25432"
"""Not PostgreSQL's own, which a server of the host's may have where an instance shares the host's network."""
_FOLDER = f"{SCRATCH}/postgresql"
_LOG = f"{SCRATCH}/pgbench"
_USER = "tare"
_BINARIES = "PATH=$(echo /usr/lib/postgresql/*/bin):$PATH"
"""Debian's own programs of these names are scripts that choose a cluster."""
_ORDINARY = "setpriv --reuid=postgres --regid=postgres --clear-groups --"

_MAKE = f"""\
set -e
{_BINARIES}
mkdir {_FOLDER}
chown postgres:postgres {_FOLDER}
cd {_FOLDER}
{_ORDINARY} initdb -D data -U {_USER} -A trust -E UTF8 --locale=C --no-sync --no-instructions
echo 'host all all 0.0.0.0/0 trust' >>data/pg_hba.conf
"""
_SERVE = f'{_BINARIES}; cd {_FOLDER} && exec {_ORDINARY} postgres -D data "$@"'
_ASK = f'{_BINARIES}; exec "$@"'
_CHECK = """\
set -e
found=$(psql --no-psqlrc -At -c 'SELECT count(*) FROM pgbench_accounts' postgres)
[ "$found" = "$1" ] || { echo "pgbench_accounts has $found rows instead of $1" >&2; exit 1; }
psql --no-psqlrc -q -c CHECKPOINT postgres
"""
_MEASURE = f"""\
{_BINARIES}
rm -f {_LOG}.*
pgbench --log --log-prefix={_LOG} "$@" || exit
echo 'latency us, transactions:'
cat {_LOG}.* | awk '{{ counts[$3]++ }} END {{ for (latency in counts) print latency, counts[latency] }}' | sort -n
echo counted all
rm -f {_LOG}.*
"""

_CLUSTER_BYTES = 48 * 2**20
_SCALE_BYTES = 24 * 2**20
_LOG_BYTES_PER_S = 2**20
_LEAST_WAL_BYTES = 64 * 2**20
_ROWS = 100_000

_BEGIN = re.compile(r"\Apgbench \(1\d\.\d+[^\n]*\)\ntransaction type: <builtin: [^\n]*>\n", re.ASCII)
_TRANSACTIONS = re.compile(r"^number of transactions actually processed: (\d{1,15})$", LINES)
_FAILED = re.compile(r"^number of failed transactions: (\d+) \(\d+\.\d{3}%\)$", LINES)
_MEAN = re.compile(r"^latency average = (\d+\.\d{3}) ms$", LINES)
_RATE = re.compile(r"^tps = (\d+\.\d{6}) \(without initial connection time\)$", LINES)
_COUNTS = re.compile(r"^latency us, transactions:\n((?:\d{1,12} \d{1,15}\n)+)counted all\n*\Z", LINES)
_MORE_THAN_MEAN = 1.1
_PERCENTILES = ("p50", "p95", "p99", "p99.9")


class PostgreSQL(TimedWorkload):
    """With a script that writes, each transaction waits for the storage at its end; without, it is CPU and network."""

    name = "postgresql"
    summary = "a database: pgbench's transactions over TCP, on the envelope's storage"
    title = "Database (PostgreSQL)"
    parameters = (
        Parameter("script", "Script"),
        Parameter("scale", "Scale"),
        Parameter("clients", "Clients"),
        Parameter("protocol", "Protocol"),
        Parameter("runtime_s", "Run time (s)"),
    )
    packages = ("postgresql",)
    licence = "PostgreSQL"
    overhead_s = 0.2
    metrics = (
        rate_of(
            "sql.transactions_per_second",
            "Transactions per second of all clients, without the time to connect.",
            "Transactions per second",
        ),
        time_of("sql.latency.mean", "Mean time of a transaction.", "Transaction time, mean"),
        *percentiles_of("sql.latency", _PERCENTILES, "of a transaction", "to 1 µs", "Transaction time"),
        time_of(
            "sql.latency.max",
            "Longest time of a transaction; a single event such as a checkpoint decides it.",
            "Transaction time, longest",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``scale`` times 100,000 rows are 16 MB each; with fewer than ``clients``, clients wait for one another."""

        script: Literal["tpcb-like", "simple-update", "select-only"] = "tpcb-like"
        scale: Annotated[int, Meta(ge=1, le=10_000)] = 1
        clients: Annotated[int, Meta(ge=1, le=1000)] = 1
        protocol: Literal["simple", "extended", "prepared"] = "prepared"
        runtime_s: WholeSeconds = 1

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """A quarter of the memory for shared buffers, a quarter of the scratch folder at most for the write-ahead log.

        Raises WorkloadError if the data does not fit the scratch folder of ``envelope``.
        """
        wal = max(_LEAST_WAL_BYTES, envelope.scratch_bytes // 4)
        needed = _CLUSTER_BYTES + wal + params.scale * _SCALE_BYTES + params.runtime_s * _LOG_BYTES_PER_S
        what = f"postgresql's data (scale = {params.scale}, runtime_s = {params.runtime_s})"
        require_scratch(envelope, needed, what, "a smaller scale")
        settings = {
            "listen_addresses": SERVER,
            "port": _PORT,
            "unix_socket_directories": "",
            "max_connections": params.clients + 10,
            "shared_buffers": f"{envelope.memory_bytes // 4 // 1024}kB",
            "max_wal_size": f"{wal // 2**20}MB",
            "min_wal_size": "32MB",
        }
        server = ("sh", "-c", _SERVE, "postgres", *(f"--{name}={value}" for name, value in settings.items()))
        env = {"PGHOST": SERVER, "PGPORT": _PORT, "PGUSER": _USER, "LC_ALL": "C"}
        ready = ("sh", "-c", _ASK, "sh", "pg_isready", "-q", "-d", "postgres")
        fill = ("sh", "-c", _ASK, "sh", "pgbench", "-i", "-q", "-s", str(params.scale), "postgres")
        check = ("sh", "-c", f"{_BINARIES}\n{_CHECK}", "sh", str(params.scale * _ROWS))
        fill_s = START_MARGIN_S + 60.0 * params.scale
        measured = (
            *("sh", "-c", _MEASURE, "sh", "-n", f"--builtin={params.script}", f"--protocol={params.protocol}"),
            *(f"--client={params.clients}", f"--jobs={min(params.clients, len(envelope.cpus))}"),
            # The same rows in the same order on every backend.
            *(f"--time={params.runtime_s}", "--random-seed=1", "postgres"),
        )
        return Commands(
            measured=Command(measured, env=env, timeout_s=timeout_of(params.runtime_s)),
            setup=(Command(("sh", "-c", _MAKE), env={"LC_ALL": "C"}, timeout_s=300.0),),
            services=(
                Service("postgresql", Command(server, env={"LC_ALL": "C"}), Command(ready, env=env), READY_WITHIN_S),
            ),
            load=(Command(fill, env=env, timeout_s=fill_s), Command(check, env=env, timeout_s=fill_s)),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """The rate as pgbench prints it; latencies of its log, which has every transaction."""
        text = read_output(_TOOL, completed)
        one_match(_TOOL, "the beginning", _BEGIN, text)
        if (failed := one_match(_TOOL, "the failed transactions", _FAILED, text)[1]) != "0":
            refuse(_TOOL, f"{failed} transactions failed", text)
        counts = _read_counts(text)
        total, done = sum(count for _, count in counts), one_match(_TOOL, "the transactions", _TRANSACTIONS, text)[1]
        if total != int(done) or [latency for latency, _ in counts] != sorted({int(latency) for latency, _ in counts}):
            refuse(_TOOL, f"its log does not hold the {done} transactions", text)
        # pgbench's own is the clients' time for each, in which other things have their part.
        mean_us = sum(latency * count for latency, count in counts) / total
        if mean_us > (clients_s := one_number(_TOOL, "the mean", _MEAN, text, exponent=-3)) * 1e6 * _MORE_THAN_MEAN:
            refuse(_TOOL, f"its log has a mean of {mean_us:g} µs, and it says {clients_s:g} s", text)
        latencies = [
            (f"sql.latency.{name}", nearest_rank(counts, total, round(float(name[1:]) * 10))) for name in _PERCENTILES
        ]
        return [
            Measurement("sql.transactions_per_second", one_number(_TOOL, "the rate", _RATE, text)),
            Measurement("sql.latency.mean", positive(_TOOL, "the mean", repr(mean_us), text, exponent=-6)),
            *(
                Measurement(metric, positive(_TOOL, metric, str(value), text, exponent=-6))
                for metric, value in (*latencies, ("sql.latency.max", counts[-1][0]))
            ),
        ]

    def histograms(self, completed: Completed) -> list[Histogram]:
        counts = _read_counts(read_output(_TOOL, completed))
        bounds = tuple(latency / 1e6 for latency, _ in counts)
        return [Histogram("sql.latency", Unit.SECOND, bounds, tuple(count for _, count in counts))]


def _read_counts(text: str) -> list[tuple[int, int]]:
    """Latencies in µs, rising, each with how many transactions took so long."""
    table = one_match(_TOOL, "the table of latencies", _COUNTS, text)[1]
    return [(int(latency), int(count)) for latency, _, count in (line.partition(" ") for line in table.splitlines())]
