"""Malformed inputs for the command: valid files are made, changed at one place and given to a verb of `titans`.

    python -m tests.fuzz N SEED [KIND ...]              N inputs; exit code 1 if one of them finds a fault
    python -m tests.fuzz N SEED --case KIND:INDEX       one of them again, with its traceback
    python -m tests.fuzz.races --kills 30 --races 10    commands that are killed, and two at once in one place

`valid` makes the files, `damage` changes bytes and values, `memory`, `model`, `recipe`, `corpus`, `run` and `results`
make the inputs of a kind, `command` runs a verb in this process, and `driver` watches it from outside.
"""
