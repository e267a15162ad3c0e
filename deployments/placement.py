"""Where in a cluster replicas run: in node pools, which are Ray's worker groups. One machine is all pools at once."""

from collections.abc import Mapping

POOL = "gearbox.io/pool"  # Ray node label, set by the chart for each worker group
GATEWAY = "gateway"  # the pool of everything that is no engine

HERE: Mapping[str, object] = {"num_cpus": 0}  # actor options on one machine: the engines' CPUs are what is counted
#: Actor options in a cluster: half a core each, so that Ray's autoscaler knows when a pool is full.
IN_CLUSTER: Mapping[str, object] = {"num_cpus": 0.5, "label_selector": {POOL: GATEWAY}}
