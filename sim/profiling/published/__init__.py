"""The maker of the shipped tables: published measurements, fitted with the laws of `physics`, in the tables of `fill`.

`python -m sim.profiling.published FOLDER --out PROFILES` runs it. `sources` reads what was published, `fits` makes
rates of it, `tables` grids and switch costs. Only what is particular to these sources is here.
"""
