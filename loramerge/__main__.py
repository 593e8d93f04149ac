"""`python -m loramerge`."""

import sys

from loramerge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
