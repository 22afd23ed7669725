"""`python -m aligngap` is the command `aligngap`."""

import sys

from aligngap.cli import main

if __name__ == "__main__":
    sys.exit(main())
