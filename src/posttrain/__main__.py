"""``python -m posttrain``: the same as the ``posttrain`` command."""

import sys

from posttrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
