"""``python -m gpenlib.compile BUILD.yaml [key=value ...]``."""

import sys

from gpenlib.compile.build import main

sys.exit(main())
