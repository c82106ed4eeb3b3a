"""Every case of the corpus, in one process: `python tests/bad_input.py` prints the counts by kind and what was not refused."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from corpus import CASES  # noqa: E402
from corpus.case import fault  # noqa: E402
from corpus.template import make  # noqa: E402


def main(wanted: str = "") -> int:
    """Exit status: 0 where all cases with `wanted` in their name are refused as they should be."""
    cases = [case for case in CASES if wanted in str(case)]
    failed: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        template = make(Path(folder, "template"))
        for number, case in enumerate(cases):
            scratch = Path(folder, str(number))
            scratch.mkdir()
            if found := fault(case, template, scratch):
                print(f"NOT REFUSED {case}\n    {found}", flush=True)
                failed[case.kind] += 1
    print("\n".join(f"{kind:<20}{count:>5}" for kind, count in Counter(case.kind for case in cases).items()))
    print(f"{len(cases)} cases: {f'{failed.total()} not refused' if failed else 'all refused'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
