# One job: trains, measures, simulates or audits, and leaves a record. Its name is the hash of its config.
rule run:
    input:
        parents_of,
    output:
        "results/runs/{run}/record.json",
    log:
        "logs/runs/{run}.log",
    conda:
        "../envs/dpbench.yaml"
    threads: threads_of
    resources:
        mem_mb=mem_mb_of,
        runtime=runtime_of,
        gpu=gpus_of,
        warm=warm_of,
    params:
        config=config_of_run,
        folder=subpath(output[0], parent=True),
    shell:
        # tracking is no param: switching the mirror on must not repeat a finished run
        f"{DPBENCH} run {{params.config:q}} --out {{params.folder:q}} --threads {{threads}} --warm {{resources.warm}}"
        f" --tracking {STUDY.config.tracking} > {{log:q}} 2>&1"
