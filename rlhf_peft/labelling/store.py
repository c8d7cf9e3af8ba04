"""Stores pairs and judgements in one SQLite file. A judgement is on the disk before the next pair is shown.

Several processes and people may write at once: SQLite locks the file, and each judgement is one row.
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
"""Seconds that a writer waits for another one to finish."""
TICK = 1e-6
"""Least difference of the times of two judgements, in seconds."""
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
        a: one completion.
        b: the other completion.
        from_a: origin of a ("policy", "reference", a column's name).
        from_b: origin of b.
        priority: pairs with a higher priority are shown first; the disagreement of the reward ensemble.
        source: the run and its adapter that made them; "" for a pair from a file.
        id: number in the store; 0 before it is stored.
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
    """One person's judgement of one pair.

    Attributes:
        pair: number of the pair.
        annotator: name of the person.
        choice: a, b, tie or skip.
        note: the person's remark.
        seconds: time that the judgement took.
    """

    pair: int
    annotator: str
    choice: str
    note: str
    seconds: float


class Store:
    """A file of pairs and judgements.

    Args:
        path: path of the file; it is created if it does not exist.

    Raises:
        DataError: the file is something else.
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
        """A connection that commits at the end of the context."""
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
        """The instructions for annotators; "" if none were set."""
        with self._open() as connection:
            row = connection.execute("select value from settings where name = 'instructions'").fetchone()
        return "" if row is None else str(row["value"])

    @instructions.setter
    def instructions(self, text: str) -> None:
        with self._open() as connection:
            connection.execute("insert or replace into settings values ('instructions', ?)", (text,))

    def add(self, pairs: Sequence[Pair]) -> int:
        """Add pairs; a pair that is already stored stays as it is. Returns the number of new pairs."""
        with self._open() as connection:
            before = connection.total_changes
            connection.executemany(
                "insert or ignore into pairs (digest, prompt, a, b, from_a, from_b, priority, source) "
                "values (?,?,?,?,?,?,?,?)",
                [
                    (
                        _digest(p),
                        json.dumps(_stored_prompt(p), ensure_ascii=False),
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
        """Numbers of those of the pairs that are stored."""
        with self._open() as connection:
            stored = dict(connection.execute("select digest, id from pairs").fetchall())
        return [stored[digest] for digest in map(_digest, pairs) if digest in stored]

    def next(self, annotator: str, among: Sequence[int] | None = None) -> Pair | None:
        """The next pair for this person: not judged by them, least judged by others, with the highest priority."""
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
        """The pair with this number, or None."""
        with self._open() as connection:
            row = connection.execute("select * from pairs where id = ?", (number,)).fetchone()
        return None if row is None else _pair(row)

    def judge(self, pair: int, annotator: str, choice: Choice, note: str = "", seconds: float = 0.0) -> None:
        """Save a judgement; an earlier one of this person about the pair is replaced.

        Raises:
            ValueError: the choice is unknown, or there is no such pair.
        """
        if choice not in CHOICES:
            raise ValueError(f"{choice!r} is none of {', '.join(CHOICES)}")
        if self.pair(pair) is None:
            raise ValueError(f"there is no pair {pair}")
        with self._open() as connection:
            connection.execute(
                # The time is later than that of all others, even if the clock was set back meanwhile.
                "insert into judgements (pair, annotator, choice, note, seconds, at) values "
                f"(?,?,?,?,?,max(?, coalesce((select max(at) from judgements) + {TICK}, 0))) "
                "on conflict (pair, annotator) do update set choice=excluded.choice, note=excluded.note, "
                "seconds=excluded.seconds, at=excluded.at",
                (pair, annotator, choice, note, seconds, time.time()),
            )

    def undo(self, annotator: str) -> Judgement | None:
        """Remove this person's last judgement, and return it; None if there is none."""
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
        """All judgements, in the order in which they were made."""
        with self._open() as connection:
            return [_judgement(row) for row in connection.execute("select * from judgements order by at, id")]

    def progress(self, annotator: str, among: Sequence[int] | None = None) -> tuple[int, int]:
        """Number of pairs that this person has judged, and number of all pairs."""
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
    """A digest of a pair that does not depend on the order of its completions."""
    text = json.dumps(
        [_stored_prompt(pair), pair.source, sorted([[pair.a, pair.from_a], [pair.b, pair.from_b]])],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _stored_prompt(pair: Pair) -> Any:
    """The prompt as it is stored: together with its tools, if it has any."""
    return pair.prompt if pair.tools is None else {"prompt": pair.prompt, "tools": pair.tools}


def _pair(row: sqlite3.Row) -> Pair:
    stored_prompt = json.loads(row["prompt"])
    prompt, tools = (
        (stored_prompt["prompt"], stored_prompt["tools"])
        if isinstance(stored_prompt, dict)
        else (stored_prompt, None)
    )
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
