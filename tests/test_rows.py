"""Rows of logs.txt are written and read by name."""

import math

import pytest

from senet.run.rows import best_epoch, format_row, parse_row, read_rows

ROW = {"epoch": 3, "total_epochs": 100, "train_loss": 0.8123, "train_acc": 0.7145}
TESTED = ROW | {"test_loss": 0.779, "test_acc": 0.7311}
LINE = "epoch: 3/100, train_loss: 0.8123, train_acc: 0.7145, test_loss: 0.7790, test_acc: 0.7311"


def test_a_row_is_written_as_documented_and_read_back():
    assert format_row(TESTED) == LINE
    assert parse_row(LINE) == TESTED


def test_unknown_names_are_kept_names_may_be_missing_and_damaged_lines_are_skipped(tmp_path):
    lines = [format_row(ROW | {"epoch": 1}), f"{LINE}, test_top5: 0.9012, mine: nan", "epoch: \xff"]
    (tmp_path / "logs.txt").write_text("".join(f"{line}\n" for line in lines), "latin-1")
    rows = read_rows(tmp_path / "logs.txt")
    assert rows[3].pop("test_top5") == 0.9012
    assert math.isnan(rows[3].pop("mine"))
    assert rows == {1: ROW | {"epoch": 1}, 3: TESTED}


@pytest.mark.parametrize("line", ["", "notes", "epoch: 3/x", "epoch: 3/9, acc", "epoch: 1/2, a: b"])
def test_other_lines_are_not_rows(line):
    assert parse_row(line) is None


def test_the_best_epoch_is_the_first_with_the_largest_finite_accuracy():
    accuracies = {1: 0.5, 2: math.nan, 3: 0.7, 4: 0.7, 5: math.inf, 6: 0.6}
    rows = {epoch: {"test_acc": acc, "test_top5": 1.0} for epoch, acc in accuracies.items()}
    assert best_epoch(rows | {7: {"train_acc": 0.9}}) == 3
    assert best_epoch({1: {"test_acc": math.nan}, 2: {}}) is None
