"""Replica placement: node pools, which are Ray's worker groups. A single machine counts as every pool."""

from collections.abc import Mapping

POOL = "gearbox.io/pool"  # Ray node label, set by the chart for each worker group
GATEWAY = "gateway"  # the pool for everything but engines

LOCAL: Mapping[str, object] = {"num_cpus": 0}  # actor options on a single machine, where only engines reserve CPUs
#: Actor options in a cluster: half a core each, so that Ray's autoscaler can detect a full pool.
IN_CLUSTER: Mapping[str, object] = {"num_cpus": 0.5, "label_selector": {POOL: GATEWAY}}
