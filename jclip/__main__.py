"""`python -m jclip`, which is `jclip`."""

import sys

from jclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
