"""`python -m kogpt` is `kogpt`."""

import sys

from kogpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
