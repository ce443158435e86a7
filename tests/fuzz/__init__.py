"""Damages inputs of every kind and tells what the product makes of them.

    make fuzz-long                          # 20,000 mutations of each kind
    make fuzz-long COUNT=500 KIND="npz"     # of one kind (its name, or a part of it)
    PYTHONPATH=tests python -m fuzz --only 17 --seed 0 "npz file"     # one, shown

`mutations` changes bytes and structures, `inputs` has a module for each family of
kinds, `campaign` runs them and judges. A mutation is known by kind, seed and number, and is
the same in every run.

Allowed are two ends: exit code 2 with one line `error: ...` and nothing written, or exit
code 0. A trace, a crash, a hang, more than 64 MiB of memory beyond twice what the files
hold, a changed input, or a file left behind is a fault; so is a file of ours that is read
though its digest no longer holds.
"""
