"""``python -m gpenlib.compile BUILD.yaml [key=value ...]``."""

import sys

from gpenlib.compile.build import main

if __name__ == "__main__":
    sys.exit(main())
