"""Questions in SQL: what the views hold, what a query may not do, the same order again."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from mmulab.errors import InputError
from mmulab.report.query import connect, frame, listing, query, query_arrow
from mmulab.report.results import Table
from tests.report.folders import Made, make_folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three runs, one of them missing."""
    first = Table("wrong", ["case", "gpa"], [["x", 2**64 - 1], ["y", 0]])
    return make_folder(
        tmp_path / "out",
        Made("r1", [first], {"design": "D0"}, result="2"),
        Made("r2", [Table("wrong", ["case", "gpa"], [["x", None]])], {"design": "D1"}),
        Made("r3", state="missing", parameters={"design": "D2"}),
    )


def test_view_has_all_runs_with_their_parameters(out: Path) -> None:
    assert query(out, "select * from wrong") == Table(
        "query",
        ["run", "p_design", "case", "gpa"],
        [["r1", "D0", "x", 2**64 - 1], ["r1", "D0", "y", 0], ["r2", "D1", "x", None]],
    )
    assert query(out, "select p_design, count(*) n from wrong group by 1 having n > 1").rows == (("D0", 2),)


def test_runs_are_a_view_too(out: Path) -> None:
    assert query(out, "select run, state, result, p_design from runs").rows == (
        ("r1", "done", "2", "D0"),
        ("r2", "done", None, "D1"),
        ("r3", "missing", None, "D2"),
    )
    done = query(out, "select r.run from runs r anti join wrong w on r.run = w.run")
    assert done.rows == (("r3",),)


def test_table_called_as_the_runs_view_keeps_its_name(tmp_path: Path) -> None:
    out = make_folder(tmp_path / "out", Made("r", [Table("Runs", ["a"], [[1]])]))
    assert query(out, "select a from runs").rows == ((1,),)
    assert query(out, "select state from runs_2").rows == (("done",),)


def test_listing_says_columns_types_and_rows(out: Path) -> None:
    found = listing(out)
    assert found.rows[0] == ("wrong", 2, 3, "run string, p_design string, case string, gpa uint64")
    assert found.rows[1][:3] == ("runs", 3, 3)


def test_values_are_plain(out: Path) -> None:
    asked = "select 0.5, sum(gpa), [1, 2], true, null, date '2020-01-02', 1 a, 2 A from wrong"
    (row,) = query(out, asked).rows
    assert row == (0.5, 2**64 - 1, "[1, 2]", True, None, "2020-01-02", 1, 2)


def test_frame_and_arrow(out: Path) -> None:
    found = frame(str(out), "select run, gpa from wrong where gpa is not null")
    assert list(found.columns) == ["run", "gpa"]
    assert found["gpa"].tolist() == [2**64 - 1, 0]
    assert str(query_arrow(out, "select gpa from wrong").schema.field("gpa").type) == "uint64"


def test_order_is_the_same_again(tmp_path: Path) -> None:
    rows = [[number % 97, float(number)] for number in range(5000)]
    out = make_folder(tmp_path / "out", *(Made(f"r{n}", [Table("t", ["a", "b"], rows)]) for n in range(4)))
    asked = "select a, sum(b / 3) from t group by a"
    assert query(out, asked) == query(out, asked)
    assert [row[0] for row in query(out, "select b from t").rows] == [row[1] for row in rows] * 4


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("selec 1", "query 'selec 1': Parser Error: syntax error at or near"),
        ("select nope from wrong", 'Binder Error: Referenced column "nope" not found'),
        ("select * from nope", "Catalog Error: Table with name nope does not exist!"),
        ("select 'a'::int", "Conversion Error"),
        ("", "0 statements, expected one SELECT"),
        ("select 1; select 2", "2 statements, expected one SELECT"),
        ("create table x as select 1", "only SELECT is answered"),
        ("drop view wrong", "only SELECT is answered"),
        ("insert into wrong values (1)", "only SELECT is answered"),
        ("set threads = 4", "only SELECT is answered"),
        ("pragma threads = 4", "only SELECT is answered"),
        ("install httpfs", "only SELECT is answered"),
        ("load parquet", "only SELECT is answered"),
        ("attach '{secret}' as x", "only SELECT is answered"),
        ("copy wrong to '{secret}'", "only SELECT is answered"),
        ("select * from read_csv('{secret}')", "Permission Error"),
        ("select * from read_text('{secret}')", "Permission Error"),
        ("select * from glob('{secret}')", "Permission Error"),
        ("select * from '{secret}'", " Error: "),
        ("with x as (select content from read_blob('{secret}')) select * from x", "Permission Error"),
    ],
)
def test_query_is_refused_in_one_line(out: Path, tmp_path: Path, sql: str, says: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    with pytest.raises(InputError) as refused:
        query(out, sql.format(secret=secret))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert secret.read_text() == "a,b\n1,2\n"


def test_connection_cannot_be_opened_up(out: Path, tmp_path: Path) -> None:
    connection = connect(out)
    for sql in ("set enable_external_access = true", f"copy wrong to '{tmp_path / 'x'}'", "install httpfs"):
        with pytest.raises(duckdb.Error):
            connection.execute(sql)
    hidden = [1]
    with pytest.raises(duckdb.Error):
        connection.execute("select * from hidden")
    assert hidden == [1]


def test_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sweep or report of mmulab"):
        query(tmp_path, "select 1")
    assert listing(make_folder(tmp_path / "out")).rows[0][:3] == ("runs", 0, 0)
