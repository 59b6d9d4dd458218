"""The command line with the toy stages instead of posttrain's own: ``python -m tests.cli.toy_main run
toy.yaml``."""

import sys

from posttrain.cli import main
from tests.pipelines.toy_stages import TOY_STAGES

if __name__ == "__main__":
    sys.exit(main(stages=TOY_STAGES))
