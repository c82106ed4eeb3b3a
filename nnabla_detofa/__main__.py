"""Entry point of `python -m nnabla_detofa`, the command line under a name that cannot collide with another program."""

import sys

from .cli.program import main

sys.exit(main())
