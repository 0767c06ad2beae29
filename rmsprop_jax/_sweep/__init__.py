"""Whole trainings over a grid of hyperparameters and seeds.

The rooms, from what is asked to what is found; each imports only from those above it, `sweep` last.

    values · seeds              what a value is: identity, label, JSON; keys
    files                       one file of a folder, with its checksum
    points · sampling           what is tried
    training                    a training in steps
    states                      a trial's state as flat arrays; what may be one
    blame · tracing             who is to blame; the trace of what runs, what a sweep refuses
    fingerprint · plan          what was asked, what is finished: the data that the rest passes on
    objective · statistics      what is looked for; how sure
    coordination · carriers     JAX's coordination service; dtypes of less than a byte
    processes · deadlock        several hosts; the guard
    agreement                   what all processes must be given alike
    memory                      what is free on this host, within a container's limit
    checks                      the arguments of a call
    schedulers · decisions      which trials go on; asked once, checked, written, replayed
    program · pieces            a compiled program that runs rounds of jobs; what a job runs
    batched_keys                random keys that no batch may share
    compiling · batches         programs ahead of their turn; the steps' data, read ahead
    ahead                       the programs for devices that need not be there
    rounds                      jobs a round at a time: begun, gone on with, fetched
    flight                      rounds that trials leave and enter, for a search
    retraining                  a trial once more, as the sweep trained it
    manifest · store            what a folder was asked for; the folder
    results                     what was found
    ledger · keeping            how far each trial is; its states, in memory and on disk
    engine                      in which order all that runs
    sweep                       the call
"""
