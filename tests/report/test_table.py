from aia_jax.report.table import Row, metric_table

ROW = {"precision": 0.45321, "recall": 0.611, "f1": 0.52, "n_plus": 202, "map": 42.519, "num_images": 499}


def test_a_table_has_titles_numbers_signs_blanks_and_lines_of_text():
    rows = [Row("best epoch", ROW), "", "a line of its own", Row("last epoch", {"f1": 0.1, "n_plus": 0, "map": None})]
    assert metric_table(rows, title="test split").split("\n") == [
        "test split                                      P        R       F1       N+      mAP",
        "best epoch                                 0.4532   0.6110   0.5200      202    42.52",
        "",
        "a line of its own",
        "last epoch                                                   0.1000        0",
    ]
    assert metric_table([]).split() == ["P", "R", "F1", "N+", "mAP"]
    difference = Row("difference", {"precision": 0.0123, "recall": -0.5, "n_plus": 3, "map": 0.0}, signed=True)
    assert metric_table([difference]).split("\n")[1] == (
        "difference                                +0.0123  -0.5000                +3    +0.00"
    )


def test_the_column_of_names_is_as_wide_as_the_longest_name_but_a_very_long_name_has_its_own_line():
    header, first, second = metric_table([Row("n" * 60, ROW), Row("short", ROW)]).split("\n")
    assert first.startswith("n" * 60 + "   0.4532")
    assert header.index("mAP") + 3 == len(header) == len(first) == len(second)
    lines = metric_table([Row("n" * 200, ROW), Row("short", ROW)], title="t" * 100).split("\n")
    title, header, name, numbers, short = lines
    assert (title, name) == ("t" * 100, "n" * 200)
    assert len(header) == len(numbers) == len(short) == 40 + 5 * 9
