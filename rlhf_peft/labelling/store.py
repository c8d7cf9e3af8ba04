"""Pairs and judgements in one SQLite file. A judgement is on the disk before the next pair is shown.

Several processes and several people may write at once: SQLite locks, and each judgement is a row of its own.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError

Choice = Literal["a", "b", "tie", "skip"]
CHOICES = ("a", "b", "tie", "skip")
PATIENCE = 30.0
"""Seconds that a writer waits for another."""
TICK = 1e-6
"""Seconds between two judgements at least."""
SCHEMA = """
create table if not exists pairs (
  id integer primary key, digest text unique not null, prompt text not null, a text not null, b text not null,
  from_a text not null, from_b text not null, priority real not null default 0, source text not null default ''
);
create table if not exists judgements (
  id integer primary key, pair integer not null references pairs(id), annotator text not null,
  choice text not null check (choice in ('a', 'b', 'tie', 'skip')), note text not null default '',
  seconds real not null default 0, at real not null, unique (pair, annotator)
);
create table if not exists settings (name text primary key, value text not null);
create index if not exists judged on judgements (annotator, pair);
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions to be compared.

    Attributes:
        prompt: text, or messages.
        a: a completion.
        b: another.
        from_a: what wrote it ("policy", "reference", a column's name).
        from_b: what wrote the other.
        priority: those with more come first: how far the reward ensemble disagrees.
        source: what they were made with: a run and its adapter; "" for a file's.
        id: in the store; 0 before it is there.
        tools: JSON schemas that the prompt offers; None: none.
    """

    prompt: Any
    a: str
    b: str
    from_a: str = "a"
    from_b: str = "b"
    priority: float = 0.0
    source: str = ""
    id: int = 0
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person said of one pair.

    Attributes:
        pair: its number.
        annotator: who.
        choice: a, b, tie or skip.
        note: in words.
        seconds: that it took.
    """

    pair: int
    annotator: str
    choice: str
    note: str
    seconds: float


class Store:
    """A file of pairs and judgements.

    Args:
        path: of the file; made where it is missing.

    Raises:
        DataError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute("pragma journal_mode=wal")
                connection.executescript(SCHEMA)
        except (sqlite3.DatabaseError, OSError) as error:
            raise DataError(f"{path}: not a file of judgements ({error}). Name another with --db.") from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=PATIENCE)
        connection.row_factory = sqlite3.Row
        connection.execute("pragma synchronous=full")
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    @property
    def instructions(self) -> str:
        """What people are asked to judge by; "": nobody has said it."""
        with self._open() as connection:
            row = connection.execute("select value from settings where name = 'instructions'").fetchone()
        return "" if row is None else str(row["value"])

    @instructions.setter
    def instructions(self, text: str) -> None:
        with self._open() as connection:
            connection.execute("insert or replace into settings values ('instructions', ?)", (text,))

    def add(self, pairs: Sequence[Pair]) -> int:
        """Add pairs; one that is there already stays as it is. Returns how many were new."""
        with self._open() as connection:
            before = connection.total_changes
            connection.executemany(
                "insert or ignore into pairs (digest, prompt, a, b, from_a, from_b, priority, source) "
                "values (?,?,?,?,?,?,?,?)",
                [
                    (
                        _digest(p),
                        json.dumps(_asked(p), ensure_ascii=False),
                        p.a,
                        p.b,
                        p.from_a,
                        p.from_b,
                        p.priority,
                        p.source,
                    )
                    for p in pairs
                ],
            )
            return connection.total_changes - before

    def numbers(self, pairs: Sequence[Pair]) -> list[int]:
        """Those of pairs that are there."""
        with self._open() as connection:
            known = dict(connection.execute("select digest, id from pairs").fetchall())
        return [known[digest] for digest in map(_digest, pairs) if digest in known]

    def next(self, annotator: str, among: Sequence[int] | None = None) -> Pair | None:
        """The pair that this person should look at: not judged by them, least judged by others, most disagreed on."""
        chosen = "" if among is None else f"and p.id in ({_listed(among)})"
        with self._open() as connection:
            row = connection.execute(
                f"""
                select p.*, (select count(*) from judgements j where j.pair = p.id and j.choice != 'skip') as judged
                from pairs p
                where not exists (select 1 from judgements j where j.pair = p.id and j.annotator = ?) {chosen}
                order by judged, p.priority desc, p.id limit 1
                """,
                (annotator,),
            ).fetchone()
        return None if row is None else _pair(row)

    def pair(self, number: int) -> Pair | None:
        """A pair by its number."""
        with self._open() as connection:
            row = connection.execute("select * from pairs where id = ?", (number,)).fetchone()
        return None if row is None else _pair(row)

    def judge(self, pair: int, annotator: str, choice: Choice, note: str = "", seconds: float = 0.0) -> None:
        """Write a judgement down; one that this person gave before is replaced.

        Raises:
            ValueError: it is none of the choices, or there is no such pair.
        """
        if choice not in CHOICES:
            raise ValueError(f"{choice!r} is none of {', '.join(CHOICES)}")
        if self.pair(pair) is None:
            raise ValueError(f"there is no pair {pair}")
        with self._open() as connection:
            connection.execute(
                # Later than all others, also where the clock was set back meanwhile.
                "insert into judgements (pair, annotator, choice, note, seconds, at) values "
                f"(?,?,?,?,?,max(?, coalesce((select max(at) from judgements) + {TICK}, 0))) "
                "on conflict (pair, annotator) do update set choice=excluded.choice, note=excluded.note, "
                "seconds=excluded.seconds, at=excluded.at",
                (pair, annotator, choice, note, seconds, time.time()),
            )

    def undo(self, annotator: str) -> Judgement | None:
        """Take this person's last judgement back; returns it."""
        with self._open() as connection:
            row = connection.execute(
                "select * from judgements where annotator = ? order by at desc, id desc limit 1", (annotator,)
            ).fetchone()
            if row is None:
                return None
            connection.execute("delete from judgements where id = ?", (row["id"],))
        return _judgement(row)

    def pairs(self) -> list[Pair]:
        """All pairs."""
        with self._open() as connection:
            return [_pair(row) for row in connection.execute("select * from pairs order by id")]

    def judgements(self) -> list[Judgement]:
        """All judgements, in the order in which they were given."""
        with self._open() as connection:
            return [_judgement(row) for row in connection.execute("select * from judgements order by at, id")]

    def progress(self, annotator: str, among: Sequence[int] | None = None) -> tuple[int, int]:
        """How many pairs this person has judged, and how many there are."""
        chosen = "" if among is None else f"where p.id in ({_listed(among)})"
        judged = "exists (select 1 from judgements j where j.pair = p.id and j.annotator = ?)"
        with self._open() as connection:
            row = connection.execute(
                f"select coalesce(sum({judged}), 0), count(*) from pairs p {chosen}", (annotator,)
            ).fetchone()
        return int(row[0]), int(row[1])


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(str(int(number)) for number in numbers)


def _digest(pair: Pair) -> str:
    """The same for a pair whichever completion is first."""
    text = json.dumps(
        [_asked(pair), pair.source, sorted([[pair.a, pair.from_a], [pair.b, pair.from_b]])], sort_keys=True
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _asked(pair: Pair) -> Any:
    """The prompt as the store keeps it: with its tools where it has any."""
    return pair.prompt if pair.tools is None else {"prompt": pair.prompt, "tools": pair.tools}


def _pair(row: sqlite3.Row) -> Pair:
    asked = json.loads(row["prompt"])
    prompt, tools = (asked["prompt"], asked["tools"]) if isinstance(asked, dict) else (asked, None)
    return Pair(
        prompt,
        row["a"],
        row["b"],
        row["from_a"],
        row["from_b"],
        row["priority"],
        row["source"],
        row["id"],
        tools,
    )


def _judgement(row: sqlite3.Row) -> Judgement:
    return Judgement(row["pair"], row["annotator"], row["choice"], row["note"], row["seconds"])
