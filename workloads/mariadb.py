"""MariaDB: sysbench's OLTP transactions, with the percentile and the histogram that sysbench prints.

The database is made inside the instance below the scratch folder, where the server runs as the ordinary user ``mysql``.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.model import SCRATCH, SERVER, Command, Commands, Completed, Envelope, Histogram, Measurement, Service
from tare.bench.traits import Parameter
from tare.bench.units import Unit
from tare.workloads.metrics import rate_of
from tare.workloads.output import LINES, one_match, positive, read_output, refuse
from tare.workloads.parameters import (
    READY_WITHIN_S,
    START_MARGIN_S,
    TimedWorkload,
    WholeSeconds,
    require_scratch,
    timeout_of,
)
from tare.workloads.sysbench import EVENTS, SYSBENCH, check_frame, declare_latencies, read_buckets, read_latencies

_PORT = "23306"
"""Not MariaDB's own, which a server of the host's may have where an instance shares the host's network."""
_FOLDER = f"{SCRATCH}/mariadb"
_USER = "tare"
_DATABASE = "sbtest"

_MAKE = f"""\
set -e
mkdir {_FOLDER}
chown mysql:mysql {_FOLDER}
mariadb-install-db --no-defaults --user=mysql --datadir={_FOLDER}/data --auth-root-authentication-method=normal \
  --skip-test-db --skip-name-resolve --innodb-log-file-size="$1"
cat >{_FOLDER}/begin.sql
"""
_BEGIN_SQL = f"""\
CREATE DATABASE IF NOT EXISTS {_DATABASE};
CREATE USER IF NOT EXISTS {_USER}@'%' IDENTIFIED BY '';
GRANT ALL ON {_DATABASE}.* TO {_USER}@'%';
"""

_SYSTEM_BYTES = 64 * 2**20
_ROW_BYTES = 400

_TRANSACTIONS = re.compile(r"^    transactions: +(\d{1,15}) +\((\d+\.\d\d) per sec\.\)$", LINES)
_QUERIES = re.compile(r"^    queries: +(\d{1,15}) +\((\d+\.\d\d) per sec\.\)$", LINES)
_RECONNECTS = re.compile(r"^    reconnects: +(\d{1,15}) +\(\d+\.\d\d per sec\.\)$", LINES)


class MariaDB(TimedWorkload):
    """Each transaction is 14 reads (and 4 writes in ``read-write``), each a round trip, within BEGIN and COMMIT."""

    name = "mariadb"
    summary = "a database: sysbench's OLTP transactions over TCP, on the envelope's storage"
    title = "Database (MariaDB)"
    parameters = (
        Parameter("mode", "Mode"),
        Parameter("tables", "Tables"),
        Parameter("rows", "Rows"),
        Parameter("clients", "Clients"),
        Parameter("runtime_s", "Run time (s)"),
    )
    packages = ("mariadb-server", "sysbench")
    licence = "GPL-2.0-only (MariaDB), GPL-2.0-or-later (sysbench)"
    metrics = (
        rate_of("sql.transactions_per_second", "Transactions per second of all clients.", "Transactions per second"),
        rate_of(
            "sql.queries_per_second",
            "Statements per second of all clients, BEGIN and COMMIT included.",
            "Statements per second",
        ),
        *declare_latencies("sql.latency", "a transaction", "Transaction time"),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``tables`` of ``rows`` each; ``clients`` are sysbench's threads."""

        mode: Literal["read-only", "read-write"] = "read-write"
        tables: Annotated[int, Meta(ge=1, le=1000)] = 1
        rows: Annotated[int, Meta(ge=100, le=100_000_000)] = 10_000
        clients: Annotated[int, Meta(ge=1, le=1000)] = 1
        runtime_s: WholeSeconds = 1

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """A quarter of the memory for the buffer pool, an eighth of the scratch folder at most for the redo log.

        Raises WorkloadError if the data does not fit the scratch folder of ``envelope``.
        """
        redo = min(96 * 2**20, max(4 * 2**20, envelope.scratch_bytes // 8))
        rows = params.tables * params.rows
        needed = _SYSTEM_BYTES + redo + rows * _ROW_BYTES
        what = f"mariadb's data (tables = {params.tables}, rows = {params.rows})"
        require_scratch(envelope, needed, what, "fewer rows")
        server = (
            *("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={_FOLDER}/data", f"--bind-address={SERVER}"),
            *(f"--port={_PORT}", f"--socket={_FOLDER}/socket", f"--pid-file={_FOLDER}/pid", "--skip-name-resolve"),
            *(f"--innodb-buffer-pool-size={envelope.memory_bytes // 4}", f"--innodb-log-file-size={redo}"),
            *(f"--max-connections={params.clients + 10}", f"--init-file={_FOLDER}/begin.sql"),
        )
        ready = (
            *("mariadb-admin", "--no-defaults", "--protocol=tcp", f"--host={SERVER}", f"--port={_PORT}"),
            *(f"--user={_USER}", "ping"),
        )
        test = (
            *("sysbench", f"oltp_{params.mode.replace('-', '_')}", "--db-driver=mysql", f"--mysql-host={SERVER}"),
            *(f"--mysql-port={_PORT}", f"--mysql-user={_USER}", f"--mysql-db={_DATABASE}"),
            *(f"--tables={params.tables}", f"--table-size={params.rows}"),
        )
        run = (
            # The same rows in the same order on every backend.
            *("--rand-seed=1", f"--threads={params.clients}", f"--time={params.runtime_s}"),
            *("--histogram=on", "run"),
        )
        return Commands(
            measured=Command((*test, *run), timeout_s=timeout_of(params.runtime_s)),
            setup=(Command(("sh", "-c", _MAKE, "sh", str(redo)), stdin=_BEGIN_SQL.encode(), timeout_s=300.0),),
            services=(Service("mariadb", Command(server), Command(ready), READY_WITHIN_S),),
            load=(Command((*test, "prepare"), timeout_s=START_MARGIN_S + rows / 500),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """Rates as sysbench prints them; its counts must agree. A transaction retried after a deadlock counts once."""
        text = read_output(SYSBENCH, completed)
        check_frame(text)
        if (lost := one_match(SYSBENCH, "the reconnects", _RECONNECTS, text)[1]) != "0":
            refuse(SYSBENCH, f"it lost its connection {lost} times", text)
        transactions = one_match(SYSBENCH, "the transactions", _TRANSACTIONS, text)
        queries = one_match(SYSBENCH, "the queries", _QUERIES, text)
        if transactions[1] != one_match(SYSBENCH, "the number of events", EVENTS, text)[1]:
            refuse(SYSBENCH, "transactions and events differ in number", text)
        return [
            Measurement("sql.transactions_per_second", positive(SYSBENCH, "the rate", transactions[2], text)),
            Measurement("sql.queries_per_second", positive(SYSBENCH, "the rate of queries", queries[2], text)),
            *read_latencies(text, "sql.latency"),
        ]

    def histograms(self, completed: Completed) -> list[Histogram]:
        buckets = read_buckets(read_output(SYSBENCH, completed))
        bounds, counts = zip(*buckets, strict=True)
        return [Histogram("sql.latency", Unit.SECOND, bounds, counts)]
