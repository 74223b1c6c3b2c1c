"""What is possible at best on a scenario: hard bounds that no policy passes, and the best plan of a small instance.

`alone` bounds each request, `fluid` the load that can be sustained, `pooled` the mean latency under load, `schedule`
plans small instances; `together` has them all. Each says exactly what it bounds and under which assumptions.
"""
