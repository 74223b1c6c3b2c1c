"""What must hold after any run: the laws of sim.conformance, for the tests of the engine."""

from __future__ import annotations

from sim.conformance.laws import assert_laws, assert_rankings, assert_settled, assert_work_conserving

__all__ = ["assert_laws", "assert_rankings", "assert_settled", "assert_work_conserving"]
