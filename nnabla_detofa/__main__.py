"""`python -m nnabla_detofa`: the command line under a name that nobody else owns."""

import sys

from .cli.program import main

sys.exit(main())
