"""Memory and throughput of training steps on several processes: data parallel or a pipeline, engines in turn in one launch."""

from dpbench.measure.parallel import Settings, check, run, uses

PLUGIN = {
    "kind": "job",
    "name": "parallel",
    "version": 1,
    "summary": "memory and throughput of training steps on several processes",
}
