# One job: trains, measures, simulates or audits, and leaves a record. Its name is the hash of its config.
rule run:
    input:
        parents_of,
    output:
        # not removed before the job: a finished record is replaced only by a finished one
        update("results/runs/{run}/record.json"),
    log:
        "logs/runs/{run}.log",
    conda:
        environment_of
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
        f"{DPBENCH} run {{params.config:q}} --out {{params.folder:q}} --threads {{threads}} --warm {{resources.warm}} --plan {PLAN}"
        f" --tracking {STUDY.config.tracking} ${{{{{KEEP}:-}}}} --owner $PPID > {{log:q}} 2>&1"
