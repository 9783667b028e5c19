"""One process of a crew: reads lots, looks at their rows, answers with parts.

Knows: the frames of crew.py; "=" before a part, "!" before an error that is not one of the rows'.
Does not know: files, or other lots. It ends with its parent, whose pipe then closes.
"""

from __future__ import annotations

import gc
import marshal
import sys

from peftsmith.data.crew import read, write
from peftsmith.data.examine import Checks, Examiner
from peftsmith.data.lots import Lot
from peftsmith.errors import PeftsmithError


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = read(source)
    if setup is None:
        return
    examiner = Examiner(Checks.of_plain(marshal.loads(setup)))
    # Rows are trees that die young: the collector would only look again and again for cycles among them.
    gc.freeze()
    gc.set_threshold(200_000)
    while (request := read(source)) is not None:
        try:
            write(sink, b"=" + examiner.examine(Lot(*marshal.loads(request))).packed())
        except (PeftsmithError, ValueError, TypeError, LookupError, RecursionError, MemoryError) as error:
            write(sink, b"!" + f"{type(error).__name__}: {error}".encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
