"""The renderer of tables."""

from sao.tables import Column, markdown_table, number, percent, percent_with_interval, plain_table


def test_a_plain_table_by_hand() -> None:
    columns = [Column("stage", width=7), Column("kept", "right", width=5), Column("reasons", gap=2)]
    rows = [["pairs", "12", "tie 3"], ["a title that is wider"], ["train", "1,234,567", ""]]
    assert plain_table(columns, rows) == [
        "stage        kept  reasons",
        "pairs          12  tie 3",
        "a title that is wider",
        "train   1,234,567",
    ]
    assert plain_table(columns, rows[:1], heads=False) == ["pairs      12  tie 3"]


def test_a_markdown_table_by_hand() -> None:
    assert markdown_table([Column("a"), Column("n", "right")], [["x | y\nz", "1"], ["", "2"]]) == [
        "| a | n |",
        "|---|---:|",
        "| x \\| y z | 1 |",
        "| | 2 |",
    ]


def test_cells() -> None:
    assert [percent(value) for value in (None, 0.1234, -1e-9, 1.0)] == ["–", "12.3 %", "0.0 %", "100.0 %"]
    assert percent(0.5, 0, unit="") == "50"
    assert percent_with_interval(0.5, (0.25, 1.0)) == "50.0 % [25.0, 100.0]"
    assert percent_with_interval(None, (0.0, 1.0)) == "–"
    assert percent_with_interval(0.5, None) == "50.0 %"
    assert [number(value) for value in (None, 1234, 0.126, -0.001)] == ["–", "1,234", "0.13", "0.00"]
