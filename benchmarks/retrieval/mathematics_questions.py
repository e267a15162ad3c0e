"""Print textbook questions of DeepMind's `mathematics-dataset` with their results, as JSON, always the same ones.

A process of its own: the package of 2019 needs names that numpy and sympy have moved since. Arguments: the folders with the files of
`mathematics-dataset` and `absl-py`.
"""

import builtins
import importlib
import json
import random
import sys

import numpy

SEED, EACH = 20, 6
#: Modules of the dataset that are computations, with the kind they are counted as. Those with a computation in steps are left out.
KINDS = {
    "add_or_sub": "textbook", "add_sub_multiple": "textbook", "mul": "textbook", "div": "textbook", "mul_div_multiple": "textbook",
    "mixed": "textbook", "conversion": "units",
}  # fmt: skip


def main() -> None:
    """Print the questions."""
    sys.path[:0] = sys.argv[1:]
    solvers = importlib.import_module("sympy.solvers.diophantine")
    solvers.base_solution_linear = importlib.import_module("sympy.solvers.diophantine.diophantine").base_solution_linear
    for name in ("int", "float", "bool", "object"):
        if name not in vars(numpy):
            setattr(numpy, name, getattr(builtins, name))
    random.seed(SEED)
    numpy.random.seed(SEED)
    rows = []
    for part in ("arithmetic", "measurement"):
        makers = importlib.import_module(f"mathematics_dataset.modules.{part}").test()
        for name, kind in KINDS.items():
            for _ in range(EACH if name in makers else 0):
                problem = makers[name]()
                rows.append({"text": str(problem.question), "result": str(problem.answer), "kind": kind})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
