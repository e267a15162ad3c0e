"""The cells of the live routing benchmark in the simulator."""

from dataclasses import replace

from benchmarks.routing.baselines import POLICIES
from benchmarks.routing.goodput_cells import Bench, Setting
from benchmarks.routing.goodput_summary import Cell
from benchmarks.routing.live_platform import Machine
from benchmarks.routing.simulated_platform import Platform
from benchmarks.routing.workloads import Request
from serve.card import load_card
from serve.config.sections import VariantConfig
from serve.routing.catalog import make_variant

SIMULATED = {"budget-full": "budget", **{name: name for name in POLICIES}}  # the simulator's policy by ours
DRAIN_S = 60.0  # between two cells


def platform(machine: Machine, setting: Setting, seed: int) -> Platform | None:
    """The simulated platform of a setting; None for a policy that the simulator does not have."""
    alone = setting.policy in setting.setup.variants
    if not alone and setting.policy not in SIMULATED:
        return None
    variants = []
    for name in [setting.policy] if alone else setting.setup.variants:
        args = machine.config.engine_args(machine.config.variants[0])
        waiting = machine.config.server.max_waiting_per_replica
        config = VariantConfig(name=name, recipe=name, price_usd_per_hour=machine.config.variants[0].price_usd_per_hour)
        variants.append(make_variant(config, load_card(machine.folder(name, setting.setup)), args, waiting))
    names = [variant.name for variant in variants]
    places = [[name] for name in names] if setting.setup.cores else [names]  # a core each, or shared
    return Platform(variants, places, POLICIES["full" if alone else SIMULATED[setting.policy]](), seed)


def simulated(bench: Bench, setting: Setting, number: int) -> list[Cell]:
    """The cells of a setting in the simulator; none for a policy that it does not have."""
    if (simulator := platform(bench.machine, setting, number)) is None:
        return []
    trace: list[Request] = []
    ends: list[int] = []
    cells = [bench.trace(number, shape, load) for shape, load in bench.keys]
    for i, cell in enumerate([bench.warm_up(number), *cells]):
        offset = i * (bench.size.seconds + DRAIN_S) * 1000
        trace += [replace(request, at=request.at + offset) for request in cell]
        ends.append(len(trace))
    outcomes = list(simulator.run(trace))
    found = []
    for i, (shape, load) in enumerate(bench.keys, 1):
        part, offset = outcomes[ends[i - 1] : ends[i]], i * (bench.size.seconds + DRAIN_S) * 1000
        for outcome in part:
            outcome.request = replace(outcome.request, at=outcome.request.at - offset)
        found.append(bench.cell("simulated", number, setting, shape, load, part))
    return found
