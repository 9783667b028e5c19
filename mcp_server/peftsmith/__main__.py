"""Run as: python -m peftsmith (the same as the command `peftsmith`)."""

import sys

from peftsmith.cli import main

if __name__ == "__main__":
    sys.exit(main())
