"""The paper's tables and figures, and the runs that each of them needs."""
