"""Many runs: what to run (task, grid), where it is kept (store), who runs it (worker, crews), and all of it (execute).

`execute.play` is the one way by which sweep, compare and capacity run simulations; `collect` makes tables of results.
Nothing here knows statistics or how results look.
"""
