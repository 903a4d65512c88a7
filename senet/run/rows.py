"""The rows of logs.txt, one per epoch:

    epoch: 3/100, train_loss: 0.8123, train_acc: 0.7145, test_loss: 0.7790, test_acc: 0.7311

A row is a dict of numbers by name. Names may differ between runs and between epochs.
"""

import math
import re

from senet.engine.errors import Failure
from senet.engine.files import read_regular
from senet.engine.text import first_line

NUMBER = r", ([^\s,:]+): (-?\d+\.?\d*|nan|-?inf)"
ROW = re.compile(rf"epoch: (\d{{1,9}})/(\d{{1,9}})((?:{NUMBER})*)")


def format_row(row):
    """Return the line of a row, a dict."""
    numbers = dict(row)
    epochs = f"epoch: {numbers.pop('epoch')}/{numbers.pop('total_epochs')}"
    return ", ".join([epochs, *(f"{name}: {value:.4f}" for name, value in numbers.items())])


def parse_row(line):
    """Return the row in a line, {name: number}, or None if it is not one."""
    match = ROW.fullmatch(line)
    if not match:
        return None
    numbers = {name: float(value) for name, value in re.findall(NUMBER, match[3])}
    return {"epoch": int(match[1]), "total_epochs": int(match[2]), **numbers}


def parse_rows(lines):
    """Return the rows in `lines`, {epoch: row}."""
    rows = filter(None, map(parse_row, lines))
    return {row["epoch"]: row for row in rows}


def read_lines(path):
    """Return the lines of the logs.txt at `path`, [] if it does not exist; the last one is not
    complete. Raises Failure if it cannot be read."""
    try:
        text = read_regular(path).decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Failure(f"{path} cannot be read: {first_line(error)}; fix or remove it") from None
    return text.split("\n")


def read_rows(path):
    """Return the complete rows of the logs.txt at `path`, {epoch: row}."""
    return parse_rows(read_lines(path)[:-1])


def best_epoch(rows):
    """Return the first epoch with the largest finite accuracy in {epoch: row}, or None. It is the
    `val_acc` of the held-out images, if there are any, else the `test_acc`."""
    accuracies = {n: row.get("val_acc", row.get("test_acc", math.nan)) for n, row in rows.items()}
    finite = {epoch: acc for epoch, acc in accuracies.items() if math.isfinite(acc)}
    return max(finite, key=lambda epoch: (finite[epoch], -epoch), default=None)
