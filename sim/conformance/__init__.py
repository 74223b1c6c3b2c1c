"""What every policy must do, whatever it schedules by: checks that need no data files, for policies of anyone.

suite.py judges a policy check by check, checks.py and source.py are the checks; cases.py has the scenarios that they
play on the synthetic machines of hardware.py, laws.py what must hold after any run. `python -m sim policies check` and
the project's own tests call them.
"""
