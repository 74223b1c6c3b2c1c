"""From the machines that were asked for to a crew. Called by execute.py."""

from __future__ import annotations

from sim.common.errors import ConfigError
from sim.runs.executor import Crew, Here
from sim.runs.task import Machines


def crew_of(machines: Machines) -> Crew:
    """Raises ConfigError: an engine that is not installed, a cluster that does not answer, bad options."""
    if machines.jobs is not None and machines.jobs < (0 if machines.engine == "local" else 1):
        raise ConfigError(f"--jobs {machines.jobs}: give the number of runs at once, at least 1")
    if machines.engine == "dask":
        from sim.runs.dask_executor import DaskCrew  # noqa: PLC0415  an extra

        return DaskCrew(machines.address, machines.jobs)
    if machines.engine == "ray":
        from sim.runs.ray_executor import RayCrew  # noqa: PLC0415  an extra

        return RayCrew(machines.address, machines.jobs)
    if machines.address is not None:
        raise ConfigError(f"{machines.address}: a cluster's address needs --engine dask or --engine ray")
    if machines.jobs == 0:
        return Here()
    from joblib import cpu_count  # noqa: PLC0415  knows what a container may use

    from sim.runs.local_executor import LocalCrew  # noqa: PLC0415  joblib is slow to import

    return LocalCrew(machines.jobs or int(cpu_count()))
