"""Text for messages: on one line, and not too long."""

import re
import reprlib


def shown(value):
    """Return the repr of a value, on one line and shortened to about 100 characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = 100
    return short.repr(value)


def first_line(error):
    """Return the message of an exception as one line of at most 300 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # Drop TensorFlow's preamble about where the graph was built.
    text = re.sub(r"^Graph execution error:.*?\nNode: [^\n]*\n", "", text, flags=re.DOTALL)
    lines = text.strip().splitlines()
    return " ".join(lines[0].split())[:300] if lines else type(error).__name__


def printable(text):
    """Return `str(text)` with control characters, line breaks and bytes that are not UTF-8 (in file
    names) escaped, so that it prints on one line in any terminal."""
    unsafe = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    return re.sub(unsafe, lambda match: repr(match[0])[1:-1], str(text))


def shortened(names, count=5, width=60):
    """Return the first `count` names, separated by commas, and the number of the others: "a, b, c,
    d, e and 2,995 more". Names are truncated after `width` characters."""
    names = [name if len(name) <= width else f"{name[:width]}..." for name in map(printable, names)]
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def duration(seconds):
    """Return a duration in its two largest units, such as "3 d 14 h"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
